"""No function's work grows with the number of jobs: none takes 5 ms with 100,000 queued and 1,000 workers.

That is said of a machine on which other work of Redis, which knows no jobs, takes what it is noted to take here; a
slower one has as much more time for both.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import redis

from bench.every_call import FUNCTIONS, SLOW_US, Caller, costs
from bench.simulation import Pool, Worker
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker

JOBS, CLASSES, TENANTS, WORKERS, PROFILES = 100_000, 200, 100, 1000, 20
TRIES = 8
WORK = """
for number = 1, 1000 do
  redis.call('ZADD', KEYS[1], number % 250, 'member:' .. number % 250)
  redis.call('ZRANGE', KEYS[1], 0, 4, 'WITHSCORES')
end
redis.call('DEL', KEYS[1])
"""
WORK_US = 2000
MODELS = [f"model-{number:03}.safetensors" for number in range(CLASSES)]


async def fill(queue: Queue) -> None:
    """Every tenant has jobs in every class, with heads that tie; each of the profiles runs a part of the classes."""
    for number in range(WORKERS):
        mine = [MODELS[n] for n in range(CLASSES) if n % PROFILES == number % PROFILES or n % 7 == number % 7]
        await SimulatedWorker(queue, f"w{number}", profile=profile(mine)).register()
    kinds = [new_job(models=[name], payload=b"{}") for name in MODELS]

    async def submit(tenant: int) -> None:
        each = range(JOBS // TENANTS)
        jobs = [replace(kinds[n % CLASSES], job_id=f"{tenant}-{n}", priority=n % 2) for n in each]
        await queue.submit(f"t{tenant}", jobs)

    for tenant in range(0, TENANTS, 4):
        await asyncio.gather(*map(submit, range(tenant, min(TENANTS, tenant + 4))))


def slowness(pool: Pool) -> float:
    """How much longer the server's work takes on this machine than was noted; at least 1."""
    caller = Caller(pool, MODELS)
    for _ in range(TRIES):
        caller.measure("work", lambda: pool.redis.eval(WORK, 1, f"{pool.prefix}work"))
    return max(1.0, min(us for _, us in caller.calls) / WORK_US)


@pytest.mark.timeout(1800)
async def test_no_call_is_long_with_100_000_jobs(valkey_url: str, pool: str) -> None:
    connection, client = Connection(valkey_url), redis.Redis.from_url(valkey_url)
    queue = Queue(connection, pool)
    try:
        await connection.load(queue.prefix)
        await queue.configure()
        await fill(queue)
        assert (await queue.stats()).number("pending") == JOBS
        full, fleet = Pool(client, pool), [Worker(f"all{number}") for number in range(TRIES)]
        for worker in fleet:
            full.register(worker, profile(MODELS))
        while client.hlen(f"{queue.prefix}match"):
            await queue.sweep()
        before, took = slowness(full), costs(full, MODELS, fleet, TRIES)
        assert took.keys() == FUNCTIONS
        limit = SLOW_US * max(before, slowness(full))
        long = {name: f"{us / 1000:.1f} ms" for name, us in took.items() if us > limit}
        assert not long, f"each of {TRIES} times, these took more of the server's CPU than {limit:.0f} µs: {long}"
    finally:
        keys = list(client.scan_iter(match=f"{queue.prefix}*", count=10_000))
        for begin in range(0, len(keys), 1000):
            client.unlink(*keys[begin : begin + 1000])
        client.close()
        await connection.close()
