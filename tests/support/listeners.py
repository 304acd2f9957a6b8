"""Listeners to a job's events, and what they hear."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from broker.queue.channels import Channels
from broker.queue.connection import Connection
from broker.queue.events import Event, EventHub, Subscription
from broker.queue.queue import Queue
from tests.support.jobs import new_job
from tests.support.simulated import Held, SimulatedWorker

StartHub = Callable[..., Awaitable[EventHub]]


class Split:
    """Pub/sub by one way, everything else by another."""

    def __init__(self, wire: Connection, rest: Connection) -> None:
        self._wire, self._rest = wire, rest
        self.publish = rest.publish
        self.read = rest.read

    async def channels(self, key: str) -> Channels:
        return await self._wire.channels(key)


async def submit(queue: Queue, job_id: str = "") -> str:
    (answer,) = await queue.submit("t", [new_job(job_id or secrets.token_hex(6), max_attempts=1000)])
    assert answer.outcome == "ok", answer
    return answer.text("job_id")


async def claim(worker: SimulatedWorker, job_id: str) -> Held:
    held = await worker.claim(job_id)
    assert held is not None
    return held


async def take(listener: Subscription, last: str, timeout_s: float = 20) -> list[Any]:
    """What a listener gets up to an event of the type ``last``."""
    got: list[Any] = []
    async with asyncio.timeout(timeout_s):
        async for item in listener:
            got.append(item)
            if isinstance(item, Event) and item.type == last:
                break
    return got


def names(items: list[Any]) -> list[str]:
    return [item.data.get("status") or item.type if isinstance(item, Event) else type(item).__name__ for item in items]
