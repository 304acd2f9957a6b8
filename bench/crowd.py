"""Many sockets at once: such as only stand there, and such as stop reading in the middle of what is sent to them."""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import aiohttp

from bench.sockets import RawSocket, bearer, connect, connect_many, sources
from bench.stack import Replica
from bench.targets import Target
from broker.errors import Unavailable
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.api.conftest import NODES, submit
from tests.support.jobs import profile
from tests.support.simulated import Held, SimulatedWorker

SPARE = 1_000
"""Open files that are no sockets of a crowd."""
JOBS, REPORTS_PER_S = 250, 1
HEALTHY = 500
BASE_S, CUT_S = 10.0, 30.0


async def idle(replicas: Sequence[Replica], key: str, count: int, seconds: float) -> list[Target]:
    """``count`` sockets, spread over the brokers, that say nothing but answer pings."""
    ports = [replica.port for replica, _ in zip(itertools.cycle(replicas), range(count))]
    for one in await connect_many(ports[:200], key=key):
        one.abort()  # what a broker makes once is made
    await asyncio.sleep(1)
    memory, began = sum(replica.rss for replica in replicas), time.monotonic()
    crowd = await connect_many(ports, key=key)
    took = time.monotonic() - began
    await asyncio.sleep(5)
    cpu, since = [replica.cpu_s for replica in replicas], time.monotonic()
    await asyncio.sleep(seconds)
    passed = time.monotonic() - since
    shares = [(replica.cpu_s - before) / passed for replica, before in zip(replicas, cpu, strict=True)]
    kib = (sum(replica.rss for replica in replicas) - memory) / 1024 / count
    lost = sum(one.closed.done() for one in crowd)
    each = " and ".join(f"{share:.1%}" for share in shares)
    print(f"{count:,} sockets with a key opened in {took:.0f} s; the idle brokers use {each} of a core", flush=True)
    for one in crowd:
        one.abort()
    return [
        Target("memory of an idle socket, KiB", kib, 30, most=True),
        Target("CPU of the idle brokers together, % of a core", sum(shares) * 100, 10, most=True),
        Target(f"idle sockets lost in {seconds:.0f} s", lost, 0, most=True),
    ]


class Healthy:
    """Followers that read: how long each event was on its way."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def take(self, text: bytes) -> None:
        """One message."""
        message = json.loads(text)
        if "at" in message:
            self.taken.append((time.monotonic() - message["at"]) * 1000)

    async def during(self, seconds: float) -> float:
        """The p99 (ms) of the events that come within this time."""
        self.taken.clear()
        await asyncio.sleep(seconds)
        return self.p99()

    def p99(self) -> float:
        """The p99 (ms) of what was taken last."""
        return statistics.quantiles(self.taken, n=100)[98]


async def _report(worker: SimulatedWorker, held: Held, turn: float) -> None:
    """Reports at their times; each says when it was made."""
    due = time.monotonic() + turn
    for number in itertools.count(1):
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = max(due + 1 / REPORTS_PER_S, time.monotonic())  # a busy machine's missed ones are not made up for
        with suppress(Unavailable):  # as a worker, which goes on with its next report
            await worker.report(held, 50, store=number % 8 == 1, at=time.monotonic())
            if number % (10 * REPORTS_PER_S):
                continue
            await worker.heartbeat()  # its lease


@asynccontextmanager
async def running(redis_url: str, port: int, key: str) -> AsyncIterator[list[str]]:
    """Jobs that simulated workers run and report of; their ids."""
    connection = Connection(redis_url)
    queue = Queue(connection, "default")
    tasks, jobs = [], []
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", headers=bearer(key)) as http:
        for number in range(JOBS):
            worker = SimulatedWorker(queue, f"bench-{number}", profile=profile(nodes=NODES))
            await worker.register(status="busy")  # nobody else is told of the job
            async with http.post("/api/jobs", json=submit()) as answer:
                answer.raise_for_status()
            held = await worker.claim()
            assert held is not None
            jobs.append(held.job_id)
            tasks.append(asyncio.create_task(_report(worker, held, number / JOBS / REPORTS_PER_S)))
    try:
        yield jobs
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await connection.close()


def follow(crowd: Sequence[RawSocket], jobs: Sequence[str]) -> None:
    """Each follows one of the jobs."""
    for one, job_id in zip(crowd, itertools.cycle(jobs)):
        one.send(json.dumps({"type": "subscribe_job", "job_id": job_id}).encode())


async def deaf(redis_url: str, replica: Replica, key: str, count: int) -> list[Target]:
    """Clients that follow jobs and stop reading, among as many that read: how the others fare, until all are cut."""
    healthy = Healthy()
    async with running(redis_url, replica.port, key) as jobs:
        readers = await connect_many([replica.port] * HEALTHY, key=key, on_text=healthy.take)
        follow(readers, jobs)
        await asyncio.sleep(3)
        before = await healthy.during(BASE_S)
        memory = replica.rss
        crowd = [
            await connect(replica.port, key=key, source=source, receive_buffer=4096)
            for source in itertools.islice(sources(), count)
        ]
        follow(crowd, jobs)
        await asyncio.sleep(2)
        for one in crowd:
            one.stop_reading()
        took, grown = await _until_cut(replica, crowd, memory, healthy)
        among = healthy.p99()
        after = await healthy.during(BASE_S)
        lost = sum(one.closed.done() for one in readers)
        for one in (*readers, *crowd):
            one.abort()
    alone = (before + after) / 2
    print(
        f"{HEALTHY} followers of {JOBS} jobs, {JOBS * REPORTS_PER_S} events/s: p99 {before:.1f} ms and {after:.1f} ms "
        f"alone, {among:.1f} ms among {count} that stopped reading; the broker grew by {grown / 1e6:.0f} MB",
        flush=True,
    )
    return [
        Target("p99 among clients that read nothing / alone", among / alone, 1.2, most=True),
        Target("all of them cut, s", took, CUT_S, most=True),
        Target("memory for them, MB", grown / 1e6, 200, most=True),
        Target("healthy followers lost", lost, 0, most=True),
    ]


async def _until_cut(replica: Replica, crowd: Sequence[RawSocket], memory: int, healthy: Healthy) -> tuple[float, int]:
    """Seconds until the broker has none of the crowd's connections any more, and how many bytes it grew at most."""
    healthy.taken.clear()
    addresses = {one.address for one in crowd}
    began, grown = time.monotonic(), 0
    while replica.holds(addresses) and time.monotonic() - began < 2 * CUT_S:
        grown = max(grown, replica.rss - memory)
        await asyncio.sleep(0.5)
    return time.monotonic() - began, grown
