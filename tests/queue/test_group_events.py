"""A group's end is told once, also to who comes late or loses the connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
import redis

from broker.errors import NotFound
from broker.queue.connection import Connection
from broker.queue.group_events import GroupHub
from broker.queue.queue import Answer, Queue
from tests.support.jobs import new_job
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import wait_until


@pytest.fixture
async def groups(connection: Connection, queue: Queue) -> AsyncIterator[GroupHub]:
    hub = GroupHub(connection, queue)
    yield hub
    await hub.stop()


class Ears:
    """Keeps what a group's follower hears."""

    def __init__(self, hub: GroupHub, group: str = "g", tenant: str = "ann") -> None:
        self._heard: asyncio.Queue[Answer] = asyncio.Queue()
        self._task = asyncio.create_task(self._follow(hub, tenant, group))

    async def _follow(self, hub: GroupHub, tenant: str, group: str) -> None:
        async with aclosing(hub.follow(tenant, group)) as ends:
            async for answer in ends:
                self._heard.put_nowait(answer)

    async def next(self) -> Answer:
        async with asyncio.timeout(10):
            return await self._heard.get()

    @property
    def silent(self) -> bool:
        return self._heard.empty()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def ears(hub: GroupHub, **more: str) -> AsyncIterator[Ears]:
    heard = Ears(hub, **more)
    try:
        yield heard
    finally:
        await heard.close()


async def test_the_last_end_is_told_with_the_figures(queue: Queue, groups: GroupHub) -> None:
    worker = SimulatedWorker(queue)
    await worker.register()
    jobs = [new_job(f"j{i}", group="g", max_attempts=1) for i in range(3)]
    await queue.submit("ann", jobs)
    async with ears(groups) as one, ears(groups) as two:
        await worker.work_one()
        held = await worker.claim()
        assert held is not None
        await worker.fail(held)
        assert one.silent
        await queue.cancel("j2")
        for each in (one, two):
            answer = await each.next()
            counts = {s: answer.number(s) for s in ("completed", "failed", "cancelled", "pending")}
            assert counts == {"completed": 1, "failed": 1, "cancelled": 1, "pending": 0}
            assert (answer.number("jobs"), answer.number("open"), answer.number("ended")) == (3, 0, 1)
        await queue.retry("j1")
        await worker.work_one()
        assert (await one.next()).number("ended") == 2
        async with ears(groups) as late:
            assert (await late.next()).number("ended") == 2
    with pytest.raises(NotFound):
        async for _ in groups.follow("bob", "g"):
            pass


async def test_a_group_that_a_submit_ends_and_adds_to_has_not_ended(queue: Queue, groups: GroupHub) -> None:
    await queue.submit("ann", [new_job("parent")])
    await queue.cancel("parent")
    stillborn = new_job("a", group="g", depends_on=["parent"])
    await queue.submit("ann", [stillborn, new_job("b", group="g")])
    assert (await queue.job("a")).text("status") == "failed"
    assert (await queue.group("ann", "g")).number("ended") == 0
    async with ears(groups) as heard:
        await queue.cancel("b")
        assert (await heard.next()).number("ended") == 1


async def test_an_end_during_a_break_is_told_afterwards(
    queue: Queue, groups: GroupHub, redis_client: redis.Redis
) -> None:
    await queue.submit("ann", [new_job("a", group="g"), new_job("b", group="g")])
    async with ears(groups) as heard:
        await queue.cancel("a")

        def listening() -> list[str]:
            """Connections with a channel beside the echo."""
            return [each["id"] for each in redis_client.client_list() if int(each.get("ssub", 0)) > 1]

        for each in await wait_until(listening, what="a connection that listens"):
            assert redis_client.client_kill_filter(_id=each) == 1
        await queue.cancel("b")
        assert (await heard.next()).number("ended") == 1
