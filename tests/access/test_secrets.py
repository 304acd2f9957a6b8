"""What must not rest in Redis: payloads and results when a key says so, partner keys always."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis import Redis

from broker.errors import ConfigurationError, Unavailable
from broker.queue.seal import Seal, payload_of
from tests.access.conftest import Guarded
from tests.api.conftest import Broker, submit
from tests.support.gateway import GatewayWorker
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

KEY = "a secret of the tests"
CANARY = "canary-7f3a91c2"
PARTNER = {"api_key_comfy_org": CANARY, "auth_token_comfy_org": f"{CANARY}-token"}


def drawing(text: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "text": text}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0]}},
    }


@contextlib.asynccontextmanager
async def behind_the_gateway(broker: Broker) -> AsyncIterator[GatewayWorker]:
    async with broker.http.ws_connect(broker.url + "/ws/worker", max_msg_size=0) as ws:
        worker = GatewayWorker(ws)
        await worker.register()
        yield worker


def at_rest(server: RedisServer) -> bytes:
    """All that Redis has, in memory and on the disk."""
    with Redis.from_url(server.url) as redis:
        dumped = b"".join(name + (redis.dump(name) or b"") for name in redis.scan_iter("*", count=1000))
        dumped += b"".join(str(redis.hgetall(name)).encode() for name in redis.scan_iter("*", _type="hash"))
        dumped += b"".join(redis.get(name) or b"" for name in redis.scan_iter("*", _type="string"))
        dumped += b"".join(b"".join(redis.lrange(name, 0, -1)) for name in redis.scan_iter("*", _type="list"))
    return dumped + b"".join(file.read_bytes() for file in server.folder.rglob("*") if file.is_file())


def test_a_seal_opens_by_its_key_alone_and_for_its_job_alone() -> None:
    seal, rotated = Seal.of(KEY), Seal.of(f"another secret of them, {KEY}")
    closed = seal.close(b"payload", payload_of("a"))
    assert b"payload" not in closed
    assert closed != seal.close(b"payload", payload_of("a")), "no two are alike"
    assert rotated.open(closed, payload_of("a")) == b"payload", "an old key still opens"
    assert not seal.active < rotated.active
    for other, about, data in (
        (Seal(), payload_of("a"), closed), (Seal.of("quite another one"), payload_of("a"), closed),
        (seal, payload_of("b"), closed), (seal, "result:a", closed), (seal, payload_of("a"), closed[:-1] + b"x"),
        (seal, payload_of("a"), closed[:10]), (seal, payload_of("a"), rotated.close(b"payload", payload_of("a"))),
    ):  # fmt: skip
        with pytest.raises(Unavailable):
            other.open(data, about)
    assert seal.open(b'{"plain":1}', "x") == b'{"plain":1}', "what was there before stays readable"
    assert seal.open_json(b'{"sealed":"x"}', "x") == b'{"sealed":"x"}', "somebody's own result"
    assert json.loads(rotated.open_json(seal.close_json(b'{"a":1}', "x"), "x")) == {"a": 1}
    with pytest.raises(ConfigurationError):
        Seal.of("short")


@pytest.mark.parametrize("key", [KEY, None])
async def test_payloads_and_results_are_encrypted_where_a_key_is_set(
    guarded: Guarded, own_valkey: RedisServer, key: str | None
) -> None:
    broker = await guarded.another(payload_key=key)
    text = CANARY * 3  # also where a short text would be compressed away
    async with broker.client() as client, behind_the_gateway(broker) as worker:
        direct = broker.worker("sim-1")
        await direct.register()
        accepted = await client.ask(submit(drawing(text), idempotency_key="k"))
        if key:
            assert "via:gateway" in accepted["requirements"]["tags"]
            assert await direct.claim() is None, "a worker in Redis gets nothing that it could not read"
        job = await worker.claim()
        assert job["payload"]["workflow"] == drawing(text)
        await worker.progress(job, 50)
        result = {"outputs": [{"node_id": "2", "kind": "text", "text": text}], "timings": {}}
        assert (await worker.about("complete_job", job, result=result))["type"] == "complete_job_ack"
        done = await client.until("complete_job")
        assert done["result"]["outputs"][0]["text"] == text
        record = await client.ask({"type": "request_job_status", "job_id": job["job_id"]})
        assert record["result"]["outputs"][0]["text"] == text
        again = await client.ask(submit(drawing(text), idempotency_key="k"))
        assert again["duplicate"]
        await client.ask({"type": "force_retry_job", "job_id": job["job_id"]})
        assert (await worker.claim())["payload"]["workflow"] == drawing(text)
    assert (CANARY.encode() in at_rest(own_valkey)) == (key is None), "the test sees what is not encrypted"


async def test_templates_are_encrypted_and_records_keep_seeds_alone(guarded: Guarded, own_valkey: RedisServer) -> None:
    old = await guarded.another(payload_key=KEY)
    params = {"text": {"bind": ["1.text"]}, "seed": {"bind": ["1.width"], "type": "seed", "default": -1}}
    body = {"workflow": drawing(CANARY * 3), "params": params}
    assert (await old.json("PUT", "/api/templates/x", json=body))[0] == 201
    job = {"payload": {"template": "x", "params": {"text": CANARY * 3}}}
    status, accepted = await old.json("POST", "/api/jobs", json=job)
    assert (status, list(accepted["params"])) == (201, ["text", "seed"])
    _, record = await old.json("GET", f"/api/jobs/{accepted['job_id']}")
    assert record["params"] == {"seed": accepted["params"]["seed"]}
    rotated = await guarded.another(payload_key=f"another secret of them, {KEY}")
    assert (await rotated.json("GET", "/api/templates/x"))[1]["workflow"] == body["workflow"]
    only_new = await guarded.another(payload_key="another secret of them")
    assert (await only_new.json("GET", "/api/templates/x"))[1]["workflow"] == body["workflow"], "encrypted anew"
    assert CANARY.encode() not in at_rest(own_valkey)
    assert (await guarded.broker.json("GET", "/api/templates/x"))[1]["code"] == "unavailable"


async def test_a_broker_without_the_key_says_so(guarded: Guarded) -> None:
    sealing = await guarded.another(payload_key=KEY)
    _, accepted = await sealing.json("POST", "/api/jobs", json=submit())
    async with behind_the_gateway(guarded.broker) as worker:
        reply = await worker.ask("claim_job", worker_id="gw-1")
        assert reply["code"] == "unavailable"
        assert "EMQ_PAYLOAD_KEY" in reply["error"]
    assert (await guarded.broker.json("GET", f"/api/jobs/{accepted['job_id']}"))[0] == 200


async def test_partner_keys_are_refused_unless_they_are_wanted(guarded: Guarded, own_valkey: RedisServer) -> None:
    for name in PARTNER:
        for payload in ({"extra_data": {name: CANARY}}, {name: CANARY}):
            message = submit()
            message["payload"].update(payload)
            status, body = await guarded.broker.json("POST", "/api/jobs", json=message)
            assert (status, body["code"]) == (400, "bad_message")
            assert CANARY not in str(body)
    assert CANARY.encode() not in at_rest(own_valkey)


def with_partner_keys(**fields: Any) -> dict[str, Any]:
    message = submit(**fields)
    message["payload"]["extra_data"] = {**PARTNER, "client": "kept"}
    return message


async def test_partner_keys_reach_the_worker_and_rest_nowhere(
    guarded: Guarded, own_valkey: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    broker = await guarded.another(partner_keys_s=600.0)
    async with broker.client() as client, behind_the_gateway(broker) as worker:
        direct = broker.worker("sim-1")
        await direct.register()
        accepted = await client.ask(with_partner_keys(metadata={"order": 1}))
        assert await direct.claim() is None
        assert CANARY.encode() not in at_rest(own_valkey), "while it waits"
        with Redis.from_url(own_valkey.url) as redis:
            (side,) = redis.scan_iter("emq:access:*side:*")
            assert 0 < redis.ttl(side) <= 600
        token = "t" * 32
        job = await worker.claim(claim_token=token)
        assert job["payload"]["extra_data"] == {**PARTNER, "client": "kept"}
        again = await worker.claim(claim_token=token)
        assert again["payload"] == job["payload"], "a repeated claim of the same worker"
        with Redis.from_url(own_valkey.url) as redis:
            assert list(redis.scan_iter("emq:access:*side:*")) == [], "gone at the claim"
        error = {"code": "node_error", "message": "no"}
        await worker.about("fail_job", job, error=error, retry="no")
        await client.until("fail_job")
        seen = json.dumps(client.heard) + json.dumps(await client.ask({"type": "list_jobs"}))
        seen += json.dumps(await client.ask({"type": "request_job_status", "job_id": accepted["job_id"]}))
    assert CANARY not in seen + caplog.text
    assert CANARY.encode() not in at_rest(own_valkey)


async def test_a_job_whose_partner_keys_are_gone_fails_and_says_so(guarded: Guarded, own_valkey: RedisServer) -> None:
    broker = await guarded.another(partner_keys_s=600.0)
    async with broker.client() as client:
        await client.ask(with_partner_keys())
        async with behind_the_gateway(broker) as worker:
            job = await worker.claim()
            await worker.about("release_job", job, reason="test")
        async with behind_the_gateway(broker) as worker:
            assert (await worker.ask("claim_job", worker_id="gw-1"))["code"] == "not_found"
        failed = await client.until("fail_job")
        assert (failed["error"]["code"], failed["will_retry"]) == ("input_unavailable", False)
        first = await client.ask(with_partner_keys(idempotency_key="k"))
        again = await client.ask(with_partner_keys(idempotency_key="k"))
        assert again["job_id"] == first["job_id"]

        async def one_left() -> bool:
            with Redis.from_url(own_valkey.url) as redis:
                return len(list(redis.scan_iter("emq:access:*side:*"))) == 1

        await wait_until(one_left, 5, "a duplicate leaves no keys behind")
