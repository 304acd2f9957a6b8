"""SAQ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop
from saq import Queue, Worker


class Producer:
    def __init__(self, queue: Any) -> None:
        self.queue = queue

    async def enqueue(self, payload: str) -> None:
        await self.queue.enqueue("handle", payload=payload)

    async def close(self) -> None:
        await self.queue.disconnect()


async def producer(url: str) -> Producer:
    queue = Queue.from_url(url)
    await queue.connect()
    return Producer(queue)


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    async def handle(_context: Any, *, payload: str) -> None:
        note(payload)

    async def run() -> None:
        queue = Queue.from_url(url)
        await queue.connect()
        await Worker(queue, functions=[("handle", handle)], concurrency=in_flight).start()

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(run())
