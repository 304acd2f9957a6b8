"""No function's work grows with the number of jobs: none takes 5 ms with 100,000 queued and 1,000 workers."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import redis

from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker

JOBS, CLASSES, TENANTS, WORKERS, PROFILES = 100_000, 200, 100, 1000, 20
SLOW_US = 5000
TRIES = 30
"""The slow log has the wall's time: a call that other tests have interrupted is given another chance."""


def model(number: int) -> str:
    return f"model-{number:03}.safetensors"


async def fill(queue: Queue) -> list[SimulatedWorker]:
    """Every tenant has jobs in every class; each of the profiles runs a part of the classes."""
    workers = []
    for number in range(WORKERS):
        mine = [model(n) for n in range(CLASSES) if n % PROFILES == number % PROFILES or n % 7 == number % 7]
        worker = SimulatedWorker(queue, f"w{number}", profile=profile(mine))
        await worker.register()
        workers.append(worker)
    kinds = [new_job(models=[model(n)], payload=b"{}") for n in range(CLASSES)]

    async def submit(tenant: int) -> None:
        each = range(JOBS // TENANTS)
        jobs = [replace(kinds[n % CLASSES], job_id=f"{tenant}-{n}", priority=n % 2) for n in each]
        await queue.submit(f"t{tenant}", jobs)

    for tenant in range(0, TENANTS, 4):
        await asyncio.gather(*map(submit, range(tenant, min(TENANTS, tenant + 4))))
    return workers


async def a_way(queue: Queue, worker: SimulatedWorker) -> None:
    """Submit, claim, start, finish, which claims the next, which fails."""
    await queue.submit("t0", [new_job(models=[model(1)])])
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 5)
    _, following = await worker.finish(held, claim=True)
    assert following is not None
    await worker.report(following, 5)
    await worker.fail(following)


async def control(queue: Queue, worker: SimulatedWorker) -> None:
    """Cancel, priority, front, groups, pauses, limits, drain."""
    jobs = [new_job(models=[model(2)], group="g") for _ in range(3)]
    ids = [answer.text("job_id") for answer in await queue.submit("t1", jobs)]
    await queue.set_priority(ids[0], priority=3)
    await queue.set_priority(ids[1], front=True)
    await queue.cancel(ids[2])
    await queue.retry(ids[2])
    await queue.cancel_group("t1", "g")
    for scope, target in (("tenant", "t2"), ("pool", queue.pool), ("worker", worker.worker_id)):
        await queue.pause(scope, target, True)
        await worker.claim()
        await queue.pause(scope, target, False)
    await queue.call("tenant", [("tenant", "t3"), ("max_running", 1), ("weight", 2)])
    await queue.drain(worker.worker_id)
    await queue.drain(worker.worker_id, False)


async def look(queue: Queue, worker: SimulatedWorker) -> None:
    """Listings, records and figures."""
    page = await queue.call("list", [("tenant", "t4"), ("limit", 100)])
    await queue.call("list", [("tenant", ""), ("limit", 100)])
    await queue.job(page.rows[0].text("job_id"))
    await queue.stats()
    await queue.stats("t4")
    await queue.call("fleet")
    await queue.call("workers", [("worker", worker.worker_id)])


async def come_and_go(queue: Queue, worker: SimulatedWorker) -> None:
    """A worker of a new kind comes, beats, is lost; a sweep."""
    new = SimulatedWorker(queue, "new", profile=profile([model(3), secrets.token_hex(4)]))
    await new.register()
    await new.heartbeat()
    held = await new.claim()
    assert held is not None
    await new.call("gone")
    await new.register()
    await new.bye()
    await worker.heartbeat()
    await queue.sweep()


@pytest.mark.timeout(240)
async def test_no_call_is_slow_with_100_000_jobs(valkey_url: str, pool: str) -> None:
    connection, client = Connection(valkey_url), redis.Redis.from_url(valkey_url)
    queue = Queue(connection, pool)
    before = client.config_get("slowlog-log-slower-than")
    try:
        await connection.load(queue.prefix)
        await queue.configure()
        workers = await fill(queue)
        assert (await queue.stats()).number("pending") == JOBS
        client.config_set("slowlog-log-slower-than", SLOW_US)
        for number, act in enumerate((a_way, control, look, come_and_go)):
            slow = await slowest(client, queue, workers[number * 7], act)
            assert not slow, f"{act.__name__}: each of {TRIES} times, these took over {SLOW_US} µs: {slow}"
    finally:
        client.config_set("slowlog-log-slower-than", before["slowlog-log-slower-than"])
        keys = list(client.scan_iter(match=f"{queue.prefix}*", count=10_000))
        for begin in range(0, len(keys), 1000):
            client.unlink(*keys[begin : begin + 1000])
        client.close()
        await connection.close()


async def slowest(
    client: redis.Redis, queue: Queue, worker: SimulatedWorker, act: Callable[[Queue, SimulatedWorker], Awaitable[Any]]
) -> set[str]:
    """The functions that were slow each time."""
    always: set[str] | None = None
    for _ in range(TRIES):
        client.slowlog_reset()
        await act(queue, worker)
        commands = [bytes(entry["command"]).split() for entry in client.slowlog_get(128)]
        slow = {words[1].decode() for words in commands if words and words[0] == b"FCALL"}
        always = slow if always is None else always & slow
        if not always:
            break
    return always or set()
