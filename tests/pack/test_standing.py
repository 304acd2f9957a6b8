"""A worker's claim that stays: the job comes in a hint, once, however often it is told."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator

import pytest
import redis

from broker.queue.queue import Queue
from comfyui_emq_node import redis_queue
from comfyui_emq_node.queue import Claim, Claimed, Registration, Report
from comfyui_emq_node.redis_queue import RedisQueue
from tests.support.jobs import new_job, profile


def a_claim() -> Claim:
    return Claim(secrets.token_hex(16), standing=True)


@pytest.fixture
async def worker(queue: Queue, redis_url: str) -> AsyncIterator[RedisQueue]:
    """A worker that has heard hints already and waits for a job."""
    await queue.configure()
    worker = RedisQueue(lambda: redis_url, queue.pool, "w1", secrets.token_hex(16))
    await worker.register(Registration("m", json.loads(profile()), {}))
    await queue.drain("w1")
    await queue.drain("w1", False)
    assert await worker.hints()
    assert await worker.claim(a_claim()) is None
    yield worker
    await worker.bye()
    await worker.close()


async def take(worker: RedisQueue) -> Claimed:
    """The job that comes in a hint."""
    hints = await worker.hints()
    while hints and isinstance(hints[0], str):
        hints = await worker.hints()
    assert isinstance(hints[0], Claimed)
    return hints[0]


async def test_a_job_comes_in_a_hint(queue: Queue, worker: RedisQueue) -> None:
    await queue.submit("ann", [new_job("x")])
    job = await take(worker)
    assert (job.job_id, job.attempt, job.given) == ("x", 1, True)
    assert await worker.claim(a_claim()) is None, "it has its one job"
    await worker.report(Report(job, 1, {"progress": 5}, store=True))
    await worker.finish(job, {"outputs": [], "timings": {}}, False, (), a_claim())
    await queue.submit("ann", [new_job("y")])
    assert (await take(worker)).job_id == "y", "the claim that ended the first job stays, too"


async def test_a_hint_that_is_lost_is_made_good_by_the_next_claim(
    queue: Queue, worker: RedisQueue, redis_client: redis.Redis
) -> None:
    await queue.submit("ann", [new_job("x")])
    key = f"{queue.prefix}in:{worker._who['instance']}"
    lost = redis_client.lpop(key)
    assert isinstance(lost, bytes)
    assert (await worker.heartbeat("idle", [], [], [])).work
    job = await worker.claim(a_claim())
    assert job is not None
    assert job.job_id == "x"
    redis_client.rpush(key, lost)
    assert job not in await worker.hints(), "it comes once"


async def test_a_hint_that_was_read_late_is_claimed(
    queue: Queue, worker: RedisQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever stood still for seconds may find old news: the claim tells."""
    await queue.submit("ann", [new_job("x")])
    monkeypatch.setattr(redis_queue, "LATE_S", -1.0)
    hints = await worker.hints()
    while hints in (["resume"], ["drain"]):
        hints = await worker.hints()
    assert hints == ["work"]
    job = await worker.claim(a_claim())
    assert job is not None
    assert job.job_id == "x"
