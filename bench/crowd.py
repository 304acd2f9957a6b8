"""Many sockets at once: such as only stand there, and such as follow jobs that workers report of."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import aiohttp

from bench.sockets import RawSocket, bearer, connect_many
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
