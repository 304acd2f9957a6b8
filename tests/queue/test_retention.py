"""How long finished jobs are kept, how many of them, and what goes with them."""

from __future__ import annotations

import pytest
import redis

from broker.errors import Conflict, NotFound
from broker.queue.queue import Queue
from broker.queue.startup import pool_config
from broker.settings import Settings
from tests.support.jobs import new_job
from tests.support.simulated import SimulatedWorker

NOW = 1_800_000_000_000


@pytest.fixture
def clock(queue: Queue, redis_client: redis.Redis) -> redis.Redis:
    """A client for the pool, whose clock stands still."""
    redis_client.hset(f"{queue.prefix}config", "test_clock", NOW)
    return redis_client


def at(client: redis.Redis, queue: Queue, ms: int) -> None:
    client.hset(f"{queue.prefix}config", "test_clock", NOW + ms)


async def three_ends(queue: Queue, group: str | None = None) -> None:
    """One job of each end."""
    worker = SimulatedWorker(queue)
    await worker.register()
    for name in ("completed", "failed", "cancelled"):
        await queue.submit("ann", [new_job(name, group=group, max_attempts=1, labels=("000000aa",))])
        if name == "cancelled":
            await queue.cancel(name)
            continue
        held = await worker.claim(name)
        assert held is not None
        await (worker.finish(held) if name == "completed" else worker.fail(held))


async def kept(queue: Queue) -> set[str]:
    return {row.text("job_id") for row in (await queue.list_jobs("ann")).rows}


async def test_each_end_has_a_life_of_its_own(queue: Queue, clock: redis.Redis) -> None:
    lives = Settings(ttl_completed_s=10, ttl_failed_s=30, ttl_cancelled_s=20, max_finished=7)
    await queue.configure(**pool_config(lives))
    await three_ends(queue)
    for ms, left in (
        (9_000, {"completed", "failed", "cancelled"}), (11_000, {"failed", "cancelled"}), (21_000, {"failed"}),
        (31_000, set()),
    ):  # fmt: skip
        at(clock, queue, ms)
        await queue.sweep()
        assert await kept(queue) == left
    with pytest.raises(NotFound):
        await queue.job("failed")
    assert clock.exists(f"{queue.prefix}x:ann") == 0


async def test_the_oldest_go_when_there_are_too_many(queue: Queue, clock: redis.Redis) -> None:
    await queue.configure(max_finished=3)
    worker = SimulatedWorker(queue)
    await worker.register()
    for number in range(10):
        await queue.submit("ann" if number % 2 else "bob", [new_job(f"j{number}", labels=("000000aa",))])
        await worker.work_one()
        at(clock, queue, number)
    await queue.submit("ann", [new_job("waits")])
    first = await queue.sweep(limit=4)
    assert (first.number("trimmed"), first.flag("more")) == (4, True)
    await queue.sweep(limit=4)
    assert (await queue.sweep()).number("trimmed") == 0
    rows = (await queue.list_jobs("", ["completed"])).rows
    assert [row.text("job_id") for row in rows] == ["j9", "j8", "j7"]
    found = (await queue.list_jobs("", filters={"labels": "000000aa"})).rows
    assert [row.text("job_id") for row in found] == ["j9", "j8", "j7"]
    stats = await queue.stats()
    assert (stats.number("completed"), stats.number("pending"), stats.number("completed_total")) == (3, 1, 10)
    assert (await queue.stats("bob")).number("completed") == 1


async def test_a_groups_figures_outlive_its_jobs(queue: Queue, clock: redis.Redis) -> None:
    await queue.configure(ttl_completed_ms=10_000, ttl_failed_ms=10_000, ttl_cancelled_ms=10_000)
    await three_ends(queue, "g")
    before = await queue.group("ann", "g")
    at(clock, queue, 11_000)
    await queue.sweep()
    assert await kept(queue) == set()
    after = await queue.group("ann", "g")
    assert [after.number(name) for name in ("completed", "failed", "cancelled", "jobs")] == [1, 1, 1, 3]
    assert after.pairs == before.pairs
    assert clock.pttl(f"{queue.prefix}g:ann:g") > 0
    assert clock.exists(f"{queue.prefix}gm:ann:g") == 0


async def test_a_dead_letter_that_is_forgotten_is_no_dead_letter(queue: Queue, clock: redis.Redis) -> None:
    await queue.configure(ttl_failed_ms=10_000)
    await queue.submit("ann", [new_job("bomb")])
    for number in range(3):
        worker = SimulatedWorker(queue, f"w{number}")
        await worker.register()
        held = await worker.claim("bomb")
        assert held is not None
        await worker.report(held)
        await queue.call("gone", [("instance", worker.instance)])
    assert (await queue.stats()).number("dead") == 1
    at(clock, queue, 11_000)
    await queue.sweep()
    assert (await queue.stats()).number("dead") == 0
    assert (await queue.list_jobs("ann", filters={"dead": 1})).rows == []


async def test_a_job_that_has_ended_may_be_deleted(queue: Queue, redis_client: redis.Redis) -> None:
    await three_ends(queue, group="g")
    await queue.submit("ann", [new_job("waits")])
    with pytest.raises(Conflict):
        await queue.delete("waits", "ann")
    with pytest.raises(NotFound):
        await queue.delete("completed", "bob")
    for name in ("completed", "failed", "cancelled"):
        assert (await queue.delete(name, "ann" if name == "failed" else "")).text("tenant") == "ann"
        with pytest.raises(NotFound):
            await queue.delete(name, "ann")
    assert await kept(queue) == {"waits"}
    stats = await queue.stats("ann")
    assert [stats.number(name) for name in ("completed", "failed", "cancelled", "pending")] == [0, 0, 0, 1]
    left = [key for key in redis_client.scan_iter(f"{queue.prefix}*") if key.rpartition(b":")[2] in (b"completed",)]
    assert left == []


async def test_a_job_whose_dependants_wait_to_hear_of_its_end_is_not_deleted(
    queue: Queue, redis_client: redis.Redis
) -> None:
    await queue.submit("ann", [new_job("parent"), *(new_job(f"kid{n}", depends_on=["parent"]) for n in range(150))])
    await queue.cancel("parent")
    assert redis_client.exists(f"{queue.prefix}kids:parent")
    with pytest.raises(Conflict) as caught:
        await queue.delete("parent")
    assert caught.value.details["reason"] == "dependants"
    while (await queue.sweep()).flag("more"):
        pass
    await queue.delete("parent")
