"""Redis is killed again and again under a stream of submits: ``python -m tests.chaos.kills --kills 30 --rate 500``.

Two brokers on one Valkey (``appendfsync always``), clients at both. Each kill meets submits on their way; who gets no
answer repeats under the same key. At the end every number that was submitted is looked for among the jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from broker.client import Client
from broker.errors import EmqError
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from tests.api.conftest import GRAPH
from tests.support.comfyui import BrokerProcess
from tests.support.servers import RedisServer, valkey_binary
from tests.support.waiting import wait_until

CLIENTS = 8
IN_FLIGHT = 2000
"""So many submits may be without an answer; a client that finds more waits with the next."""
PATIENCE_S = 120.0


@dataclass
class Count:
    """How it went. What must be 0 is ``lost``, ``duplicated``, ``unexpected`` and ``findings``."""

    kills: int = 0
    seconds: float = 0
    submitted: int = 0
    acknowledged: int = 0
    acknowledged_per_s: float = 0
    """Over all of the time, that in which Redis was away included."""
    lost: int = 0
    """Acknowledged jobs that are not there."""
    duplicated: int = 0
    """Submits of which there are two jobs, or another one than was said."""
    recovered: int = 0
    """Jobs that are there though nobody was told so."""
    unexpected: int = 0
    """Jobs that nobody submitted, or that do not wait."""
    back_s: list[float] = field(default_factory=list)
    """From Redis' start (its file is read first) to the next acknowledged submit."""
    generator_cpu: float = 0
    """How much of a core the clients took; over 0.8 they may have been what held it up."""
    findings: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicated or self.unexpected or self.findings)


class Stream:
    """Submits at a steady rate, in turn by each client; :attr:`told` has what each was answered."""

    def __init__(self, clients: list[Client], rate: float) -> None:
        self._clients, self._rate = clients, rate
        self.told: list[str | None] = []
        self.acknowledged = 0
        self._open: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until cancelled."""
        began = time.monotonic()
        while True:
            due = (time.monotonic() - began) * self._rate
            while len(self.told) < due and len(self._open) < IN_FLIGHT:
                task = asyncio.create_task(self._submit(len(self.told)))
                self._open.add(task)
                task.add_done_callback(self._open.discard)
                self.told.append(None)
            if len(self.told) < due:  # what could not be sent in time is left out, not made up for
                began = time.monotonic() - len(self.told) / self._rate
            await asyncio.sleep(0.005)

    async def settle(self) -> None:
        """Wait for every answer."""
        if self._open:
            await asyncio.wait(set(self._open), timeout=PATIENCE_S)

    async def _submit(self, number: int) -> None:
        client = self._clients[number % len(self._clients)]
        try:
            key = f"n{number}"
            job = await client.submit(GRAPH, metadata={"number": number}, idempotency_key=key, follow=False)
        except EmqError:
            return
        self.told[number] = job.id
        self.acknowledged += 1


@asynccontextmanager
async def brokers(folder: Path, redis: RedisServer, pool: str) -> AsyncIterator[list[BrokerProcess]]:
    """Two replicas."""
    env = {"EMQ_REDIS_URL": redis.url, "EMQ_POOL": pool, "EMQ_SECRET": "the secret of the drills"}
    started = [
        BrokerProcess(folder / f"broker-{n}.log", data=folder / f"broker-{n}", settings={**env, "LOG_LEVEL": "ERROR"})
        for n in range(2)
    ]
    try:
        await asyncio.gather(*(asyncio.to_thread(broker.start) for broker in started))
        yield started
    finally:
        for broker in started:
            broker.kill()


async def drill(folder: Path, kills: int, rate: float, seed: int) -> Count:
    """Kill so often, let everything come back, and count."""
    count, pool = Count(), f"kills-{secrets.token_hex(4)}"
    redis = RedisServer("kills", valkey_binary(), folder / "valkey").start("--appendfsync", "always")
    async with AsyncExitStack() as stack:
        stack.callback(redis.kill)
        pair = await stack.enter_async_context(brokers(folder, redis, pool))
        clients = [
            await stack.enter_async_context(Client(pair[n % 2].url, patience_s=PATIENCE_S)) for n in range(CLIENTS)
        ]
        stream, began, used = Stream(clients, rate), time.monotonic(), time.process_time()
        running = asyncio.create_task(stream.run())
        await _kill(redis, stream, count, kills, random.Random(seed))
        running.cancel()
        await stream.settle()
        count.seconds = round(time.monotonic() - began, 1)
        count.generator_cpu = round((time.process_time() - used) / count.seconds, 2)
        count.acknowledged_per_s = round(stream.acknowledged / count.seconds, 1)
        await _judge(clients[0], stream.told, count)
        connection = Connection(redis.url)
        count.findings = [str(finding) for finding in await Check(connection, f"emq:{{{pool}}}:").run()]
        await connection.close()
    return count


async def _kill(redis: RedisServer, stream: Stream, count: Count, kills: int, rng: random.Random) -> None:
    for _ in range(kills):
        before = stream.acknowledged
        await wait_until(lambda before=before: stream.acknowledged > before, PATIENCE_S, "submits are acknowledged")  # type: ignore[misc]
        await asyncio.sleep(rng.uniform(0.5, 1.5))
        redis.kill()
        await asyncio.sleep(rng.uniform(0, 0.3))
        began, before = time.monotonic(), stream.acknowledged
        await asyncio.to_thread(redis.start, "--appendfsync", "always")
        await wait_until(lambda before=before: stream.acknowledged > before, PATIENCE_S, "submits are acknowledged")  # type: ignore[misc]
        count.kills += 1
        count.back_s.append(round(time.monotonic() - began, 2))


async def _judge(client: Client, told: list[str | None], count: Count) -> None:
    count.submitted, count.acknowledged = len(told), sum(job is not None for job in told)
    there: dict[str, int] = {}
    async for job in client.jobs(limit=1000):
        there[job.job_id] = job.metadata["number"]
        count.unexpected += job.status != "pending" or job.metadata["number"] >= len(told)
    jobs_of = Counter(there.values())
    for number, job_id in enumerate(told):
        count.duplicated += jobs_of[number] > 1
        if job_id is None:
            count.recovered += jobs_of[number] > 0
        elif job_id not in there:
            count.lost += 1
        else:
            count.duplicated += there[job_id] != number


def main() -> int:
    """0 when every promise was kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--rate", type=float, default=500, help="submits a second")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--keep", type=Path, help="a file for the counts, as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="emq-kills-") as folder:
        count = asyncio.run(drill(Path(folder), args.kills, args.rate, args.seed))
    said = json.dumps({"seed": args.seed, "rate": args.rate, **asdict(count)}, indent=1)
    print(f"{'good' if count.good else 'BROKEN'}\n{said}")
    if args.keep:
        args.keep.parent.mkdir(parents=True, exist_ok=True)
        args.keep.write_text(said)
    return 0 if count.good else 1


if __name__ == "__main__":
    sys.exit(main())
