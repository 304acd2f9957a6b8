"""Every message of a client gets the answer that the contract names."""

from __future__ import annotations

import time
from typing import Any

import pytest

from broker.jobs.payloads import decode_payload
from broker.protocol import messages as m
from broker.protocol import records as r
from tests.api.conftest import GRAPH, Broker, Client, submit
from tests.support.waiting import wait_until


async def submitted(client: Client, **fields: Any) -> str:
    """A new job's id."""
    accepted = await client.ask(submit(subscribe=False, **fields))
    assert accepted["type"] == "job_accepted", accepted
    job: str = accepted["job_id"]
    return job


async def test_job_accepted_has_every_field(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    assert await worker.claim() is None
    async with broker.client() as client:
        accepted = await client.ask(submit())
        m.JobAccepted.model_validate(accepted, strict=False)
        assert (accepted["position"], accepted["position_exact"]) == (1, True)
        assert accepted["notified_workers"] == 1
        assert accepted["waiting_for"] == []
        assert "dry_run" not in accepted
        for name in ("estimated_start", "duplicate", "status", "timestamp", "message_id"):
            assert name in accepted


@pytest.mark.parametrize(
    "payload",
    [{"workflow": GRAPH}, {"prompt": GRAPH}, GRAPH, {"prompt": GRAPH, "extra_data": {"a": 1}, "client_id": "x"}],
    ids=["workflow", "prompt", "bare", "comfyui-body"],
)
async def test_three_ways_to_name_a_graph(broker: Broker, payload: dict[str, Any]) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        accepted = await client.ask({"type": "submit_job", "payload": payload})
        assert accepted["type"] == "job_accepted"
        assert accepted["requirements"]["node_classes"] == ["EmptyImage", "SaveImage"]
        held = await worker.claim()
        assert held is not None
        assert decode_payload(held.payload)["workflow"] == GRAPH


async def test_unknown_fields_are_ignored_and_null_means_absent(broker: Broker) -> None:
    async with broker.client() as client:
        message = submit(
            idempotency_key=None, webhook_url=None, depends_on=None, priority=None, timestamp="lately", shoe_size=44,
            requirements=None, metadata=None, group=None, timeout_s=None,
        )  # fmt: skip
        assert (await client.ask(message))["type"] == "job_accepted"


async def test_the_same_idempotency_key_gives_the_same_job(broker: Broker) -> None:
    async with broker.client() as client:
        first = await client.ask(submit(idempotency_key="order-17"))
        again = await client.ask(submit(idempotency_key="order-17", subscribe=False, timestamp=5))
        assert (again["job_id"], again["duplicate"]) == (first["job_id"], True)
        other = await client.ask(submit(idempotency_key="order-17", priority=5))
        assert (other["type"], other["code"]) == ("error", "conflict")
        assert other["details"]["job_id"] == first["job_id"]


async def test_delay_start_time_and_dependencies(broker: Broker) -> None:
    async with broker.client() as client:
        delayed = await client.ask(submit(delay_s=60))
        assert delayed["status"] == "scheduled"
        timed = await client.ask(submit(start_at=int(time.time() * 1000) + 60_000))
        assert timed["status"] == "scheduled"
        child = await client.ask(submit(depends_on=[delayed["job_id"]]))
        assert child["status"] == "blocked"
        orphan = await client.ask(submit(depends_on=["no-such-job"]))
        assert orphan["code"] == "not_found"
        record = await client.ask({"type": "request_job_status", "job_id": child["job_id"]})
        assert record["depends_on"] == [delayed["job_id"]]


async def test_dry_run_answers_everything_and_submits_nothing(broker: Broker) -> None:
    async with broker.client() as client:
        answer = await client.ask(submit(dry_run=True, delay_s=5))
        assert answer["dry_run"] is True
        assert "job_id" not in answer
        assert answer["status"] == "scheduled"
        assert answer["waiting_for"][0]["code"] == "no_worker"
        assert (await client.ask({"type": "list_jobs"}))["jobs"] == []


async def test_strict_refuses_instead_of_waiting(broker: Broker) -> None:
    async with broker.client() as client:
        refused = await client.ask(submit(strict=True))
        assert refused["code"] == "invalid_workflow"
        assert refused["details"]["waiting_for"][0]["code"] == "no_worker"
        await broker.worker().register()

        async def accepted() -> bool:
            return bool((await client.ask(submit(strict=True)))["type"] == "job_accepted")

        await wait_until(accepted, what="a worker that could run it is seen")
        assert (await client.ask({"type": "list_jobs"}))["jobs"] != []


async def test_submit_jobs_answers_each_in_order(broker: Broker) -> None:
    async with broker.client() as client:
        jobs = [submit(message_id="a"), {"payload": {"workflow": {}}, "message_id": "b"}, submit(group="own")]
        answer = await client.ask({"type": "submit_jobs", "jobs": jobs, "group": "batch"})
        assert answer["type"] == "jobs_accepted"
        kinds = [(one["type"], one["message_id"]) for one in answer["results"]]
        assert kinds == [("job_accepted", "a"), ("error", "b"), ("job_accepted", None)]
        assert answer["results"][1]["code"] == "invalid_workflow"
        group = await client.ask({"type": "request_group", "group": "batch"})
        assert (group["type"], group["total"], group["jobs"]["pending"], group["done"]) == ("group_status", 1, 1, False)


async def test_a_thousand_jobs_in_one_message(broker: Broker) -> None:
    async with broker.client() as client:
        jobs = [submit(subscribe=False, metadata=i) for i in range(1000)]
        answer = await client.ask({"type": "submit_jobs", "jobs": jobs})
        ids = {one["job_id"] for one in answer["results"]}
        assert len(ids) == 1000
        too_many = await client.ask({"type": "submit_jobs", "jobs": [*jobs, submit()]})
        assert too_many["code"] == "bad_message"


async def test_status_list_and_paging(broker: Broker) -> None:
    async with broker.client() as client:
        jobs = [await submitted(client, metadata={"n": n}) for n in range(5)]
        status = await client.ask({"type": "request_job_status", "job_id": jobs[0]})
        r.Job.model_validate(status, strict=False)
        assert (status["type"], status["status"], status["position"]) == ("response_job_status", "pending", 1)
        for name in ("worker_id", "result", "error", "started_at", "finished_at", "progress"):
            assert status[name] is None
        seen: list[str] = []
        cursor = None
        while True:
            page = await client.ask({"type": "list_jobs", "limit": 2, "cursor": cursor, "status": "pending"})
            assert page["type"] == "job_list"
            assert all("result" not in job for job in page["jobs"])
            seen += [job["job_id"] for job in page["jobs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == jobs[::-1]
        assert (await client.ask({"type": "list_jobs", "status": ["failed"]}))["jobs"] == []


async def test_a_pending_job_goes_on_saying_why_it_waits(broker: Broker) -> None:
    async with broker.client() as client:
        job = await submitted(client, requirements={"tags": ["eu"], "min_vram_mb": 1})
        record = await client.ask({"type": "request_job_status", "job_id": job})
        assert [w["code"] for w in record["waiting_for"]] == ["no_worker"]
        assert record["requirements"]["tags"] == ["eu"]


async def test_cancel(broker: Broker) -> None:
    async with broker.client() as client:
        job = (await client.ask(submit()))["job_id"]
        ack = await client.ask({"type": "cancel_job", "job_id": job, "reason": "changed my mind"})
        assert (ack["type"], ack["job_id"], ack["status"]) == ("ack", job, "cancelled")
        if not any(e.get("status") == "cancelled" for e in client.of(job)):
            await client.until("job_update")
            while client.heard[-1]["status"] != "cancelled":
                await client.until("job_update")
        record = await client.ask({"type": "request_job_status", "job_id": job})
        assert record["status"] == "cancelled"
        missing = await client.ask({"type": "cancel_job", "job_id": "nope"})
        assert missing["code"] == "not_found"


async def test_a_running_job_stays_processing_until_its_worker_stops_it(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        job = await submitted(client)
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 5)
        ack = await client.ask({"type": "cancel_job", "job_id": job})
        assert ack["status"] == "processing"
        record = await client.ask({"type": "request_job_status", "job_id": job})
        assert (record["status"], record["cancel_requested"]) == ("processing", True)


async def test_force_retry_starts_a_new_round(broker: Broker) -> None:
    async with broker.client() as client:
        job = await submitted(client)
        early = await client.ask({"type": "force_retry_job", "job_id": job})
        assert early["code"] == "conflict"
        await client.ask({"type": "cancel_job", "job_id": job})
        ack = await client.ask({"type": "force_retry_job", "job_id": job})
        assert (ack["type"], ack["round"]) == ("ack", 2)
        record = await client.ask({"type": "request_job_status", "job_id": job})
        assert (record["status"], record["round"]) == ("pending", 2)


async def test_set_priority(broker: Broker) -> None:
    async with broker.client() as client:
        jobs = [await submitted(client) for _ in range(3)]
        assert (await client.ask({"type": "set_priority", "job_id": jobs[2], "front": True}))["type"] == "ack"
        assert (await client.ask({"type": "request_job_status", "job_id": jobs[2]}))["position"] == 1
        assert (await client.ask({"type": "set_priority", "job_id": jobs[1], "priority": 50}))["type"] == "ack"
        assert (await client.ask({"type": "request_job_status", "job_id": jobs[1]}))["priority"] == 50
        for wrong in ({}, {"priority": 1, "front": True}, {"priority": 101}):
            answer = await client.ask({"type": "set_priority", "job_id": jobs[0], **wrong})
            assert answer["code"] == "bad_message"


async def test_pause_and_resume(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        await submitted(client)
        for scope, name in (("pool", None), ("tenant", None), ("worker", "sim-1")):
            assert (await client.ask({"type": "pause", "scope": scope, "id": name}))["type"] == "ack"
            assert await worker.claim() is None
            assert (await client.ask({"type": "resume", "scope": scope, "id": name}))["type"] == "ack"
        assert (await client.ask({"type": "pause", "scope": "worker", "id": "nobody"}))["code"] == "not_found"
        assert (await client.ask({"type": "pause", "scope": "worker"}))["code"] == "bad_message"
        assert await worker.claim() is not None


async def test_drain_worker(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        await submitted(client)
        assert (await client.ask({"type": "drain_worker", "worker_id": "sim-1"}))["type"] == "ack"
        assert await worker.claim() is None
        assert (await client.ask({"type": "drain_worker", "worker_id": "nobody"}))["code"] == "not_found"


async def test_groups(broker: Broker) -> None:
    async with broker.client() as client:
        jobs = [await submitted(client, group="g1") for _ in range(3)]
        await client.ask({"type": "cancel_job", "job_id": jobs[0]})
        ack = await client.ask({"type": "cancel_group", "group": "g1"})
        assert (ack["type"], ack["cancelled"]) == ("ack", 2)
        status = await client.ask({"type": "request_group", "group": "g1"})
        assert (status["total"], status["jobs"]["cancelled"], status["done"]) == (3, 3, True)
        assert (await client.ask({"type": "request_group", "group": "none"}))["code"] == "not_found"


async def test_stats(broker: Broker) -> None:
    await broker.worker().register()
    async with broker.client() as client:
        await submitted(client, priority=7)
        answer = await client.ask({"type": "request_stats"})
        assert answer["type"] == "response_stats"
        stats = answer["stats"]
        r.Stats.model_validate(stats)
        assert (stats["queued"], stats["jobs"]["pending"], stats["depth_by_priority"]) == (1, 1, {"7": 1})
        assert stats["workers"]["total"] == 1
        assert (await broker.json("GET", "/stats"))[1]["queued"] == 1


async def test_stats_are_broadcast_on_change_only(broker: Broker) -> None:
    async with broker.client() as client:
        confirmed = await client.ask({"type": "subscribe_stats", "enabled": True})
        assert confirmed["type"] == "subscription_confirmed"
        first = await client.until("stats_broadcast")
        assert first["stats"]["queued"] == 0
        await submitted(client)
        second = await client.until("stats_broadcast")
        assert second["stats"]["queued"] == 1
        off = await client.ask({"type": "subscribe_stats", "enabled": False})
        assert off["type"] == "subscription_confirmed"
        assert sum(message["type"] == "stats_broadcast" for message in client.heard) == 2


async def test_a_monitor_has_the_stats_subscribed(broker: Broker) -> None:
    async with broker.client("/ws/monitor/m1") as client:
        assert (await client.next())["type"] == "stats_broadcast"
        assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"


async def test_a_named_client(broker: Broker) -> None:
    async with broker.client("/ws/client/api-server-1") as client:
        assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"
