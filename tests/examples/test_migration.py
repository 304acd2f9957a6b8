"""A client of emp-redis, as its public source describes it, gets from EMQ what it reads."""

from __future__ import annotations

import time

import aiohttp
import pytest

from tests.api.conftest import GRAPH, Broker, Client

# What its client sends: the fields of core/message_models.py, times in seconds, priorities from 0 to 10.
SUBMIT = {"type": "submit_job", "job_type": "comfyui", "priority": 10, "payload": GRAPH}


def old(message: dict[str, object]) -> dict[str, object]:
    return {**message, "timestamp": time.time()}


async def test_recorded_session(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    assert await worker.claim() is None, "idle now: the next submit tells it"
    async with broker.client("/ws/client/k8-api-1") as client, broker.client("/ws/monitor/monitor-1") as monitor:
        assert (await monitor.until("stats_broadcast"))["stats"]["workers"]["total"] == 1
        await client.send(old(SUBMIT))
        accepted = await client.until("job_accepted")
        assert {"job_id", "status", "position", "estimated_start", "notified_workers", "timestamp"} <= set(accepted)
        assert (accepted["status"], accepted["notified_workers"]) == ("pending", 1)
        job = accepted["job_id"]
        await client.send(old({"type": "subscribe_job", "job_id": job}))
        assert (await client.until("subscription_confirmed"))["job_id"] == job

        held = await worker.claim()
        assert held is not None
        await worker.report(held, 50, message="half")
        progress = await client.until("update_job_progress")
        assert {"job_id", "worker_id", "progress", "timestamp"} <= set(progress)
        await client.send(old({"type": "request_job_status", "job_id": job}))
        status = await client.until("response_job_status")
        assert {"job_id", "status", "progress", "worker_id", "started_at", "result"} <= set(status)
        assert (status["status"], status["worker_id"]) == ("processing", "sim-1")
        await worker.finish(held)
        done = await client.until("complete_job")
        assert (done["job_id"], done["status"], done["result"]["outputs"]) == (job, "completed", [])
        await _changes(client, worker)
        await client.send(old({"type": "request_stats"}))
        assert (await client.until("response_stats"))["stats"]["jobs"]["cancelled"] == 1


async def _changes(client: Client, worker: object) -> None:
    await client.send(old(SUBMIT))
    job = (await client.until("job_accepted"))["job_id"]
    await client.send(old({"type": "cancel_job", "job_id": job, "reason": "Manually cancelled"}))
    update = await client.until("job_update")
    while update["status"] != "cancelled":
        update = await client.until("job_update")
    await client.send(old({"type": "request_job_status", "job_id": "no-such-job"}))
    error = await client.until("error")
    assert isinstance(error["error"], str)
    assert error["code"] == "not_found"


async def test_retry_of_a_failed_job(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client("/ws/client/k8-api-1") as client:
        await client.send(old({**SUBMIT, "max_attempts": 1}))
        job = (await client.until("job_accepted"))["job_id"]
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 1)
        await worker.fail(held)
        failed = await client.until("fail_job")
        assert (failed["job_id"], failed["will_retry"]) == (job, False)
        await client.send(old({"type": "force_retry_job", "job_id": job}))
        assert (await client.until("ack"))["job_id"] == job
        again = await worker.claim()
        assert again is not None
        assert again.job_id == job


async def test_its_token_in_the_query_is_refused_with_a_reason(broker: Broker) -> None:
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with broker.client("/ws/client/k8-api-1?token=emq_0123456789abcdef_" + "x" * 43):
            pass
    assert refused.value.status == 400
