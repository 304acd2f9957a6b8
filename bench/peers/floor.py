"""The floor: claim and complete as two calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from bench.mux import Mux, connect
from bench.peers import slots

PREFIX = "{floor}:"
Job = list[Any]


async def load(mux: Mux) -> None:
    """Load the functions."""
    await mux.call("FUNCTION", "LOAD", "REPLACE", Path(__file__).with_name("floor.lua").read_bytes())


class Producer:
    def __init__(self, mux: Mux) -> None:
        self.mux = mux
        self.ids = count()
        self.run = time.time_ns()

    async def enqueue(self, payload: str) -> None:
        await self.enqueue_many([payload])

    async def enqueue_many(self, payloads: list[str]) -> None:
        args = [arg for payload in payloads for arg in (f"{self.run}-{next(self.ids)}", payload)]
        await self.mux.call("FCALL", "floor_enqueue", 1, PREFIX, *args)

    def close(self) -> None:
        self.mux.close()


async def producer(url: str) -> Producer:
    mux = await connect(url)
    await load(mux)
    return Producer(mux)


def job_of(answer: Any) -> Job | None:
    return list(answer) if answer else None


class Source:
    """Jobs of the floor."""

    def __init__(self, mux: Mux, *, fused: bool) -> None:
        self.mux, self.fused = mux, fused

    async def claim(self) -> Job | None:
        """Claim."""
        return job_of(await self.mux.call("FCALL", "floor_claim", 1, PREFIX, time.time_ns() // 1_000_000 + 30_000))

    async def next(self, done: Job) -> Job | None:
        """Complete and claim."""
        if self.fused:
            until = time.time_ns() // 1_000_000 + 30_000
            return job_of(await self.mux.call("FCALL", "floor_next", 1, PREFIX, done[0], done[1], until))
        await self.mux.call("FCALL", "floor_complete", 1, PREFIX, done[0], done[1])
        return await self.claim()

    def payload(self, job: Job) -> str:
        return str(job[2], "ascii")


def work(url: str, in_flight: int, note: Callable[[str], None], *, fused: bool = False) -> None:
    async def run() -> None:
        mux, blocking = await connect(url), await connect(url)
        await load(mux)

        async def hint() -> bool:
            return await blocking.call("BLPOP", f"{PREFIX}wake", 5) is not None

        await slots.run(Source(mux, fused=fused), in_flight, note, hint)

    asyncio.run(run())
