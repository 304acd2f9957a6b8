"""No function's work grows with the number of jobs: none takes 5 ms with 100,000 queued and 1,000 workers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import redis

from bench.every_call import FUNCTIONS, SLOW_US, costs
from bench.simulation import Pool, Worker
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker

JOBS, CLASSES, TENANTS, WORKERS, PROFILES = 100_000, 200, 100, 1000, 20
TRIES = 8
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


@pytest.mark.timeout(400)
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
        took = costs(full, MODELS, fleet, TRIES)
        assert took.keys() == FUNCTIONS
        long = {name: f"{us / 1000:.1f} ms" for name, us in took.items() if us > SLOW_US}
        assert not long, f"each of {TRIES} times, these took more of the server's CPU than {SLOW_US} µs: {long}"
    finally:
        keys = list(client.scan_iter(match=f"{queue.prefix}*", count=10_000))
        for begin in range(0, len(keys), 1000):
            client.unlink(*keys[begin : begin + 1000])
        client.close()
        await connection.close()
