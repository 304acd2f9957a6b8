"""Clients that stop reading in the middle of what is sent to them: how those fare who follow the same jobs and read.

The crowd is a process of its own, so that the readers' process does the same with it and without.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import statistics
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.crowd import HEALTHY, JOBS, REPORTS_PER_S, follow, running
from bench.deliveries import Ears
from bench.site import counted
from bench.sockets import allow_open_files, connect, connect_many, sources
from bench.stack import ROOT, Replica
from bench.targets import Target
from tests.support.waiting import wait_until

ALONE_S, CUT_S = 15.0, 30.0
SETTLED_S = 2.0
LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """What a crowd is to do."""

    port: int
    pid: int
    """The broker's."""
    key: str
    count: int
    jobs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Fate:
    """What came of a crowd."""

    took_s: float
    """Until the broker had none of its connections any more."""
    grown: int
    """Bytes that the broker grew by at most."""


async def measure(redis_url: str, replica: Replica, key: str, count: int, rounds: int) -> list[Target]:
    """Readers alone and among a crowd, in turns."""
    ears, alone, among, fates = Ears(), list[float](), list[float](), list[Fate]()
    async with running(redis_url, replica.port, key) as jobs:
        readers = await connect_many([replica.port] * HEALTHY, key=key, on_text=ears.take)
        follow(readers, jobs)
        await wait_until(lambda: ears.confirmed == len(readers), 60, "every reader follows its job")
        cpu, began = time.process_time(), time.monotonic()
        order = Order(replica.port, replica.pid, key, count, jobs)
        for _ in range(rounds):
            alone.append(await _alone(ears))
            fates.append(await _among(ears, order))
            among.append(_p99(ears))
            print(f"p99 {alone[-1]:.1f} ms alone, {among[-1]:.1f} ms among {count} that stopped reading", flush=True)
        alone.append(await _alone(ears))
        busy = (time.process_time() - cpu) / (time.monotonic() - began)
        lost = sum(one.closed.done() for one in readers)
        for one in readers:
            one.abort()
    ratios = [2 * p99 / sum(beside) for p99, beside in zip(among, itertools.pairwise(alone), strict=True)]
    print(
        f"{HEALTHY} followers of {JOBS} jobs, {JOBS * REPORTS_PER_S} events/s, {rounds} rounds: p99 "
        f"{statistics.median(alone):.1f} ms alone, {statistics.median(among):.1f} ms among {count} that read nothing"
    )
    return counted(busy, [
        Target("p99 among clients that read nothing / alone", statistics.median(ratios), 1.2, most=True),
        Target("all of them cut, s", max(fate.took_s for fate in fates), CUT_S, most=True),
        Target("memory for them, MB", max(fate.grown for fate in fates) / 1e6, 200, most=True),
        Target("healthy followers lost", lost, 0, most=True),
    ])  # fmt: skip


def _p99(ears: Ears) -> float:
    """In milliseconds, of what came since the last time; it is forgotten then."""
    taken, ears.waits_ms = ears.waits_ms, array("d")
    return statistics.quantiles(taken, n=100)[98]


async def _alone(ears: Ears) -> float:
    await asyncio.sleep(SETTLED_S)
    _p99(ears)
    await asyncio.sleep(ALONE_S)
    return _p99(ears)


async def _among(ears: Ears, order: Order) -> Fate:
    """One crowd, from when it stops reading to when the last of it is cut."""
    pipe = asyncio.subprocess.PIPE
    crowd = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.deaf", cwd=ROOT, stdin=pipe, stdout=pipe
    )  # fmt: skip
    assert crowd.stdin is not None
    assert crowd.stdout is not None
    try:
        crowd.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        assert await crowd.stdout.readline() == b"deaf\n"
        _p99(ears)
        return Fate(**json.loads(await crowd.stdout.readline()))
    finally:
        if crowd.returncode is None:
            crowd.kill()
        await crowd.wait()


async def be_deaf(order: Order) -> None:
    """Follow, stop reading, and look how long the broker keeps that up."""
    allow_open_files(order.count + 100)
    os.nice(10)  # its looks at the kernel's table of connections are nobody's delay
    broker = Replica(order.port, order.pid)
    memory = broker.rss
    crowd = [
        await connect(order.port, key=order.key, source=source, receive_buffer=4096)
        for source in itertools.islice(sources(), order.count)
    ]
    follow(crowd, order.jobs)
    await asyncio.sleep(SETTLED_S)
    for one in crowd:
        one.stop_reading()
    print("deaf", flush=True)
    addresses = {one.address for one in crowd}
    began, grown = time.monotonic(), 0
    while broker.holds(addresses) and time.monotonic() - began < 2 * CUT_S:
        grown = max(grown, broker.rss - memory)
        await asyncio.sleep(LOOK_S)
    print(json.dumps(asdict(Fate(time.monotonic() - began, grown))), flush=True)


if __name__ == "__main__":
    asyncio.run(be_deaf(Order(**json.loads(sys.stdin.readline()))))
