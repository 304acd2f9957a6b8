"""streaQ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaq import Worker


def _worker(url: str, in_flight: int, note: Callable[[str], None]) -> tuple[Any, Any]:
    worker: Any = Worker(redis_url=url, concurrency=in_flight)

    @worker.task(name="handle")
    async def handle(payload: str) -> None:
        note(payload)

    return worker, handle


class Producer:
    def __init__(self, worker: Any, task: Any) -> None:
        self.worker, self.task = worker, task

    async def enqueue(self, payload: str) -> None:
        await self.task.enqueue(payload)

    async def enqueue_many(self, payloads: list[str]) -> None:
        await self.worker.enqueue_many([self.task.enqueue(payload) for payload in payloads])

    async def close(self) -> None:
        await self.worker.__aexit__(None, None, None)


async def producer(url: str) -> Producer:
    worker, task = _worker(url, 1, lambda _: None)
    await worker.__aenter__()
    return Producer(worker, task)


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    worker, _ = _worker(url, in_flight, note)
    worker.run_sync()
