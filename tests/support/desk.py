"""A pool on a test's own clock, and short words for what workers and clients do to it."""

from __future__ import annotations

import itertools
import json
from typing import Any

import redis
from redis.client import PubSub

from broker.queue.events import Event
from broker.queue.new_job import NewJob, Value
from broker.queue.queue import Answer, Queue
from broker.queue.subscription import first_message
from tests.support.jobs import new_job, profile

START = 1_800_000_000_000
LEASE_MS = 30_000


def text(raw: object) -> str:
    """What Redis answers, as text; the tests' clients decode nothing."""
    assert isinstance(raw, bytes)
    return raw.decode()


def heard(channel: PubSub) -> dict[str, Any]:
    """The next message of a channel."""
    message: dict[str, Any] | None = channel.get_sharded_message(timeout=5)
    assert message is not None, "nothing was published"
    return message


def an_event(item: object) -> Event:
    """What a listener got, which is neither a preview nor a gap."""
    assert isinstance(item, Event), item
    return item


class Worker:
    """One instance of a worker; it remembers the token of each of its claims."""

    def __init__(self, desk: Desk, name: str, instance: str) -> None:
        self.desk = desk
        self.name = name
        self.instance = instance
        self.tokens: dict[str, str] = {}

    @property
    def me(self) -> dict[str, Value | None]:
        return {"worker": self.name, "instance": self.instance}

    async def call(self, function: str, **pairs: Value | None) -> Answer:
        return await self.desk.queue.worker_call(function, {**self.me, **pairs})

    async def claim(self, **pairs: Value | None) -> Answer:
        answer = await self.call("claim", **{"token": self.desk.token(), **pairs})
        return self.took(answer)

    def took(self, answer: Answer) -> Answer:
        """Note the token of a job that was given."""
        if answer.outcome == "job":
            self.tokens[answer.text("job_id")] = answer.text("lease")
        return answer

    async def take(self, **pairs: Value | None) -> str:
        """Claim, and have got a job."""
        answer = await self.claim(**pairs)
        assert answer.outcome == "job", answer
        return answer.text("job_id")

    async def held(self, function: str, job: str, **pairs: Value | None) -> Answer:
        """A call about a job of this worker's."""
        return await self.call(function, **{"job": job, "token": self.tokens[job], **pairs})

    async def report(self, job: str, **pairs: Value | None) -> Answer:
        return await self.held("report", job, **{"p": 1, "data": '{"progress":5}', **pairs})

    async def start(self, **pairs: Value | None) -> str:
        """Claim and report: the job runs."""
        job = await self.take(**pairs)
        assert (await self.report(job)).outcome == "ok"
        return job

    async def executed(self, job: str, **pairs: Value | None) -> Answer:
        return await self.held("executed", job, **pairs)

    async def finish(self, job: str, **pairs: Value | None) -> Answer:
        return await self.held("finish", job, **{"result": '{"outputs":[],"timings":{}}', **pairs})

    async def fail(self, job: str, code: str = "node_error", **pairs: Value | None) -> Answer:
        error = json.dumps({"code": code, "message": "no", "node_id": None, "node_type": None, "details": {}})
        return await self.held("fail", job, **{"code": code, "error": error, **pairs})

    async def heartbeat(self, *jobs: str, status: str = "idle", **pairs: Value | None) -> Answer:
        lines = "\n".join(f"{job} {self.tokens[job]}" for job in jobs)
        return await self.call("heartbeat", **{"status": status, "jobs": lines, **pairs})

    async def inbox(self) -> list[str]:
        """Take the hints that were left."""
        key = f"{self.desk.queue.prefix}in:{self.instance}"
        hints = [text(hint) for hint in self.desk.client.lrange(key, 0, -1)]
        self.desk.client.delete(key)
        return hints


class Desk:
    """A pool, seen from all sides."""

    def __init__(self, queue: Queue, client: redis.Redis) -> None:
        self.queue = queue
        self.client = client
        self.now = START
        self._numbers = itertools.count(1)
        self.tick(0)

    def token(self) -> str:
        return f"{next(self._numbers):032x}"

    def tick(self, ms: int) -> None:
        """Let time pass at once."""
        self.now += ms
        self.client.hset(self.key("config"), "test_clock", self.now)

    async def live(self, ms: int, *workers: Worker, step: int = 2000) -> None:
        """Let time pass with a sweep now and then, and heartbeats of workers that name all they hold."""
        for at in range(0, ms, step):
            self.tick(min(step, ms - at))
            for worker in workers:
                await worker.heartbeat(*(await self.holds(worker)), status="busy")
            await self.queue.sweep()

    def key(self, name: str) -> str:
        return self.queue.prefix + name

    async def worker(self, name: str = "w", *, instance: str | None = None, **pairs: Value | None) -> Worker:
        """Register a worker."""
        worker = Worker(self, name, instance or f"i{next(self._numbers)}")
        said = {"machine": "m", "profile": profile(), "info": "{}", "slots": 1, "status": "idle", **pairs}
        answer = await worker.call("register", **said)
        assert answer.outcome == "ok", answer
        return worker

    async def submit(self, *ids: str, tenant: str = "ann", **more: Any) -> list[Answer]:
        """Submit jobs that are alike."""
        return await self.queue.submit(tenant, [new_job(job_id, **more) for job_id in ids])

    async def add(self, job_id: str, tenant: str = "ann", **more: Any) -> Answer:
        """Submit one job and have it accepted."""
        answer = (await self.submit(job_id, tenant=tenant, **more))[0]
        assert answer.outcome == "ok", answer
        return answer

    async def submit_all(self, tenant: str, jobs: list[NewJob]) -> list[Answer]:
        return await self.queue.submit(tenant, jobs)

    async def status(self, job: str) -> str:
        return (await self.queue.job(job)).text("status")

    async def holds(self, worker: Worker) -> list[str]:
        held = self.client.zrange(self.key(f"held:{worker.instance}"), 0, -1)
        return [job for job in map(text, held) if job in worker.tokens]

    def field(self, job: str, name: str) -> str | None:
        """A field of the raw record."""
        value = self.client.hget(self.key(f"j:{job}"), name)
        return None if value is None else text(value)

    def log(self, job: str) -> list[tuple[str, dict[str, Any]]]:
        """A job's logged events, without their numbers, which are checked."""
        raws = [text(raw) for raw in self.client.lrange(self.key(f"e:{job}"), 0, -1)]
        first = self.field(job, "first")
        if self.field(job, "events") == "1" and first:
            assert not raws
            raws = [text(first_message(first.encode()))]
        entries = [raw.split("\n", 2) for raw in raws]
        assert [entry[0] for entry in entries] == [f"{n}-0" for n in range(1, len(entries) + 1)]
        return [(kind, json.loads(data)) for _, kind, data in entries]

    def story(self, job: str) -> list[str]:
        """A job's log in short words: the status of updates, else the type."""
        return [data["status"] if kind == "job_update" else kind for kind, data in self.log(job)]

    def listening(self, kind: str, job: str) -> PubSub:
        """To what is published of a job: its events (``ev``), its previews (``pv``)."""
        deployment = text(self.client.hget(self.key("meta"), "deployment"))
        channel: PubSub = self.client.pubsub()  # type: ignore[no-untyped-call]
        channel.ssubscribe(self.key(f"{kind}:{deployment}:{job}"))
        assert heard(channel)["type"] == "ssubscribe"
        return channel

    def life_ms(self, name: str) -> int:
        """What is left of a key's life; -1: for ever, -2: there is none."""
        return int(self.client.pttl(self.key(name)))
