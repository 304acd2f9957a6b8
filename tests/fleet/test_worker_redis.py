"""A worker's own client at the Redis that fleets have: behind a sentinel, through a failover, and in a cluster."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable

import redis
from redis.crc import key_slot

from broker.queue.queue import Queue
from comfyui_emq_node.queue import Claim, Claimed, QueueAway, Registration, Report, Unregistered
from comfyui_emq_node.redis_queue import RedisQueue
from tests.support.groups_of_servers import CLUSTER, joined, watching
from tests.support.jobs import new_job, profile
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

HELLO = Registration("m", json.loads(profile()), {})


def worker_at(url: str, pool: str = "default") -> RedisQueue:
    return RedisQueue(lambda: url, pool, "w1", secrets.token_hex(16))


async def claim(worker: RedisQueue) -> Claimed:
    job = await worker.claim(Claim(secrets.token_hex(16)))
    assert job is not None
    return job


async def finish(worker: RedisQueue, job: Claimed) -> None:
    await worker.report(Report(job, 1, {"progress": 50}, store=True))
    beat = await worker.heartbeat("busy", [job], [], [])
    assert beat.jobs[job.job_id][0] == "ok"
    await worker.finish(job, {"outputs": [], "timings": {"execution_ms": 5}}, False, (), None)


async def test_a_worker_in_a_cluster_serves_pools_on_different_primaries(
    serve: Callable[..., RedisServer], connect: Callable[..., object]
) -> None:
    nodes = [serve(*CLUSTER) for _ in range(3)]
    await joined(nodes)
    url = f"redis+cluster://127.0.0.1:1,127.0.0.1:{nodes[0].port}"
    connection = connect(url)
    owners = set()
    for pool in ("a", "b", "c"):
        queue, worker = Queue(connection, pool), worker_at(url, pool)  # type: ignore[arg-type]
        await queue.configure()
        await worker.register(HELLO)
        assert await worker.claim(Claim(secrets.token_hex(16))) is None
        await queue.submit("ann", [new_job("x")])
        assert await worker.hints() == ["work"]
        await finish(worker, await claim(worker))
        assert (await queue.job("x")).text("status") == "completed"
        await worker.bye()
        await worker.close()
        owners.add(key_slot(queue.prefix.encode()) // 5462)
    assert len(owners) > 1, "the pools lie on several primaries"


async def test_a_worker_follows_the_sentinel_to_the_new_primary(
    serve: Callable[..., RedisServer], connect: Callable[..., object]
) -> None:
    """The job that it held is finished there."""
    first, second = serve(), serve()
    with redis.Redis.from_url(second.url) as admin:
        admin.replicaof("127.0.0.1", first.port)
    sentinel = await watching(first)
    try:
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel.port}/main/0"
        queue, worker = Queue(connect(url)), worker_at(url)  # type: ignore[arg-type]
        await queue.configure()
        await wait_until(sentinel.knows_replica, 20, "the sentinel knows the replica")
        await queue.submit("ann", [new_job("x")])
        await worker.register(HELLO)
        job = await claim(worker)
        with redis.Redis.from_url(second.url) as admin:
            copied = lambda: admin.hget("emq:{default}:j:x", "status") == b"claimed"  # noqa: E731
            await wait_until(copied, 20, "the claim is on the replica")
        first.kill()

        async def done() -> bool:
            try:
                await finish(worker, job)
            except (QueueAway, Unregistered):
                return False
            return True

        await wait_until(done, 40, "the worker has found the new primary")
        assert (await queue.job("x")).text("status") == "completed"
        await worker.close()
    finally:
        sentinel.end()
