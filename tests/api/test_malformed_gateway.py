"""Whatever is wrong with a worker's message: a clear error, the socket and its jobs stay as they were."""

from __future__ import annotations

import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.api.gateway_session import MODELS
from tests.api.conftest import Broker
from tests.support.depth import bounded
from tests.support.gateway import GatewayWorker, capabilities, job_of, worker_of
from tests.support.malformed import BAD_TEXTS, any_json

LONG = "x" * 600
HELD: dict[str, Any] = {"job_id": "J", "lease": "L"}
"""Stand for the job that the worker holds."""


def registering(**caps: Any) -> dict[str, Any]:
    return {"type": "register_worker", "worker_id": "gw-1", "capabilities": {**capabilities(), **caps}}


def about(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **HELD, **fields}


ABOUT: dict[str, dict[str, Any]] = {
    "update_job_progress": {"progress": 1},
    "job_executed": {},
    "complete_job": {},
    "fail_job": {"error": {"message": "x"}},
    "release_job": {},
}
"""What a worker says of a job."""
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "without job": ({"lease": "L"}, "bad_message"),
    "job number": ({**HELD, "job_id": 5}, "bad_message"),
    "job line break": ({**HELD, "job_id": "a\nb"}, "bad_message"),
    "without lease": ({"job_id": "J"}, "bad_message"),
    "lease empty": ({**HELD, "lease": ""}, "bad_message"),
    "lease wrong": ({**HELD, "lease": "wrong"}, "conflict"),
    "job unknown": ({**HELD, "job_id": "nothing"}, "conflict"),
    "of another": ({**HELD, "worker_id": "gw-2"}, "bad_message"),
}
"""How it can name the job wrongly."""
MESSAGES: dict[str, tuple[Any, str]] = {
    "no type": ({}, "bad_message"),
    "type null": ({"type": None}, "bad_message"),
    "type list": ({"type": ["claim_job"]}, "bad_message"),
    "type unknown": ({"type": "make_coffee"}, "unknown_type"),
    "type of a client": ({"type": "submit_job", "payload": {}}, "unknown_type"),
    "type of the broker": ({"type": "job_assigned"}, "unknown_type"),
    # register_worker
    "another worker": ({"type": "register_worker", "worker_id": "gw-2"}, "bad_message"),
    "worker number": ({"type": "register_worker", "worker_id": 5}, "bad_message"),
    "worker empty": ({"type": "register_worker", "worker_id": ""}, "bad_message"),
    "worker long": ({"type": "register_worker", "worker_id": LONG}, "bad_message"),
    "worker line break": ({"type": "register_worker", "worker_id": "a\nb"}, "bad_message"),
    "machine list": ({**registering(), "machine_id": []}, "bad_message"),
    "status unknown": ({**registering(), "status": "asleep"}, "bad_message"),
    "jobs text": ({**registering(), "jobs": "x"}, "bad_message"),
    "jobs without lease": ({**registering(), "jobs": [{"job_id": "j"}]}, "bad_message"),
    "jobs many": ({**registering(), "jobs": [HELD] * 257}, "bad_message"),
    "capabilities list": ({"type": "register_worker", "worker_id": "gw-1", "capabilities": []}, "bad_message"),
    "classes text": (registering(node_classes="A"), "bad_message"),
    "class empty": (registering(node_classes=[""]), "bad_message"),
    "class line break": (registering(node_classes=["A\nm:b"]), "bad_message"),
    "class number": (registering(node_classes=[1]), "bad_message"),
    "classes many": (registering(node_classes=["A"] * 50_001), "bad_message"),
    "models list": (registering(models=[]), "bad_message"),
    "models text": (registering(models={"loras": "a"}), "bad_message"),
    "model long": (registering(models={"loras": [LONG]}), "bad_message"),
    "model inputs": (registering(model_inputs={"A": "b"}), "bad_message"),
    "ranges list": (registering(ranges=[1]), "bad_message"),
    "gpus object": (registering(gpus={}), "bad_message"),
    "vram text": (registering(gpus=[{"name": "g", "vram_mb": "8"}]), "bad_message"),
    "vram negative": (registering(gpus=[{"name": "g", "vram_mb": -1}]), "bad_message"),
    "tags number": (registering(tags=[1]), "bad_message"),
    "tags many": (registering(tags=["t"] * 65), "bad_message"),
    "slots none": (registering(slots=0), "bad_message"),
    "slots many": (registering(slots=65), "bad_message"),
    "slots true": (registering(slots=True), "bad_message"),
    "simulated text": (registering(simulated="yes"), "bad_message"),
    # worker_status, steer_worker, worker_heartbeat
    "changed slots": ({"type": "worker_status", "slots": 0}, "bad_message"),
    "changed caps": ({"type": "worker_status", "capabilities": "x"}, "bad_message"),
    "changed classes": ({"type": "worker_status", "capabilities": {"node_classes": [None, 1]}}, "bad_message"),
    "status of another": ({"type": "worker_status", "worker_id": "gw-2"}, "bad_message"),
    "changed status": ({"type": "worker_status", "status": 1}, "bad_message"),
    "steer nothing": ({"type": "steer_worker"}, "bad_message"),
    "steer word": ({"type": "steer_worker", "word": "explode"}, "bad_message"),
    "steer another": ({"type": "steer_worker", "word": "pause", "worker_id": "gw-2"}, "bad_message"),
    "beat status": ({"type": "worker_heartbeat", "status": "asleep"}, "bad_message"),
    "beat jobs": ({"type": "worker_heartbeat", "jobs": {}}, "bad_message"),
    "beat lease": ({"type": "worker_heartbeat", "jobs": [{"job_id": "j"}]}, "bad_message"),
    "beat many": ({"type": "worker_heartbeat", "jobs": [HELD] * 257}, "bad_message"),
    "beat loaded": ({"type": "worker_heartbeat", "loaded_models": [5]}, "bad_message"),
    "beat gpus": ({"type": "worker_heartbeat", "gpus": [5]}, "bad_message"),
    "beat load": ({"type": "worker_heartbeat", "gpus": [{"utilisation": "all"}]}, "bad_message"),
    "beat of another": ({"type": "worker_heartbeat", "worker_id": "gw-2"}, "bad_message"),
    # claim_job
    "claim of another": ({"type": "claim_job", "worker_id": "gw-2"}, "bad_message"),
    "claim token": ({"type": "claim_job", "claim_token": 5}, "bad_message"),
    "claim token empty": ({"type": "claim_job", "claim_token": ""}, "bad_message"),
    "claim job": ({"type": "claim_job", "job_id": ""}, "bad_message"),
    "claim absent": ({"type": "claim_job", "job_id": "nothing"}, "conflict"),
    "claim loaded": ({"type": "claim_job", "loaded_models": "x"}, "bad_message"),
    "claim ahead": ({"type": "claim_job", "ahead": "yes"}, "bad_message"),
    "claim too much": ({"type": "claim_job"}, "conflict"),
    # about jobs
    **{
        f"{kind} {name}": ({"type": kind, **fields, **more}, code)
        for kind, more in ABOUT.items()
        for name, (fields, code) in WRONG.items()
    },
    "no progress": (about("update_job_progress"), "bad_message"),
    "progress over": (about("update_job_progress", progress=101), "bad_message"),
    "progress under": (about("update_job_progress", progress=-1), "bad_message"),
    "progress text": (about("update_job_progress", progress="5"), "bad_message"),
    "progress true": (about("update_job_progress", progress=True), "bad_message"),
    "progress node": (about("update_job_progress", progress=1, node="1"), "bad_message"),
    "progress node id": (about("update_job_progress", progress=1, node={"id": 1}), "bad_message"),
    "progress nodes": (about("update_job_progress", progress=1, nodes_done=-1), "bad_message"),
    "progress eta": (about("update_job_progress", progress=1, eta_s=-1), "bad_message"),
    "progress message": (about("update_job_progress", progress=1, message=LONG), "bad_message"),
    "executed timings": (about("job_executed", timings=[]), "bad_message"),
    "executed cold": (about("job_executed", cold=1), "bad_message"),
    "executed claim": (about("job_executed", claim="yes"), "bad_message"),
    "result list": (about("complete_job", result=[]), "bad_message"),
    "outputs text": (about("complete_job", result={"outputs": "x"}), "bad_message"),
    "output number": (about("complete_job", result={"outputs": [1]}), "bad_message"),
    "output of others": (about("complete_job", result={"outputs": [{"key": "default/other/1/0"}]}), "bad_message"),
    "output outside": (about("complete_job", result={"outputs": [{"key": "../../etc/passwd"}]}), "bad_message"),
    "result large": (about("complete_job", result={"text": "x" * 300_000}), "payload_too_large"),
    "no error": (about("fail_job"), "bad_message"),
    "error text": (about("fail_job", error="x"), "bad_message"),
    "error code": (about("fail_job", error={"code": "", "message": "x"}), "bad_message"),
    "error message": (about("fail_job", error={"message": 5}), "bad_message"),
    "error node": (about("fail_job", error={"node_id": []}), "bad_message"),
    "missing text": (about("fail_job", error={}, missing="n:A"), "bad_message"),
    "missing break": (about("fail_job", error={}, missing=["n:A\nn:B"]), "bad_message"),
    "retry unknown": (about("fail_job", error={}, retry="never"), "bad_message"),
    "hand back": (about("fail_job", error={}, hand_back="yes"), "bad_message"),
    "release reason": (about("release_job", reason=LONG), "bad_message"),
    "message id": ({"type": "worker_heartbeat", "message_id": 5}, "bad_message"),
}  # fmt: skip
FRAMES = (
    b"", b"\0", b"\0\0\0\4", struct.pack(">II", 4, 99) + b"{}", struct.pack(">II", 1, 2) + b"{}x",
    struct.pack(">II", 4, 2**32 - 1), struct.pack(">II", 4, 2) + b"[]x", struct.pack(">II", 4, 3) + b"\xff\xfe{",
    struct.pack(">II", 9, 2) + b"{}x",
)  # fmt: skip


async def state(broker: Broker) -> Any:
    """What the queue has and the worker holds; what its fleet record has of times and health aside."""
    _, workers = await broker.json("GET", "/api/workers")
    known = [(w["worker_id"], w["status"], w["paused"], w["draining"], w["jobs"]) for w in workers["workers"]]
    _, listed = await broker.json("GET", "/api/jobs")
    jobs = [(job["job_id"], job["status"], job["attempt"], job["failures"]) for job in listed["jobs"]]
    return (await broker.json("GET", "/stats"))[1]["jobs"], jobs, known


def real(message: Any, job: dict[str, Any]) -> Any:
    """``message`` about the job that is held, where it names one."""
    text = json.dumps(message)
    return json.loads(text.replace('"job_id": "J"', json.dumps({"job_id": job["job_id"]})[1:-1]).replace(
        '"lease": "L"', json.dumps({"lease": job["lease"]})[1:-1]
    ))  # fmt: skip


async def refused(worker: GatewayWorker) -> dict[str, Any]:
    return await worker.until(type="error", within=30)


async def test_over_the_gateway(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        await worker.progress(job, 5)
        await worker.heartbeat(job)
        before = await state(broker)
        for name, (message, code) in MESSAGES.items():
            await worker.ws.send_str(json.dumps(real(message, job)))
            reply = await refused(worker)
            assert (reply["code"], bool(reply["error"])) == (code, True), f"{name}: {reply}"
        for name, (raw, code) in BAD_TEXTS.items():
            await worker.ws._writer.send_frame(raw.replace(b"request_stats", b"worker_heartbeat"), 1)
            assert (await refused(worker))["code"] == code, name
        for frame in FRAMES:
            await worker.ws.send_bytes(frame)
            assert (await refused(worker))["code"] == "bad_message", frame
        await worker.heartbeat(job)
        assert await state(broker) == before
        assert len(MESSAGES) + len(BAD_TEXTS) + len(FRAMES) >= 120
        assert (await worker.about("complete_job", job, result={"outputs": []}))["status"] == "completed"
    assert not [record for record in caplog.records if record.exc_info]


NAMES = sorted({name for model in MODELS.values() for name in model.model_fields} - {"type", "message_id"})
messages = st.builds(
    lambda kind, fields: {**fields, "type": kind},
    st.sampled_from(sorted(MODELS)),
    st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), any_json, max_size=6),
)


async def test_no_message_of_a_worker_is_the_broker_s_fault(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a worker says, also about the job that it holds: never ``internal``, and it is heard on."""
    found: list[Any] = []

    @bounded(200)
    @given(messages | any_json)
    def collect(message: Any) -> None:
        found.append(message)

    collect()
    await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        for message in found:
            if isinstance(message, dict) and "job_id" in message:
                message.update(job_id=job["job_id"], lease=job["lease"])
            await worker.ws.send_str(json.dumps(message))
        await worker.send("make_coffee", message_id="the end")
        with contextlib.suppress(KeyError):
            await worker.until(message_id="the end", within=60)
        assert [heard for heard in worker.heard if heard.get("code") == "internal"] == []
    assert not [record for record in caplog.records if record.exc_info]
