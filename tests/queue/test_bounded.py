"""No function's work grows with the number of jobs: none takes 5 ms with 100,000 queued and 1,000 workers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import redis

from bench.every_call import FUNCTIONS, SLOW_US, slow_calls
from bench.simulation import Pool, Worker
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker

JOBS, CLASSES, TENANTS, WORKERS, PROFILES = 100_000, 200, 100, 1000, 20
TRIES = 30
"""The slow log has the wall's time: a call that other tests have interrupted is given another chance."""


def model(number: int) -> str:
    return f"model-{number:03}.safetensors"


async def fill(queue: Queue) -> None:
    """Every tenant has jobs in every class; each of the profiles runs a part of the classes."""
    for number in range(WORKERS):
        mine = [model(n) for n in range(CLASSES) if n % PROFILES == number % PROFILES or n % 7 == number % 7]
        await SimulatedWorker(queue, f"w{number}", profile=profile(mine)).register()
    kinds = [new_job(models=[model(n)], payload=b"{}") for n in range(CLASSES)]

    async def submit(tenant: int) -> None:
        each = range(JOBS // TENANTS)
        jobs = [replace(kinds[n % CLASSES], job_id=f"{tenant}-{n}", priority=n % 2) for n in each]
        await queue.submit(f"t{tenant}", jobs)

    for tenant in range(0, TENANTS, 4):
        await asyncio.gather(*map(submit, range(tenant, min(TENANTS, tenant + 4))))


@pytest.mark.timeout(240)
async def test_no_call_is_slow_with_100_000_jobs(valkey_url: str, pool: str) -> None:
    connection, client = Connection(valkey_url), redis.Redis.from_url(valkey_url)
    queue = Queue(connection, pool)
    before = client.config_get("slowlog-log-slower-than")
    try:
        await connection.load(queue.prefix)
        await queue.configure()
        await fill(queue)
        assert (await queue.stats()).number("pending") == JOBS
        full = Pool(client, pool)
        everything = [Worker(f"all{number}") for number in range(TRIES)]
        for worker in everything:
            full.register(worker, profile([model(number) for number in range(CLASSES)]))
        on, slow = slow_calls(full, [model(number) for number in range(CLASSES)], everything, TRIES)
        assert on.called == FUNCTIONS
        assert not slow, f"each of {TRIES} times, these took over {SLOW_US} µs: {slow}"
    finally:
        client.config_set("slowlog-log-slower-than", before["slowlog-log-slower-than"])
        keys = list(client.scan_iter(match=f"{queue.prefix}*", count=10_000))
        for begin in range(0, len(keys), 1000):
            client.unlink(*keys[begin : begin + 1000])
        client.close()
        await connection.close()
