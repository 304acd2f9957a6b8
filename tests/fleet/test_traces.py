"""Traces, received by a real OTLP/HTTP receiver: from the submit to the upload, over both of the workers' ways."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from broker.queue.queue import Queue
from comfyui_emq_node.gateway_queue import GatewayQueue
from comfyui_emq_node.queue import Claim, Failure, Registration, Report, Step, WorkQueue
from comfyui_emq_node.redis_queue import RedisQueue
from tests.api.conftest import NODES, Broker, Start, submit
from tests.support.collector import Collector, about, collecting
from tests.support.commands import emq
from tests.support.jobs import new_job
from tests.support.servers import free_port
from tests.support.waiting import wait_until

CLIENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CLIENT[:-2] + "00"
TRACE, PARENT = CLIENT.split("-")[1:3]
STEPS = (
    Step("inputs", 0, 5),
    Step("execution", 5, 30),
    Step("node", 5, 10, "1", "EmptyImage"),
    Step("node", 15, 20, "2", "SaveImage"),
    Step("upload", 35, 5),
)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as found:
        for name, value in found.settings.items():
            monkeypatch.setenv(name, value)
        yield found


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[redis.Redis]:
    """The server that the brokers use."""
    with redis.Redis.from_url(valkey_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def traced(start_broker: Start, collector: Collector) -> Broker:
    return await start_broker(traces=True)


@pytest.fixture(params=["redis", "gateway"])
async def worker(
    request: pytest.FixtureRequest, traced: Broker, valkey_url: str, pool: str
) -> AsyncIterator[WorkQueue]:
    """The worker's own client of the queue, over each way, registered."""
    queue: WorkQueue
    if request.param == "redis":
        queue = RedisQueue(lambda: valkey_url, pool, "w", "instance-of-w")
    else:
        queue = GatewayQueue(traced.url, None, "w")
    profile = {"job_types": ["comfyui"], "supported_job_types": ["comfyui"], "node_classes": [*NODES]}
    await queue.register(Registration("m", profile, {}))
    yield queue
    await queue.close()


async def test_one_trace_from_the_submit_to_the_upload(traced: Broker, worker: WorkQueue, collector: Collector) -> None:
    """It goes on from the client's own span; nothing lies outside of what it is part of."""
    status, accepted = await traced.json("POST", "/api/jobs", json=submit(), headers={"traceparent": CLIENT})
    assert status == 201
    job = await worker.claim(Claim("a" * 32))
    assert job is not None
    assert job.traced
    await worker.report(Report(job, 1, {"progress": 50}, True))
    await worker.finish(job, {"outputs": [], "timings": {}}, False, (), None, steps=STEPS)
    spans = await collector.named(
        TRACE, "submit", "wait", "attempt", "inputs", "execution", "node EmptyImage", "node SaveImage", "upload"
    )
    above = {
        "submit": PARENT,
        **dict.fromkeys(("wait", "attempt"), spans["submit"].span_id.hex()),
        **dict.fromkeys(("inputs", "execution", "upload"), spans["attempt"].span_id.hex()),
        **dict.fromkeys(("node EmptyImage", "node SaveImage"), spans["execution"].span_id.hex()),
    }
    assert {name: span.parent_span_id.hex() for name, span in spans.items()} == above
    assert len(collector.of(TRACE)) == len(spans)
    for span in spans.values():
        assert about(span)["emq.job_id"] == accepted["job_id"]
        assert span.start_time_unix_nano <= span.end_time_unix_nano <= time.time_ns()
    attempt = spans["attempt"]
    assert spans["wait"].end_time_unix_nano == attempt.start_time_unix_nano
    for name in ("inputs", "execution", "upload"):
        assert attempt.start_time_unix_nano <= spans[name].start_time_unix_nano
        assert spans[name].end_time_unix_nano <= attempt.end_time_unix_nano
    told = about(attempt)
    assert (told["emq.worker_id"], told["emq.attempt"], told["emq.status"]) == ("w", 1, "completed")
    assert about(spans["node SaveImage"])["emq.node_id"] == "2"
    assert collector.services == {"emq"}


async def test_attempts_that_fail_are_told_too(traced: Broker, worker: WorkQueue, collector: Collector) -> None:
    _, accepted = await traced.json("POST", "/api/jobs", json=submit(max_attempts=1, traceparent=CLIENT))
    job = await worker.claim(Claim("b" * 32))
    assert job is not None
    await worker.report(Report(job, 1, {"progress": 1}, True))
    await worker.release(job, "shutdown")
    job = await worker.claim(Claim("c" * 32))
    assert job is not None
    await worker.report(Report(job, 1, {"progress": 1}, True))
    failure = Failure("node_error", "on purpose", "1", "EmptyImage")
    await worker.fail(job, failure, None, steps=STEPS[:3])
    await wait_until(lambda: len([s for s in collector.of(TRACE) if s.name == "attempt"]) == 2, 20, "both attempts")
    first, second = sorted(
        (span for span in collector.of(TRACE) if span.name == "attempt"), key=lambda span: span.start_time_unix_nano
    )
    assert (about(first)["emq.status"], about(first)["emq.reason"]) == ("pending", "shutdown")
    assert (about(second)["emq.status"], about(second)["emq.reason"]) == ("failed", "node_error")
    assert (second.status.code, second.status.message) == (Status.STATUS_CODE_ERROR, "node_error")
    assert [span.name for span in collector.of(TRACE)].count("wait") == 1
    assert about(second)["emq.job_id"] == accepted["job_id"]


async def test_jobs_of_a_bulk_and_those_without_a_claim(traced: Broker, collector: Collector) -> None:
    """Each job of a bulk has its spans; one that is cancelled while it waits has no attempt."""
    async with traced.client() as client:
        told = await client.ask({"type": "submit_jobs", "jobs": [submit(traceparent=CLIENT), submit()]})
        jobs = [result["job_id"] for result in told["results"]]
        await client.ask({"type": "cancel_job", "job_id": jobs[0], "reason": "no more"})
    spans = await collector.named(TRACE, "submit", "wait")
    assert about(spans["wait"])["emq.status"] == "cancelled"
    assert about(spans["wait"])["emq.reason"] == "no more"
    await wait_until(lambda: len(collector.spans) == 3, 20, "the other's submit")
    (other,) = [span for span in collector.spans if about(span)["emq.job_id"] == jobs[1]]
    assert (other.name, other.parent_span_id, other.trace_id.hex() == TRACE) == ("submit", b"", False)


async def test_a_lost_worker_and_steps_without_sense(traced: Broker, collector: Collector, valkey: redis.Redis) -> None:
    """Whatever a worker says of its steps: there is an attempt, with what the queue itself saw."""
    worker = traced.worker()
    await worker.register()
    await traced.json("POST", "/api/jobs", json=submit(traceparent=CLIENT))
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 10)
    assert (await worker.call("gone")).outcome == "ok"
    spans = await collector.named(TRACE, "attempt", "execution")
    assert (about(spans["attempt"])["emq.status"], spans["attempt"].status.message) == ("lost", "worker_lost")
    for spans_text in ('{"steps":[{"kind":"node"}]}', "\x00{]", json.dumps({"steps": [{"kind": "x" * 9999}]})):
        worker = traced.worker(f"w{len(spans_text)}")
        await worker.register()
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 10)
        before = len(collector.of(TRACE))
        answer = await worker.call(
            "fail", job=held.job_id, token=held.token, code="node_error", spans=spans_text, hand_back=1
        )
        assert answer.outcome == "ok"
        await wait_until(lambda n=before: len(collector.of(TRACE)) == n + 2, 20, "attempt and execution")  # type: ignore[misc]
        assert valkey.llen(f"{traced.queue.prefix}traces") == 0


async def test_a_trace_that_is_not_sampled_costs_nothing(traced: Broker, valkey: redis.Redis) -> None:
    """And a repeated submit is the same job, whatever its trace."""
    sent = [submit(idempotency_key="k", traceparent=parent) for parent in (UNSAMPLED, CLIENT, "no context")]
    answers = [await traced.json("POST", "/api/jobs", json=body) for body in sent]
    assert [status for status, _ in answers] == [201, 200, 200]
    assert len({answer["job_id"] for _, answer in answers}) == 1
    assert valkey.hget(f"{traced.queue.prefix}j:{answers[0][1]['job_id']}", "trace") is None


async def test_without_the_setting_there_is_none(
    start_broker: Start, valkey: redis.Redis, collector: Collector
) -> None:
    broker = await start_broker()
    worker = broker.worker()
    await worker.register()
    await broker.json("POST", "/api/jobs", json=submit(), headers={"traceparent": CLIENT})
    held = await worker.work_one()
    assert held is not None
    assert held.answer.text("trace") == ""
    assert valkey.exists(f"{broker.queue.prefix}traces") == 0
    assert not collector.spans


async def test_what_nobody_takes_away_is_bounded(queue: Queue, redis_client: redis.Redis) -> None:
    """Brokers may all be gone, or without the setting: a short list with a life time is left."""
    key = f"{queue.prefix}traces"
    redis_client.rpush(key, *["{}"] * 2500)
    job = new_job()
    job.trace = CLIENT
    await queue.submit("default", [job])
    await queue.cancel(job.job_id, reason="x")
    assert redis_client.llen(key) == 2000
    assert 0 < redis_client.ttl(key) <= 3600
    entry = json.loads(redis_client.lrange(key, -1, -1)[0])
    assert (entry["job"], entry["status"], entry["why"]) == (job.job_id, "cancelled", "x")


async def test_a_receiver_that_is_away_holds_nobody_up(start_broker: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    broker = await start_broker(traces=True)
    status, _ = await broker.json("POST", "/api/jobs", json=submit())
    assert status == 201
    began = asyncio.get_running_loop().time()
    await broker.server.close()
    assert asyncio.get_running_loop().time() - began < 15


async def test_a_missing_package_is_named(valkey_url: str, pool: str, tmp_path: Path) -> None:
    """The dependency is optional, and who asks for traces without it is told what to install."""
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry/__init__.py").write_text("raise ImportError('opentelemetry is not here')\n")
    options = ("serve", "--port", "0", "--data", str(tmp_path / "data"), "--redis", valkey_url)
    path = f"{tmp_path}:{Path(sys.executable).parent}"
    code, _, said = await emq(*options, EMQ_POOL=pool, EMQ_TRACES="1", PYTHONPATH=path)
    assert code == 1
    assert "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http" in said
