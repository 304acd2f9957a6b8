"""Limits by tenant and key, the same whichever replica is asked."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3

from broker.access.limits import Bucket, KeyLimits
from broker.access.store import AccessStore
from broker.queue.connection import Connection
from tests.access.conftest import Guarded, bearer, handshake
from tests.api.conftest import submit
from tests.support.access import submit_with, with_limits
from tests.support.commands import emq_says
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until


async def test_submits_a_second_of_a_tenant_over_two_replicas(guarded: Guarded) -> None:
    key = await guarded.key("submit")
    other = await guarded.key("submit", tenant="foreign")
    brokers = await with_limits(guarded, submits_per_s=0.01)
    first = await submit_with(brokers[0], key, idempotency_key="k")
    status, body = await submit_with(brokers[1], key)
    assert (first[0], status, body["code"]) == (201, 429, "rate_limited")
    assert 0 < body["retry_after_s"] <= 100
    assert body["details"]["scope"] == "tenant"
    assert (await submit_with(brokers[1], key, idempotency_key="k"))[0] == 200, "a repeated submit costs nothing"
    assert (await submit_with(brokers[1], other))[0] == 201, "another tenant has its own"
    async with guarded.client(key, brokers[1]) as client:
        reply = await client.ask({"type": "submit_jobs", "jobs": [submit(), submit()]})
        assert [result["code"] for result in reply["results"]] == ["rate_limited"] * 2

    await with_limits(guarded, submits_per_s=1)

    async def again() -> bool:
        return (await submit_with(brokers[1], key))[0] == 201

    await wait_until(again, 10, "the bucket fills again, faster by now")


async def test_submits_a_second_of_a_key(guarded: Guarded) -> None:
    slow, fast = await guarded.key("submit", limits=KeyLimits(submits_per_s=0.01)), await guarded.key("submit")
    assert [(await submit_with(guarded.broker, slow))[0] for _ in range(2)] == [201, 429]
    assert [(await submit_with(guarded.broker, fast))[0] for _ in range(2)] == [201, 201]
    assert (await submit_with(guarded.broker, slow))[1]["details"]["scope"] == "key"


async def test_waiting_jobs_and_their_bytes(guarded: Guarded) -> None:
    key = await guarded.key("submit", "read")
    brokers = await with_limits(guarded, max_queued=2)
    made = [await submit_with(brokers[n % 2], key) for n in range(3)]
    assert [status for status, _ in made] == [201, 201, 429]
    assert (made[2][1]["code"], made[2][1]["details"]["scope"]) == ("queue_full", "tenant")
    async with brokers[0].http.post(brokers[0].url + "/api/jobs", json=submit(), headers=bearer(key)) as response:
        assert int(response.headers["Retry-After"]) > 0
    job = made[0][1]["job_id"]
    assert (await brokers[1].json("POST", f"/api/jobs/{job}/cancel", headers=bearer(key)))[0] == 200
    assert (await submit_with(brokers[1], key))[0] == 201, "one that has ended makes room"
    shown = (await brokers[0].json("GET", "/api/tenants/own", headers=bearer(key)))[1]
    assert shown["use"]["queued"] == 2
    assert shown["limits"]["max_queued"] == 2
    mb = (shown["use"]["queued_bytes"] + 10) / 1e6
    await with_limits(guarded, max_queued_mb=mb)
    status, body = await submit_with(brokers[1], key)
    assert (status, body["code"], body["details"]["scope"]) == (429, "queue_full", "bytes")


async def test_running_jobs_by_default_and_by_tenant(guarded: Guarded) -> None:
    broker, _ = await guarded.instead(tenant_max_running=1), await guarded.another(tenant_max_running=1)
    key = await guarded.key("submit", "read")
    for _ in range(3):
        await submit_with(broker, key)
    workers = [broker.worker(f"sim-{n}") for n in range(3)]
    for worker in workers:
        await worker.register()
    assert await workers[0].claim() is not None
    assert await workers[1].claim() is None, "the setting's default"
    await with_limits(guarded, max_running=2)
    assert await workers[1].claim() is not None
    assert await workers[2].claim() is None
    await with_limits(guarded)
    assert await workers[2].claim() is None, "back to the default"
    assert (await broker.json("GET", "/api/tenants/own", headers=bearer(key)))[1]["use"]["running"] == 2


async def test_sockets_of_a_tenant_and_of_a_key_over_two_replicas(guarded: Guarded) -> None:
    key, small = await guarded.key("read"), await guarded.key("read", limits=KeyLimits(max_sockets=1))
    brokers = await with_limits(guarded, max_sockets=2)
    async with guarded.client(small, brokers[0]):
        assert await handshake(brokers[1], headers=bearer(small)) == 429, "the key's"
        async with guarded.client(key, brokers[1]):
            assert [await handshake(broker, headers=bearer(key)) for broker in brokers] == [429, 429]
            status, body = await brokers[0].json("GET", "/ws", headers=bearer(key))
            assert (status, body["code"], body["details"]["limit"]) == (429, "rate_limited", 2)

    async def free() -> bool:
        return await handshake(brokers[0], headers=bearer(small)) == 101

    await wait_until(free, 5, "a closed socket makes room")


async def test_what_a_dead_broker_had_open_is_free_again(guarded: Guarded, own_valkey: RedisServer) -> None:
    await guarded.store.use("dead", changes=[("sockets:tenant:t", 1, 1)])
    assert await guarded.store.use("alive", changes=[("sockets:tenant:t", 1, 1)]) == "sockets:tenant:t"
    import redis

    with redis.Redis.from_url(own_valkey.url) as client:
        assert client.zrem("emq:access:{keys}:replicas", "dead") == 1
    assert await guarded.store.use("alive", changes=[("sockets:tenant:t", 1, 1)]) is None


async def test_subscriptions_of_a_tenant_over_two_replicas(guarded: Guarded) -> None:
    key = await guarded.key("submit", "read")
    brokers = await with_limits(guarded, max_subscriptions=2)
    async with guarded.client(key, brokers[0]) as here, guarded.client(key, brokers[1]) as there:
        jobs = [(await here.ask(submit()))["job_id"] for _ in range(2)]
        assert (await there.ask(submit()))["code"] == "rate_limited"
        assert (await there.ask(submit(subscribe=False)))["type"] == "job_accepted"
        assert (await there.ask({"type": "subscribe_job", "job_id": jobs[0]}))["code"] == "rate_limited"
        again = await here.ask({"type": "subscribe_job", "job_id": jobs[0]})
        assert again["type"] == "subscription_confirmed", "subscribed anew, not once more"
        await here.ask({"type": "unsubscribe_job", "job_id": jobs[0]})

        async def free() -> bool:
            reply = await there.ask({"type": "subscribe_job", "job_id": jobs[1]})
            return bool(reply["type"] == "subscription_confirmed")

        await wait_until(free, 5, "what was unsubscribed makes room")
        assert (await here.ask(submit()))["code"] == "rate_limited"


@pytest.mark.parametrize("announced", [True, False])
async def test_bytes_uploaded_an_hour(guarded: Guarded, announced: bool) -> None:
    key = await guarded.key("submit")
    brokers = await with_limits(guarded, upload_mb_per_h=0.1)
    statuses = []
    for n in range(3):
        data = bytes([n]) * 60_000
        body = data if announced else pieces(data)
        path = f"/api/assets/{blake3(data).hexdigest()}"
        statuses.append((await brokers[n % 2].json("PUT", path, data=body, headers=bearer(key)))[0])
    assert statuses == [201, 429, 429]


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def test_a_bucket_is_one_for_all_and_locks_out_longer_each_time(redis_url: str, pool: str) -> None:
    connection = Connection(redis_url)
    store, name = AccessStore(connection), f"test-{pool}"
    bucket = Bucket(0.001, 3)
    waits = await asyncio.gather(*(store.throttle(name, bucket) for _ in range(10)))
    assert sorted(bool(wait) for wait in waits) == [False] * 3 + [True] * 7
    assert 900 < max(waits) <= 1000
    await store.forgive(name)
    assert await store.throttle(name, bucket, 100) == 0, "what is above the burst goes, and leaves a debt"
    assert await store.throttle(name, bucket) > 90_000
    await store.forgive(name)
    locking = Bucket(1000, 1, lock_s=0.2, max_lock_s=100)
    found = []
    for _ in range(3):
        while not (wait := await store.throttle(name, locking, 1000)):
            pass
        found.append(wait)
        await asyncio.sleep(wait + 0.01)
    assert found == sorted(found)
    assert found[2] > 0.6
    await store.forgive(name)
    await connection.close()


async def test_tenants_over_http(guarded: Guarded) -> None:
    admin, own = await guarded.key("admin", tenant="ops"), await guarded.key("read")
    status, made = await guarded.ask(admin, "PUT", "/api/tenants/own", json={"max_queued": 5, "weight": 2.5})
    assert (status, made["set"], made["limits"]["weight"]) == (200, {"max_queued": 5, "weight": 2.5}, 2.5)
    assert (await guarded.ask(own, "GET", "/api/tenants/own"))[1] == made
    assert (await guarded.ask(own, "GET", "/api/tenants/ops"))[0] == 404
    _, listed = await guarded.ask(admin, "GET", "/api/tenants")
    assert [row["tenant"] for row in listed["tenants"]] == ["ops", "own"]
    for bad in ({"max_queued": -1}, {"max_queued": 1.5}, {"weight": 0}, {"submits_per_s": "5"}, {"max_running": True}):
        assert (await guarded.ask(admin, "PUT", "/api/tenants/own", json=bad))[0] == 400
    assert (await guarded.ask(admin, "PUT", "/api/tenants/a%20b", json={}))[0] == 400
    assert (await guarded.ask(admin, "PUT", "/api/tenants/own", json={}))[1]["set"] == {}


async def test_tenants_on_the_command_line(guarded: Guarded, own_valkey: RedisServer, tmp_path: Path) -> None:
    where = ("--redis", own_valkey.url)
    assert "max_queued 7" in await emq_says("tenants", "set", "own", "--max-queued", "7", "--weight", "2", *where)
    out = await emq_says("tenants", "set", "own", "--weight", "default", "--max-running", "3", *where)
    assert {"max_queued 7", "max_running 3", "weight 1"} <= set(out.splitlines())
    assert "max_queued=7 max_running=3" in await emq_says("tenants", "list", *where)
    assert await emq_says("tenants", "show", "own", *where) == out
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker", "tenants", "set", "own", "--max-queued", "many", *where,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await process.communicate()
    assert process.returncode == 1
    assert b"max_queued" in err


async def test_a_tenant_that_never_submitted_can_be_paused(guarded: Guarded) -> None:
    admin, key = await guarded.key("admin", tenant="ops"), await guarded.key("submit")
    assert (await guarded.ask(admin, "POST", "/api/pause", json={"scope": "tenant", "id": "own"}))[0] == 200
    await submit_with(guarded.broker, key)
    worker = guarded.broker.worker("sim-1")
    await worker.register()
    assert await worker.claim() is None
    assert (await guarded.ask(admin, "POST", "/api/resume", json={"scope": "tenant", "id": "own"}))[0] == 200
    assert await worker.claim() is not None
