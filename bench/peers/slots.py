"""A worker process with several jobs in flight over one auto-pipelining connection: the floor's and EMQ's."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

Job = TypeVar("Job")


class Source(Protocol[Job]):
    """Where a slot gets jobs."""

    async def claim(self) -> Job | None:
        """The next job."""

    async def next(self, done: Job) -> Job | None:
        """End a job and get the next one."""

    def payload(self, job: Job) -> str:
        """What the handler is given."""


async def run(
    source: Source[Job], in_flight: int, note: Callable[[str], None], hint: Callable[[], Awaitable[bool]]
) -> None:
    """Serve for ever. ``hint`` waits for a wake-up; each wakes one idle slot, at most as many as there are."""
    wake = asyncio.Semaphore(0)

    async def slot() -> None:
        job = await source.claim()
        while True:
            while job is None:
                await wake.acquire()
                job = await source.claim()
            note(source.payload(job))
            job = await source.next(job)

    async def listen() -> None:
        while True:
            if await hint():
                wake.release()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(listen())
        for _ in range(in_flight):
            tasks.create_task(slot())
