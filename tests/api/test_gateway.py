"""The worker gateway, by a simulated worker over a real socket."""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import aiohttp
import pytest

from tests.api.conftest import Broker, Start, submit
from tests.support.gateway import becomes, capabilities, fleet_state, job_of, status_of, worker_of
from tests.support.waiting import PATIENCE_S, wait_until


async def test_a_job_s_whole_way_through_the_gateway(broker: Broker) -> None:
    async with broker.client() as client, worker_of(broker) as worker:
        registered = await worker.register()
        assert registered["worker_id"] == "gw-1"
        assert registered["instance"]
        assert registered["lease_s"] == 30
        accepted = await client.ask(submit(priority=7, timeout_s=60))
        hint = await worker.until(type="job_available")
        assert (hint["job_id"], hint["job_type"], hint["priority"]) == (accepted["job_id"], "comfyui", 7)
        job = await worker.claim()
        assert job["job_id"] == accepted["job_id"]
        assert (job["attempt"], job["lease_s"], job["job_type"], job["priority"], job["timeout_s"]) == (
            1, 30, "comfyui", 7, 60,
        )  # fmt: skip
        assert job["payload"]["workflow"] == submit()["payload"]["workflow"]
        assert job["uploads"] == {
            "url_prefix": f"{broker.url}/api/jobs/{job['job_id']}/outputs/1/",
            "authorization": f"Lease {job['job_id']}.1.{job['lease']}",
            "max_bytes": 4096 << 20,
        }
        await worker.progress(job, 0, node={"id": "1", "class_type": "EmptyImage"}, nodes_done=0, nodes_total=2)
        await client.until("update_job_progress")  # else the next may come in its place
        await worker.progress(job, 60, message="half")
        stale = await worker.about("update_job_progress", {**job, "lease": "another"}, progress=70)
        assert (stale["code"], stale["details"]["reason"]) == ("conflict", "stale_lease")
        url = job["uploads"]["url_prefix"] + "0/cat.png"
        headers = {"Authorization": job["uploads"]["authorization"]}
        picture = b"\x89PNG\r\n\x1a\n" + bytes(64)
        async with broker.http.put(url, data=picture, headers=headers) as response:
            assert response.status == 201
            stored = await response.json()
        assert stored["content_type"] == "image/png"
        output = {"node_id": "2", "kind": "image", "filename": "cat.png", "key": stored["key"], "url": "javascript:x"}
        result = {"outputs": [output], "timings": {"execution_ms": 12}, "extra": {"kept": True}}
        done = await worker.about("complete_job", job, result=result)
        assert (done["type"], done["job_id"], done["status"]) == ("complete_job_ack", job["job_id"], "completed")

        event = await client.until("complete_job")
        [given] = event["result"]["outputs"]
        assert (given["node_id"], given["kind"], given["filename"]) == ("2", "image", "cat.png")
        assert (given["content_type"], given["size"], given["hash"]) == ("image/png", len(picture), stored["hash"])
        assert "key" not in given
        assert event["result"]["extra"] == {"kept": True}
        assert event["result"]["timings"]["execution_ms"] == 12
        assert event["result"]["timings"]["queued_ms"] >= 0
        states = [e["status"] for e in client.of(job["job_id"]) if e["type"] == "job_update"]
        assert states == ["pending", "claimed", "processing", "completed"]
        progress = [e for e in client.of(job["job_id"]) if e["type"] == "update_job_progress"]
        assert (progress[0]["worker_id"], progress[0]["attempt"], progress[0]["nodes_total"]) == ("gw-1", 1, 2)
        async with broker.http.get(broker.url + given["url"]) as response:
            assert response.status == 200
            assert await response.read() == picture


async def test_the_same_claim_token_gives_the_same_job(broker: Broker) -> None:
    await job_of(broker)
    await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        first = await worker.claim(claim_token="a" * 32)
        again = await worker.claim(claim_token="a" * 32)
        assert (again["job_id"], again["lease"], again["attempt"]) == (first["job_id"], first["lease"], 1)
        refused = await worker.ask("claim_job", worker_id="gw-1")
        assert (refused["type"], refused["code"], refused["details"]["reason"]) == ("error", "conflict", "busy")


async def test_claiming_a_named_job(broker: Broker) -> None:
    await job_of(broker)
    wanted = await job_of(broker)
    async with worker_of(broker) as worker, worker_of(broker, "gw-2") as other:
        await worker.register()
        await other.register()
        assert (await worker.claim(job_id=wanted))["job_id"] == wanted
        taken = await other.ask("claim_job", worker_id="gw-2", job_id=wanted)
        assert (taken["code"], taken["type"]) == ("conflict", "error")
        missing = await other.ask("claim_job", worker_id="gw-2", job_id="nothing")
        assert missing["code"] == "not_found"


async def test_no_job_is_not_found(broker: Broker) -> None:
    async with worker_of(broker) as worker:
        await worker.register()
        reply = await worker.ask("claim_job", worker_id="gw-1")
        assert (reply["type"], reply["code"], reply["details"]["reason"]) == ("error", "not_found", "no_job")


async def test_a_job_that_waits_is_offered_to_who_registers_and_to_who_is_done(broker: Broker) -> None:
    first, second = await job_of(broker), await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        assert (await worker.until(type="job_available"))["job_id"] == first
        job = await worker.claim()
        await worker.about("complete_job", job, result={})
        assert (await worker.until(type="job_available"))["job_id"] == second
        job = await worker.claim()
        await worker.about("fail_job", job, error={"code": "interrupted", "message": "no"})
        third = await job_of(broker)
        assert (await worker.until(type="job_available"))["job_id"] == third


async def test_a_job_is_offered_only_to_who_can_run_it(broker: Broker) -> None:
    async with worker_of(broker, "small") as small, worker_of(broker, "big") as big:
        await small.register(capabilities=capabilities(nodes=("EmptyImage",)))
        await big.register()
        job = await job_of(broker)
        assert (await big.until(type="job_available"))["job_id"] == job
        ack = await small.heartbeat()
        assert ack["work"] is False
        assert not [m for m in small.heard if m["type"] == "job_available"]


async def test_the_next_job_comes_with_the_end_of_the_last(broker: Broker) -> None:
    ids = [await job_of(broker) for _ in range(3)]
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        ack = await worker.about("job_executed", job, timings={"execution_ms": 5}, claim=True, claim_token="b" * 32)
        assert ack["type"] == "job_executed_ack"
        following = await worker.until(type="job_assigned")
        assert following["job_id"] == ids[1]
        await worker.about("complete_job", job, result={})
        await worker.progress(following, 10)
        await worker.about("complete_job", following, result={}, claim=True)
        last = await worker.until(type="job_assigned")
        assert last["job_id"] == ids[2]
        await worker.about("fail_job", last, error={"code": "node_error", "message": "x"}, claim=True)
        assert [await status_of(broker, i) for i in ids[:2]] == ["completed", "completed"]


async def test_complete_job_again_is_answered_the_same(broker: Broker) -> None:
    job_id = await job_of(broker)
    async with broker.client() as client, worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        first = await worker.about("complete_job", job, result={"a": 1})
        second = await worker.about("complete_job", job, result={"a": 2})
        assert (
            (first["type"], first["status"]) == (second["type"], second["status"]) == ("complete_job_ack", "completed")
        )
        await client.ask({"type": "subscribe_job", "job_id": job_id})
        await client.until("complete_job")
        assert [e["result"]["a"] for e in client.of(job_id) if e["type"] == "complete_job"] == [1]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("update_job_progress", {"progress": 1}),
        ("job_executed", {}),
        ("complete_job", {"result": {}}),
        ("complete_job", {"result": {"outputs": [{"key": "default/x/1/0"}]}}),
        ("fail_job", {"error": {"code": "node_error", "message": "x"}}),
        ("release_job", {}),
    ],
)
async def test_a_lease_that_is_not_held_is_refused(broker: Broker, kind: str, more: dict[str, Any]) -> None:
    job_id = await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        for lease in ({**job, "lease": "f" * 32}, {"job_id": "no-such-job", "lease": "f" * 32}):
            reply = await worker.about(kind, lease, **more)
            assert (reply["type"], reply["code"]) == ("error", "conflict"), reply
            assert reply["details"]["reason"] == "stale_lease"
    assert await status_of(broker, job_id) == "claimed"


async def test_a_failed_attempt_is_retried_and_a_handed_back_one_is_not_counted(start_broker: Start) -> None:
    broker = await start_broker(backoff_s=0.05, reap_s=0.05)
    job_id = await job_of(broker)
    async with worker_of(broker) as worker, worker_of(broker, "gw-2") as other:
        await worker.register()
        await other.register()
        job = await worker.claim()
        error = {"code": "node_error", "message": "No such class.", "node_id": "1", "node_type": "EmptyImage"}
        ack = await worker.about("fail_job", job, error=error, hand_back=True, missing=["n:EmptyImage"])
        assert (ack["type"], ack["status"], ack["will_retry"]) == ("job_failed_ack", "pending", True)
        assert (await worker.ask("claim_job", worker_id="gw-1"))["code"] == "not_found"
        job = await other.claim()
        ack = await other.about("fail_job", job, error={"code": "node_error", "message": "It broke."})
        assert ack["will_retry"] is True

        async def retried() -> dict[str, Any] | None:
            reply = await other.ask("claim_job", worker_id="gw-2")
            return reply if reply["type"] == "job_assigned" else None

        job = await wait_until(retried, what="the job is tried again")
        assert job["attempt"] == 3
        ack = await other.about("fail_job", job, error={"code": "validation_failed", "message": "x" * 2_000_000})
        assert (ack["status"], ack["will_retry"]) == ("failed", False)
    _, record = await broker.json("GET", f"/api/jobs/{job_id}")
    assert (record["failures"], record["error"]["code"]) == (2, "validation_failed")


async def test_a_released_job_goes_back_uncounted(broker: Broker) -> None:
    job_id = await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        ack = await worker.about("release_job", job, reason="shutdown")
        assert (ack["type"], ack["job_id"]) == ("ack", job_id)
        assert (await worker.claim())["attempt"] == 2


async def test_a_cancel_reaches_the_worker_at_once_and_by_its_heartbeat(broker: Broker) -> None:
    job_id = await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        await worker.progress(job, 5)
        await becomes(broker, job_id, "processing")
        status, _ = await broker.json("POST", f"/api/jobs/{job_id}/cancel", json={"reason": "changed my mind"})
        assert status == 200
        order = await worker.until(type="cancel_job")
        assert (order["job_id"], order["lease"], order["reason"]) == (job_id, job["lease"], "changed my mind")
        [verdict] = (await worker.heartbeat(job))["jobs"]
        assert (verdict["job_id"], verdict["state"], verdict["reason"]) == (job_id, "cancel", "changed my mind")
        assert await status_of(broker, job_id) == "processing"
        await worker.about("fail_job", job, error={"code": "interrupted", "message": "cancelled"})
        assert await status_of(broker, job_id) == "cancelled"
        [verdict] = (await worker.heartbeat(job))["jobs"]
        assert verdict["state"] == "lost"


async def test_pause_and_drain_reach_the_worker(broker: Broker) -> None:
    await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        assert (await broker.json("POST", "/api/workers/gw-1/pause"))[0] == 200
        await worker.until(type="pause", worker_id="gw-1")
        assert (await worker.heartbeat())["pause"] is True
        refused = await worker.ask("claim_job", worker_id="gw-1")
        assert (refused["code"], refused["details"]["reason"]) == ("conflict", "paused")
        await broker.json("POST", "/api/workers/gw-1/resume")
        ack = await worker.heartbeat()
        assert (ack["pause"], ack["work"]) == (False, True)
        await broker.json("POST", "/api/workers/gw-1/drain")
        await worker.until(type="drain", worker_id="gw-1")
        assert (await worker.heartbeat())["drain"] is True


async def test_worker_status_changes_what_it_can_run(broker: Broker) -> None:
    job_id = await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register(capabilities=capabilities(nodes=("EmptyImage",)))
        assert (await worker.ask("claim_job", worker_id="gw-1"))["code"] == "not_found"
        reply = await worker.ask("worker_status", worker_id="gw-1", node_classes=["EmptyImage", "SaveImage"])
        assert reply["type"] == "ack"
        assert (await worker.claim())["job_id"] == job_id


async def test_what_a_worker_says_of_itself_is_shown(broker: Broker) -> None:
    """Its figures and labels have no effect; who looks at the fleet sees them, there and on its page."""
    told: dict[str, Any] = {
        "gpu_count": 4,
        "labels": {"comfyui_host": "gpu-box <7>"},
        "torch_version": "2.13.0",
        "tags": ["eu"],
    }
    async with worker_of(broker) as worker:
        await worker.register(capabilities=capabilities(**told))
        _, shown = await broker.json("GET", f"/api/workers/{worker.worker_id}")
        assert {name: shown[name] for name in told} == told
        assert shown["supported_job_types"] == ["comfyui"]
        async with broker.http.get(f"{broker.url}/workers/{worker.worker_id}") as page:
            text = await page.text()
        assert "gpu-box &lt;7&gt;" in text
        assert "torch 2.13.0" in text


async def test_the_url_may_name_the_worker(broker: Broker) -> None:
    async with worker_of(broker, "named", "/ws/worker/named") as worker:
        reply = await worker.ask("register_worker", capabilities=capabilities())
        assert reply["worker_id"] == "named"
        reply = await worker.ask("register_worker", worker_id="other", capabilities=capabilities())
        assert reply["code"] == "bad_message"
        reply = await worker.ask("claim_job", worker_id="other")
        assert reply["code"] == "bad_message"


BAD = [
    ("{", "bad_json"),
    ("[]", "bad_message"),
    ("{}", "bad_message"),
    ('{"type":1}', "bad_message"),
    ('{"type":"submit_job","message_id":"m"}', "unknown_type"),
    ('{"type":"claim_job","message_id":"m"}', "conflict"),
    ('{"type":"register_worker","message_id":"m"}', "bad_message"),
    ('{"type":"register_worker","message_id":"m","worker_id":""}', "bad_message"),
    ('{"type":"register_worker","message_id":"m","worker_id":"a\\nb"}', "bad_message"),
    ('{"type":"register_worker","message_id":"m","worker_id":"w","capabilities":[]}', "bad_message"),
    ('{"type":"register_worker","message_id":"m","worker_id":"w","capabilities":{"slots":0}}', "bad_message"),
    ('{"type":"register_worker","message_id":"m","worker_id":"w","capabilities":{"models":{"a":"b"}}}', "bad_message"),
    ('{"type":"update_job_progress","message_id":"m","job_id":"j","lease":"l","progress":101}', "bad_message"),
    ('{"type":"update_job_progress","message_id":"m","job_id":"j","lease":"l","progress":NaN}', "bad_json"),
    ('{"type":"update_job_progress","message_id":"m","job_id":"j","lease":"","progress":1}', "bad_message"),
    ('{"type":"complete_job","message_id":"m","job_id":"j","lease":"l","result":[]}', "bad_message"),
    ('{"type":"worker_heartbeat","message_id":"m","jobs":[{"job_id":"j"}]}', "bad_message"),
    ('{"type":"worker_heartbeat","message_id":"m","status":"asleep"}', "bad_message"),
    ('{"type":"worker_heartbeat","message_id":"m","a":1,"a":2}', "bad_json"),
]


async def test_bad_messages_are_answered_and_the_socket_stays_open(broker: Broker) -> None:
    async with worker_of(broker) as worker:
        for text, code in BAD:
            await worker.ws.send_str(text)
            reply = await worker.until(type="error")
            assert reply["code"] == code, (text, reply)
            assert reply["message_id"] == ("m" if '"message_id"' in text else None), text
        for frame in (b"", b"\0\0\0\4", struct.pack(">II", 4, 99) + b"{}", struct.pack(">II", 1, 2) + b"{}x"):
            await worker.ws.send_bytes(frame)
            assert (await worker.until(type="error"))["code"] == "bad_message"
        await worker.register()


async def test_a_result_must_name_what_was_uploaded_and_be_small(broker: Broker) -> None:
    await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        mine = f"default/{job['job_id']}"
        keys: list[Any] = [f"{mine}/1/0", f"{mine}/2/0", "default/other/1/0", f"{mine}/1/../1/0", "../../etc/passwd"]
        for key in [*keys, 7, {}]:
            reply = await worker.about("complete_job", job, result={"outputs": [{"key": key}]})
            assert reply["code"] == "bad_message", reply
        broken: list[Any] = ["x", [1], {}, [{}] * 10_001]
        for outputs in broken:
            reply = await worker.about("complete_job", job, result={"outputs": outputs})
            assert reply["code"] == "bad_message", reply
        reply = await worker.about("complete_job", job, result={"text": "x" * 300_000})
        assert reply["code"] == "payload_too_large"
        assert (await worker.about("complete_job", job, result={"outputs": []}))["status"] == "completed"


async def test_a_worker_whose_queue_was_emptied_is_registered_again(broker: Broker, valkey_url: str) -> None:
    async with worker_of(broker) as worker:
        await worker.register()
        await broker.queue.worker_call("gone", {"instance": worker.heard[0]["instance"]})
        job_id = await job_of(broker)
        assert (await worker.claim())["job_id"] == job_id
        assert await fleet_state(broker) != "offline"


async def test_a_stop_closes_the_sockets(start_broker: Start) -> None:
    broker = await start_broker()
    async with worker_of(broker) as worker:
        await worker.register()
        closing = asyncio.create_task(broker.server.close())
        frame = await asyncio.wait_for(worker.ws.receive(), PATIENCE_S)
        assert (frame.type, worker.ws.close_code) == (aiohttp.WSMsgType.CLOSE, 1001)
        await asyncio.wait_for(closing, PATIENCE_S)
