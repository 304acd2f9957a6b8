"""Calls that meet at the same moment: one wins, and everybody is told the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

from broker.errors import Conflict
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.queue import Queue
from tests.api.conftest import NODES, Start, start_broker, submit
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker

__all__ = ["start_broker"]

KEYS, AT_ONCE = 20, 25
RACES = 300
TURNS = 12
"""The loop's turns by which either call may come later: more than the calls' own, so that each is often the first."""


async def test_one_key_at_many_brokers_at_once_is_one_job(start_broker: Start) -> None:
    brokers = [await start_broker(), await start_broker()]

    async def ask(number: int, key: int) -> tuple[int, str, bool]:
        status, answer = await brokers[number % 2].json("POST", "/api/jobs", json=submit(idempotency_key=f"k{key}"))
        assert status in (200, 201)
        return key, answer["job_id"], answer["duplicate"]

    calls = [ask(number, key) for key in range(KEYS) for number in range(AT_ONCE)]
    random.shuffle(calls)
    answers = await asyncio.gather(*calls)
    assert len({(key, job) for key, job, _ in answers}) == KEYS
    assert sum(not duplicate for _, _, duplicate in answers) == KEYS


async def _some_turns_later(call: Awaitable[Any]) -> Any:
    for _ in range(random.randrange(TURNS)):
        await asyncio.sleep(0)
    return await call


async def test_cancel_and_completion_meet(queue: Queue, connection: Connection) -> None:
    """Whoever is first in Redis wins; both hear what is in the record."""
    worker = SimulatedWorker(queue, profile=profile(nodes=NODES), slots=8)
    await worker.register()
    ends = set()
    for number in range(RACES):
        await queue.submit("t", [new_job(f"j{number}")])
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 50)
        calls = [_some_turns_later(queue.cancel(held.job_id)), _some_turns_later(worker.finish(held))]
        refused = [one for one in await asyncio.gather(*calls, return_exceptions=True) if isinstance(one, Conflict)]
        status = (await queue.job(held.job_id)).text("status")
        assert status == ("completed" if refused else "cancelled")
        ends.add(status)
    assert ends == {"completed", "cancelled"}, "either may win"
    assert not await Check(connection, queue.prefix).run()
