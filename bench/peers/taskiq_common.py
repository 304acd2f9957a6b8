"""taskiq, whichever broker: the receiver runs in this process, without the supervisor that would start it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import uvloop
from taskiq.api import run_receiver_task


class Producer:
    def __init__(self, broker: Any, task: Any) -> None:
        self.broker, self.task = broker, task

    async def enqueue(self, payload: str) -> None:
        await self.task.kiq(payload)

    async def close(self) -> None:
        await self.broker.shutdown()


def _task(broker: Any, note: Callable[[str], None]) -> Any:
    @broker.task(task_name="handle")
    async def handle(payload: str) -> None:
        note(payload)

    return handle


async def produce_with(broker: Any) -> Producer:
    task = _task(broker, lambda _: None)
    await broker.startup()
    return Producer(broker, task)


def work_with(make: Callable[[], Any], in_flight: int, note: Callable[[str], None]) -> None:
    async def run() -> None:
        broker = make()
        _task(broker, note)
        broker.is_worker_process = True
        await run_receiver_task(broker, max_async_tasks=in_flight, run_startup=True)

    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.run(run())
