"""BullMQ's Python package."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from bullmq import Queue, Worker


class Producer:
    def __init__(self, url: str) -> None:
        self.queue = Queue("bench", {"connection": url})

    async def enqueue(self, payload: str) -> None:
        await self.queue.add("handle", {"payload": payload}, {})

    async def enqueue_many(self, payloads: list[str]) -> None:
        await self.queue.addBulk([{"name": "handle", "data": {"payload": payload}, "opts": {}} for payload in payloads])

    async def close(self) -> None:
        await self.queue.close()


async def producer(url: str) -> Producer:
    return Producer(url)


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    async def handle(job: Any, _token: str) -> None:
        note(job.data["payload"])

    async def run() -> None:
        worker = Worker("bench", handle, {"connection": url, "concurrency": in_flight})
        await asyncio.Event().wait()
        await worker.close()

    asyncio.run(run())
