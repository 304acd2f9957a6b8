"""A job's way from a client's socket to its result."""

from __future__ import annotations

from tests.api.conftest import Broker, submit
from tests.support.simulated import SimulatedWorker


async def test_a_submitted_job_is_followed_to_its_result(broker: Broker, valkey_url: str) -> None:
    """``processing``, progress to 100 and ``completed`` come before ``complete_job``, which is the last event."""
    async with broker.client() as client, broker.worker().running(valkey_url):
        await client.send(submit(message_id="m1", metadata={"order": 17}))
        accepted = await client.next()
        assert (accepted["type"], accepted["message_id"]) == ("job_accepted", "m1")
        assert accepted["duplicate"] is False
        job = accepted["job_id"]
        done = await client.until("complete_job")
        events = client.of(job)
        assert [e["status"] for e in events if e["type"] == "job_update"] == [
            "pending", "claimed", "processing", "completed",
        ]  # fmt: skip
        progress = [e["progress"] for e in events if e["type"] == "update_job_progress"]
        assert progress == sorted(progress)
        assert progress[-1] == 100
        assert [e["type"] for e in events[-2:]] == ["job_update", "complete_job"]
        assert done["status"] == "completed"
        assert done["result"]["outputs"] == []
        assert len({e["event_id"] for e in events}) == len(events)
        assert all(isinstance(m["timestamp"], int) for m in client.heard)

        record = await client.ask({"type": "request_job_status", "job_id": job})
        assert record["type"] == "response_job_status"
        assert (record["status"], record["progress"], record["metadata"]) == ("completed", 100, {"order": 17})
        assert record["result"]["outputs"] == []
        status, same = await broker.json("GET", f"/api/jobs/{job}")
        assert status == 200
        assert same["job_id"] == job
        assert "type" not in same


async def test_a_job_that_nobody_can_run_says_why(broker: Broker) -> None:
    async with broker.client() as client:
        accepted = await client.ask(submit())
        assert accepted["status"] == "pending"
        assert [w["code"] for w in accepted["waiting_for"]] == ["no_worker"]
        await broker.worker(nodes=("EmptyImage",)).register()
        accepted = await client.ask(submit(requirements={"models": ["sd15.safetensors"]}))
        assert {(w["code"], w["detail"]) for w in accepted["waiting_for"]} == {
            ("no_worker_has_model", "sd15.safetensors"),
            ("no_worker_has_node_class", "SaveImage"),
        }


async def test_a_failed_job_says_so(broker: Broker) -> None:
    worker: SimulatedWorker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        job = (await client.ask(submit(max_attempts=1)))["job_id"]
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 10)
        await worker.fail(held, "node_error", "It broke.")
        failed = await client.until("fail_job")
        assert failed["error"]["code"] == "node_error"
        assert failed["will_retry"] is False
        record = await client.ask({"type": "request_job_status", "job_id": job})
        assert record["error"]["message"] == "It broke."
