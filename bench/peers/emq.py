"""EMQ: the broker's submit, and the calls that its worker makes (a claim, then every end of a job claims the next)."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio import Redis

from bench.mux import Mux, connect
from bench.peers import slots
from broker.queue.loader import load
from broker.queue.new_job import NewJob
from broker.queue.queue import Answer, Queue, parse
from broker.queue.turns import Turns

CLASS = "bench"
ATOM = "t:comfyui"
PROFILE = json.dumps({"job_types": ["comfyui"], "node_classes": [], "models": {}, "tags": [], "vram_mb": 24_000})
HEARTBEAT_S = 10
GIVEN = b"job\n"
"""How a hint begins that answers a standing claim."""


async def prepare(url: str) -> Queue:
    """The queue over an auto-pipelining connection, its functions loaded."""
    mux = await connect(url)
    queue = Queue(mux)
    async with Redis.from_url(url) as client:
        await load(client, queue.prefix)
    await queue.configure(deployment="bench", lease_ms=30_000)
    return queue


class Producer:
    def __init__(self, queue: Queue) -> None:
        self.queue = queue

    async def enqueue(self, payload: str) -> None:
        await self.enqueue_many([payload])

    async def enqueue_many(self, payloads: list[str]) -> None:
        jobs = [NewJob(secrets.token_hex(16), payload.encode(), b"{}", CLASS, [ATOM]) for payload in payloads]
        for answer in await self.queue.submit("default", jobs):
            assert answer.outcome == "ok", answer

    def close(self) -> None:
        """The connection goes with the process."""


async def producer(url: str) -> Producer:
    return Producer(await prepare(url))


class Source:
    """Jobs of one worker instance."""

    def __init__(self, queue: Queue, mux: Mux, worker: str) -> None:
        self.queue, self._mux, self.held = queue, mux, dict[str, str]()
        self.who = {"worker": worker, "instance": f"{worker}-1"}
        self._turns = Turns(mux.fcall, queue.prefix)
        self.given: deque[Any] = deque()
        self._reader = hiredis.Reader()
        self._who = [part for pair in self.who.items() for part in pair]

    async def call(self, function: str, *args: str) -> Answer:
        return parse(await self._mux.fcall(function, self.queue.prefix, args))

    async def _end(self, *args: str) -> Answer:
        return parse(await self._turns.call("finish", args))

    async def claim(self) -> Answer | None:
        """Claim, or take what a claim that stood was given."""
        if self.given:
            return self._took(parse(self.given.popleft()))
        return self._took(await self.call("emq_claim", *self._who, "token", secrets.token_hex(16), "standing", "1"))

    async def next(self, done: Answer) -> Answer | None:
        """Finish and claim."""
        job, token = done.text("job_id"), done.text("lease")
        answer = await self._end(
            "job", job, "token", token, "result", "{}", "exec_ms", "1", "cold", "0",
            *self._who, "claim", "1", "claim_token", secrets.token_hex(16), "standing", "1",
        )  # fmt: skip
        assert answer.outcome == "ok", answer
        self.held.pop(job, None)
        return self._took(answer.next)

    def _took(self, answer: Answer | None) -> Answer | None:
        assert answer is not None
        if answer.outcome == "job":
            self.held[answer.text("job_id")] = answer.text("lease")
            return answer
        assert answer.outcome == "none", answer
        return None

    def heard(self, hint: bytes) -> bool:
        """What the inbox says; whether a slot is to look for a job."""
        if hint.startswith(GIVEN):
            self._reader.feed(hint[len(GIVEN) :])
            self.given.append(self._reader.gets())
            return True
        return hint == b"work"

    def payload(self, job: Answer) -> str:
        return job.pairs["payload"].decode()

    async def beat(self) -> None:
        """Keep the lease."""
        while True:
            jobs = "\n".join(f"{job} {token}" for job, token in self.held.items())
            await self.call("emq_heartbeat", *self._who, "status", "idle", "jobs", jobs)
            await asyncio.sleep(HEARTBEAT_S)


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    async def run() -> None:
        queue = await prepare(url)
        mux, blocking = await connect(url), await connect(url)
        source = Source(queue, mux, "bench")
        await queue.worker_call(
            "register", {**source.who, "machine": "bench", "profile": PROFILE, "slots": in_flight, "info": "{}"}
        )
        inbox = f"{queue.prefix}in:{source.who['instance']}"

        async def hint() -> bool:
            answer: Any = await blocking.call("BLPOP", inbox, 5)
            return answer is not None and source.heard(answer[1])

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(source.beat())
            tasks.create_task(slots.run(source, in_flight, note, hint))

    asyncio.run(run())
