"""Whatever is wrong with a message: a clear error with its code, the connection stays, nothing changes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.api.commands import MODELS
from tests.api.conftest import GRAPH, Broker, submit
from tests.support.depth import bounded
from tests.support.malformed import BAD_TEXTS, MESSAGE_KEYS, any_json


def node(**fields: Any) -> dict[str, Any]:
    return {"1": {"class_type": "A", "inputs": {}, **fields}}


SUBMITS: dict[str, tuple[Any, str]] = {
    # payload
    "no payload": ({"type": "submit_job"}, "bad_message"),
    "payload null": ({"type": "submit_job", "payload": None}, "bad_message"),
    "payload text": ({"type": "submit_job", "payload": "x"}, "bad_message"),
    "payload list": ({"type": "submit_job", "payload": [GRAPH]}, "bad_message"),
    "payload empty": ({"type": "submit_job", "payload": {}}, "invalid_workflow"),
    "no graph": ({"type": "submit_job", "payload": {"foo": 1}}, "invalid_workflow"),
    "workflow empty": (submit({}), "invalid_workflow"),
    "workflow list": ({"type": "submit_job", "payload": {"workflow": [1]}}, "invalid_workflow"),
    "workflow text": ({"type": "submit_job", "payload": {"workflow": "x"}}, "invalid_workflow"),
    "workflow null": ({"type": "submit_job", "payload": {"workflow": None}}, "invalid_workflow"),
    "ui workflow": (
        {"type": "submit_job", "payload": {"nodes": [], "links": [], "version": 0.4}}, "invalid_workflow"),
    "ui in workflow": (submit({"nodes": [], "links": [], "version": 0.4}), "invalid_workflow"),
    "node is text": (submit({"1": "x"}), "invalid_workflow"),
    "node is null": (submit({"1": None}), "invalid_workflow"),
    "node is list": (submit({"1": []}), "invalid_workflow"),
    "no class": (submit({"1": {"inputs": {}}}), "invalid_workflow"),
    "class empty": (submit(node(class_type="")), "invalid_workflow"),
    "class number": (submit(node(class_type=5)), "invalid_workflow"),
    "class line break": (submit(node(class_type="A\nn:B")), "invalid_workflow"),
    "class long": (submit(node(class_type="A" * 600)), "invalid_workflow"),
    "no inputs": (submit({"1": {"class_type": "A"}}), "invalid_workflow"),
    "inputs list": (submit(node(inputs=[])), "invalid_workflow"),
    "inputs text": (submit(node(inputs="x")), "invalid_workflow"),
    "too many inputs": (submit(node(inputs={f"i{n}": n for n in range(65)})), "invalid_workflow"),
    "too many nodes": (submit({str(n): {"class_type": "A", "inputs": {}} for n in range(5001)}), "invalid_workflow"),
    "absent node": (submit(node(inputs={"a": ["9", 0]})), "invalid_workflow"),
    "own output": (submit(node(inputs={"a": ["1", 0]})), "invalid_workflow"),
    "cycle": (
        submit({a: {"class_type": "A", "inputs": {"a": [b, 0]}} for a, b in ("12", "21")}),
        "invalid_workflow",
    ),
    "node id empty": (submit({"": {"class_type": "A", "inputs": {}}}), "invalid_workflow"),
    "node id control": (submit({"a\x1b": {"class_type": "A", "inputs": {}}}), "invalid_workflow"),
    "template absent": ({"type": "submit_job", "payload": {"template": "nope"}}, "not_found"),
    # inputs
    "inputs no object": ({"type": "submit_job", "payload": {"workflow": GRAPH, "inputs": []}}, "bad_message"),
    "input no source": (
        {"type": "submit_job", "payload": {"workflow": GRAPH, "inputs": {"1.image": {}}}}, "bad_message"),
    "input two sources": (
        {"type": "submit_job",
         "payload": {"workflow": GRAPH, "inputs": {"1.image": {"url": "http://a/b", "base64": ""}}}}, "bad_message"),
    "input file url": (
        {"type": "submit_job", "payload": {"workflow": GRAPH, "inputs": {"1.image": {"url": "file:///etc/passwd"}}}},
        "bad_message"),
    "input bad asset": (
        {"type": "submit_job", "payload": {"workflow": GRAPH, "inputs": {"1.image": {"asset": "blake3:zz"}}}},
        "bad_message"),
    "input bad base64": (
        {"type": "submit_job", "payload": {"workflow": GRAPH, "inputs": {"1.image": {"base64": "§§"}}}},
        "invalid_workflow"),
    "input of no node": (
        {"type": "submit_job", "payload": {"workflow": GRAPH, "inputs": {"77.image": {"url": "http://a/b"}}}},
        "invalid_workflow"),
    "input key": (
        {"type": "submit_job", "payload": {"workflow": GRAPH, "inputs": {"1": {"url": "http://a/b"}}}},
        "invalid_workflow"),
    # fields
    "priority text": (submit(priority="5"), "bad_message"),
    "priority bool": (submit(priority=True), "bad_message"),
    "priority float": (submit(priority=1.5), "bad_message"),
    "priority high": (submit(priority=101), "bad_message"),
    "priority low": (submit(priority=-101), "bad_message"),
    "attempts zero": (submit(max_attempts=0), "bad_message"),
    "attempts negative": (submit(max_attempts=-1), "bad_message"),
    "attempts huge": (submit(max_attempts=10**9), "bad_message"),
    "attempts text": (submit(max_attempts="3"), "bad_message"),
    "timeout zero": (submit(timeout_s=0), "bad_message"),
    "timeout negative": (submit(timeout_s=-1), "bad_message"),
    "timeout huge": (submit(timeout_s=1e308), "bad_message"),
    "timeout text": (submit(timeout_s="5"), "bad_message"),
    "timeout bool": (submit(timeout_s=True), "bad_message"),
    "delay negative": (submit(delay_s=-1), "bad_message"),
    "delay huge": (submit(delay_s=1e308), "bad_message"),
    "expires zero": (submit(expires_s=0), "bad_message"),
    "start text": (submit(start_at="tomorrow"), "bad_message"),
    "start negative": (submit(start_at=-1), "bad_message"),
    "job type object": (submit(job_type={}), "bad_message"),
    "job type spaces": (submit(job_type="a b"), "bad_message"),
    "job type empty": (submit(job_type=""), "bad_message"),
    "key empty": (submit(idempotency_key=""), "bad_message"),
    "key number": (submit(idempotency_key=17), "bad_message"),
    "key long": (submit(idempotency_key="k" * 300), "bad_message"),
    "parents text": (submit(depends_on="abc"), "bad_message"),
    "parent number": (submit(depends_on=[1]), "bad_message"),
    "parent line break": (submit(depends_on=["a\nb"]), "bad_message"),
    "parent policy": (submit(on_parent_failure="explode"), "bad_message"),
    "requirements list": (submit(requirements=[]), "bad_message"),
    "models text": (submit(requirements={"models": "a"}), "bad_message"),
    "model empty": (submit(requirements={"models": [""]}), "bad_message"),
    "tag line break": (submit(requirements={"tags": ["a\nm:b"]}), "bad_message"),
    "vram negative": (submit(requirements={"min_vram_mb": -1}), "bad_message"),
    "vram text": (submit(requirements={"min_vram_mb": "8000"}), "bad_message"),
    "group empty": (submit(group=""), "bad_message"),
    "group long": (submit(group="g" * 129), "bad_message"),
    "subscribe text": (submit(subscribe="yes"), "bad_message"),
    "strict number": (submit(strict=1), "bad_message"),
    "webhook scheme": (submit(webhook_url="gopher://x"), "bad_message"),
    "metadata large": (submit(metadata="x" * 17_000), "payload_too_large"),
    "message id number": (submit(message_id=5), "bad_message"),
    "message id long": (submit(message_id="m" * 129), "bad_message"),
}  # fmt: skip

MESSAGES: dict[str, tuple[Any, str]] = {
    "no type": ({}, "bad_message"),
    "type null": ({"type": None}, "bad_message"),
    "type number": ({"type": 5}, "bad_message"),
    "type unknown": ({"type": "make_coffee"}, "unknown_type"),
    "type of a worker": ({"type": "claim_job", "worker_id": "w"}, "unknown_type"),
    "type of the server": ({"type": "job_accepted"}, "unknown_type"),
    "status no job": ({"type": "request_job_status"}, "bad_message"),
    "status job number": ({"type": "request_job_status", "job_id": 5}, "bad_message"),
    "status job empty": ({"type": "request_job_status", "job_id": ""}, "bad_message"),
    "status job long": ({"type": "request_job_status", "job_id": "j" * 200}, "bad_message"),
    "status unknown": ({"type": "request_job_status", "job_id": "nope"}, "not_found"),
    "subscribe unknown": ({"type": "subscribe_job", "job_id": "nope"}, "not_found"),
    "subscribe previews": ({"type": "subscribe_job", "job_id": "nope", "previews": "yes"}, "bad_message"),
    "subscribe after": ({"type": "subscribe_job", "job_id": "nope", "after": 5}, "bad_message"),
    "cancel unknown": ({"type": "cancel_job", "job_id": "nope"}, "not_found"),
    "cancel reason": ({"type": "cancel_job", "job_id": "nope", "reason": []}, "bad_message"),
    "retry unknown": ({"type": "force_retry_job", "job_id": "nope"}, "not_found"),
    "list status": ({"type": "list_jobs", "status": "sleeping"}, "bad_message"),
    "list limit": ({"type": "list_jobs", "limit": 0}, "bad_message"),
    "list limit text": ({"type": "list_jobs", "limit": "5"}, "bad_message"),
    "list cursor": ({"type": "list_jobs", "cursor": "../../etc"}, "bad_message"),
    "priority unknown": ({"type": "set_priority", "job_id": "nope", "priority": 1}, "not_found"),
    "pause scope": ({"type": "pause", "scope": "world"}, "bad_message"),
    "bulk empty": ({"type": "submit_jobs", "jobs": []}, "bad_message"),
    "bulk text": ({"type": "submit_jobs", "jobs": ["x"]}, "bad_message"),
    "bulk none": ({"type": "submit_jobs"}, "bad_message"),
    "stats enabled": ({"type": "subscribe_stats", "enabled": "on"}, "bad_message"),
}


async def state(broker: Broker) -> Any:
    """What the queue has; the malformed must not change it."""
    return (await broker.json("GET", "/stats"))[1]["jobs"], (await broker.json("GET", "/api/jobs"))[1]["jobs"]


async def test_over_the_socket(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    before = await state(broker)
    async with broker.client() as client:
        for name, (message, code) in {**SUBMITS, **MESSAGES}.items():
            answer = await client.ask(message) if "message id" not in name else None
            if answer is None:
                await client.send(message)
                answer = await client.next()
            assert (answer["type"], answer.get("code")) == ("error", code), f"{name}: {answer}"
            assert answer["error"], name
        writer = client.ws._writer
        for name, (raw, code) in BAD_TEXTS.items():
            await writer.send_frame(raw, 1)
            answer = await client.next()
            assert (answer["type"], answer.get("code")) == ("error", code), f"{name}: {answer}"
        await client.ws.send_bytes(b"\x00\x01")
        assert (await client.next())["code"] == "bad_message"
        assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"
    assert await state(broker) == before
    assert not [record for record in caplog.records if record.exc_info]


async def test_over_http(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    before = await state(broker)
    statuses = {"payload_too_large": 413, "not_found": 404}
    for name, (message, code) in SUBMITS.items():
        status, answer = await broker.json("POST", "/api/jobs", json=message)
        assert (status, answer.get("code")) == (statuses.get(code, 400), code), f"{name}: {answer}"
        assert answer["type"] == "error"
    for name, (raw, code) in BAD_TEXTS.items():
        status, answer = await broker.json("POST", "/api/jobs", data=raw)
        assert (status, answer.get("code")) == (400, code), f"{name}: {answer}"
    assert await state(broker) == before
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_error_names_the_message_that_it_answers(broker: Broker) -> None:
    async with broker.client() as client:
        await client.send('{"type":"request_stats","message_id":"m7","x":NaN}')
        assert (await client.next())["message_id"] == "m7"
        await client.send({"type": "make_coffee", "message_id": "m8"})
        assert (await client.next())["message_id"] == "m8"
        await client.send({"type": "submit_job", "message_id": "m9", "payload": {"workflow": {"1": {}}}})
        refused = await client.next()
        assert refused["message_id"] == "m9"
        [error] = refused["details"]["node_errors"]["1"]["errors"][:1]
        assert set(error) == {"type", "message", "details", "extra_info"}


messages = st.builds(
    lambda kind, fields: {**fields, "type": kind},
    st.sampled_from(sorted(MODELS)),
    st.dictionaries(st.sampled_from(MESSAGE_KEYS), any_json, max_size=5),
)


async def test_no_message_at_all_is_the_broker_s_fault(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever comes, the answer is a good one or a refusal, never ``internal``, and nothing is raised."""
    found: list[Any] = []

    @bounded(300)
    @given(messages | any_json)
    def collect(message: Any) -> None:
        found.append(message)

    collect()
    async with broker.client() as client:
        for message in found:
            await client.send(json.dumps(message))
        await client.send({"type": "request_stats", "message_id": "the end"})
        while (heard := await client.next(30)).get("message_id") != "the end":
            assert heard.get("code") != "internal", heard
    for message in found[:100]:
        status, body = await broker.json("POST", "/api/jobs", data=json.dumps(message))
        assert status < 500, (message, body)
    assert not [record for record in caplog.records if record.exc_info]
