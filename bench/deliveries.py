"""``python -m bench deliveries``: progress of 200 workers through Redis, two brokers and NGINX to 1,000 listeners."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import statistics
import tempfile
import time
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.server import server
from bench.site import Site, counted, machine, site
from bench.sockets import RawSocket, connect_many
from bench.targets import Target, print_targets
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.api.conftest import NODES, submit
from tests.support.jobs import profile
from tests.support.simulated import Held, SimulatedWorker
from tests.support.waiting import wait_until

LISTENERS = 5
"""Sockets that follow each job."""
STORED_EVERY = 5
"""Of a worker's reports one a second is stored in the record too, as the real worker does it."""
BEAT_EVERY = 50
WARM_S = 3.0
MARK = b'"at":'


class Ears:
    """All listeners: when each event arrived, compared with when it was made."""

    def __init__(self) -> None:
        self.waits_ms = array("d")
        self.confirmed = 0

    def take(self, text: bytes) -> None:
        """One message; only the time in it is read, so that the generator is not what is measured."""
        at = text.find(MARK)
        if at >= 0:
            end = text.find(b"}", at)
            made = float(text[at + len(MARK) : end].split(b",")[0])
            self.waits_ms.append((time.monotonic() - made) * 1000)
        elif b'"subscription_confirmed"' in text:
            self.confirmed += 1


class Fleet:
    """Workers that each run one job and report of it at a steady pace."""

    def __init__(self, queue: Queue, count: int, per_s: float) -> None:
        self._queue, self._count, self._per_s = queue, count, per_s
        self.jobs: list[str] = []
        self.sent = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, url: str, http: aiohttp.ClientSession) -> None:
        """Give each a job, and let them begin."""
        jobs = [submit() for _ in range(self._count)]
        async with http.post(f"{url}/api/jobs", json={"jobs": jobs}) as answer:
            answer.raise_for_status()
        for number in range(self._count):
            worker = SimulatedWorker(self._queue, f"bench-{number}", profile=profile(nodes=NODES))
            await worker.register()
            held = await worker.claim()
            assert held is not None
            self.jobs.append(held.job_id)
            turn = number / self._count / self._per_s
            self._tasks.append(asyncio.create_task(self._work(worker, held, turn)))

    async def _work(self, worker: SimulatedWorker, held: Held, turn: float) -> None:
        due = time.monotonic() + turn
        for number in itertools.count(1):
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due += 1 / self._per_s
            await worker.report(held, 50, store=number % STORED_EVERY == 1, at=time.monotonic())
            self.sent += 1
            if number % BEAT_EVERY == 0:
                await worker.heartbeat()

    async def stop(self) -> None:
        """End them; raises what went wrong in one."""
        early = [task for task in self._tasks if task.done()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in early:
            task.result()


@asynccontextmanager
async def fleet(redis_url: str, where: Site, count: int, per_s: float) -> AsyncIterator[Fleet]:
    """A fleet that works during the block."""
    connection = Connection(redis_url)
    workers = Fleet(Queue(connection, "default"), count, per_s)
    try:
        async with aiohttp.ClientSession() as http:
            await workers.start(where.url, http)
        yield workers
    finally:
        await workers.stop()
        await connection.close()


async def listen(where: Site, jobs: list[str], ears: Ears) -> list[RawSocket]:
    """``LISTENERS`` sockets for each job, through NGINX, which spreads them over the brokers."""
    sockets = await connect_many([where.port] * (len(jobs) * LISTENERS), path="/queue/ws", on_text=ears.take)
    for socket, job_id in zip(sockets, itertools.cycle(jobs)):
        socket.send(json.dumps({"type": "subscribe_job", "job_id": job_id}).encode())
    await wait_until(lambda: ears.confirmed == len(sockets), 60, "every subscription stands")
    return sockets


async def measure(args: argparse.Namespace) -> list[Target]:
    """One load."""
    ears = Ears()
    with tempfile.TemporaryDirectory(prefix="emq-deliveries-") as name, server(args.fsync) as up:
        async with (
            site(Path(name), up.url) as where,
            fleet(up.url, where, args.workers, args.events / args.workers) as workers,
        ):
            sockets = await listen(where, workers.jobs, ears)
            print(f"{len(sockets):,} listeners of {args.workers} jobs, appendfsync {args.fsync}, {machine()}")
            await asyncio.sleep(WARM_S)
            ears.waits_ms, sent, cpu, began = array("d"), workers.sent, time.process_time(), time.monotonic()
            await asyncio.sleep(args.seconds)
            taken, sent, took = ears.waits_ms, workers.sent - sent, time.monotonic() - began
            busy = (time.process_time() - cpu) / took
            lost = sum(socket.closed.done() for socket in sockets)
            for socket in sockets:
                socket.abort()
    points = statistics.quantiles(taken, n=100)
    print(
        f"{sent / took:,.0f} events/s in, {len(taken) / took:,.0f} deliveries/s out, "
        f"p50 {points[49]:.1f} ms, p99 {points[98]:.1f} ms, longest {max(taken):.0f} ms"
    )
    return counted(busy, [
        Target("progress events in a second", sent / took, args.events * 0.99),
        Target("deliveries a second", len(taken) / took, args.events * LISTENERS * 0.99),
        Target("from report to listener, p99 ms", points[98], 250, most=True),
        Target("listeners lost", lost, 0, most=True),
    ])  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench deliveries", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--events", type=float, default=1000, help="progress events a second")
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--fsync", default="always", choices=("always", "everysec"))
    print_targets(asyncio.run(measure(parser.parse_args(argv))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
