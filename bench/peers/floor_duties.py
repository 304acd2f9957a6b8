"""The floor with EMQ's other promises: record, log, index, counters, life times (``floor_duties.lua``)."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path

from bench.mux import Mux, connect
from bench.peers import slots
from bench.peers.floor import Job, job_of

PREFIX = "{floor}:"
TENANT, CLASS, WORKER = "default", "bench", "bench"


async def load(mux: Mux) -> None:
    """Load the functions."""
    await mux.call("FUNCTION", "LOAD", "REPLACE", Path(__file__).with_suffix(".lua").read_bytes())


class Producer:
    def __init__(self, mux: Mux) -> None:
        self.mux = mux

    async def enqueue(self, payload: str) -> None:
        await self.enqueue_many([payload])

    async def enqueue_many(self, payloads: list[str]) -> None:
        args = [arg for payload in payloads for arg in (str(uuid.uuid4()), payload)]
        await self.mux.call("FCALL", "floor_duties_enqueue", 1, PREFIX, TENANT, CLASS, *args)

    def close(self) -> None:
        self.mux.close()


async def producer(url: str) -> Producer:
    mux = await connect(url)
    await load(mux)
    return Producer(mux)


class Source:
    """Jobs of this floor."""

    def __init__(self, mux: Mux) -> None:
        self.mux = mux

    async def _ask(self, function: str, *more: str) -> Job | None:
        return job_of(await self.mux.call("FCALL", function, 1, PREFIX, WORKER, secrets.token_hex(16), *more))

    async def claim(self) -> Job | None:
        """Claim."""
        return await self._ask("floor_duties_claim")

    async def next(self, done: Job) -> Job | None:
        """Complete and claim."""
        return await self._ask("floor_duties_next", done[0], done[1])

    def payload(self, job: Job) -> str:
        return str(job[2], "ascii")


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    async def run() -> None:
        mux, blocking = await connect(url), await connect(url)
        await load(mux)
        await mux.call("FCALL", "floor_duties_register", 1, PREFIX, WORKER, in_flight, CLASS)

        async def hint() -> bool:
            return await blocking.call("BLPOP", f"{PREFIX}wake", 5) is not None

        await slots.run(Source(mux), in_flight, note, hint)

    asyncio.run(run())
