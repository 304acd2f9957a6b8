"""Whose a job is that a worker holds through the gateway: sockets that close, workers that are silent or come back."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.api.conftest import Broker, Start, submit
from tests.support.gateway import becomes, capabilities, fleet_state, hears, job_of, status_of, worker_of
from tests.support.waiting import wait_until


async def test_a_second_process_with_the_name_supersedes_the_first(start_broker: Start) -> None:
    here, there = await start_broker(), await start_broker()
    job_id = await job_of(here)
    async with worker_of(here) as first, worker_of(there) as second:
        one = await first.register()
        job = await first.claim()
        two = await second.register()
        assert one["instance"] != two["instance"]
        await first.until(type="superseded", worker_id="gw-1")
        refused = await first.ask("claim_job", worker_id="gw-1")
        assert (refused["code"], refused["details"]["reason"]) == ("conflict", "superseded")
        refused = await first.about("complete_job", job, result={})
        assert refused["details"]["reason"] == "stale_lease"
        assert (await second.claim())["job_id"] == job_id
    assert [m["type"] for m in first.heard].count("superseded") == 1


async def test_a_closed_socket_makes_the_worker_offline_and_it_can_come_back(broker: Broker) -> None:
    job_id = await job_of(broker)
    async with worker_of(broker) as worker:
        instance = (await worker.register())["instance"]
        job = await worker.claim()
        await worker.progress(job, 10)
        await becomes(broker, job_id, "processing")
    await wait_until(lambda: fleet_state_is(broker, "offline"), what="the worker is offline")
    assert await status_of(broker, job_id) == "processing"
    async with worker_of(broker) as worker:
        back = await worker.register(instance=instance, jobs=[{"job_id": job_id, "lease": job["lease"]}], status="busy")
        assert back["instance"] != instance
        assert (await worker.heartbeat(job))["jobs"][0]["state"] == "ok"
        assert (await worker.about("complete_job", job, result={}))["status"] == "completed"


async def test_a_worker_that_comes_back_without_saying_more_keeps_its_jobs(broker: Broker) -> None:
    job_id = await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
    await wait_until(lambda: fleet_state_is(broker, "offline"), what="the worker is offline")
    async with worker_of(broker) as worker:
        await worker.register()
        assert (await worker.heartbeat(job))["jobs"][0]["state"] == "ok"
        await worker.about("complete_job", job, result={})
    assert await status_of(broker, job_id) == "completed"


async def fleet_state_is(broker: Broker, state: str) -> bool:
    return await fleet_state(broker) == state


async def test_jobs_that_it_comes_back_without_go_back_at_once(broker: Broker) -> None:
    kept, lost = await job_of(broker), await job_of(broker)
    async with worker_of(broker) as worker:
        instance = (await worker.register(capabilities=capabilities(slots=2)))["instance"]
        jobs = {job["job_id"]: job for job in (await worker.claim(), await worker.claim())}
        for job in jobs.values():
            await worker.progress(job, 1)
        await becomes(broker, lost, "processing")
    async with worker_of(broker) as worker:
        named = [{"job_id": kept, "lease": jobs[kept]["lease"]}]
        await worker.register(instance=instance, jobs=named, capabilities=capabilities(slots=2), status="busy")
        assert await status_of(broker, kept) == "processing"
        assert await status_of(broker, lost) == "pending"
        again = await worker.claim()
        assert (again["job_id"], again["attempt"]) == (lost, 2)


async def test_a_lost_worker_s_jobs_go_back_after_one_lease(start_broker: Start) -> None:
    broker = await start_broker(lease_s=2.0, reap_s=0.05)
    job_id = await job_of(broker)
    async with worker_of(broker, "gw-2") as other:
        async with worker_of(broker) as worker:
            await worker.register()
            await worker.claim()
            await other.register()
            left = time.monotonic()
        assert (await other.until(type="job_available"))["job_id"] == job_id
        assert time.monotonic() - left > 1.9, "the worker might have come back"
        assert (await other.claim())["attempt"] == 2


async def test_an_open_socket_keeps_the_job_of_a_worker_that_cannot_speak(start_broker: Start) -> None:
    broker = await start_broker(lease_s=2.0, reap_s=0.05)  # the broker is here, too: it may stand still for a second
    job_id = await job_of(broker)
    async with worker_of(broker) as worker, worker_of(broker, "gw-2") as other:
        await worker.register()
        job = await worker.claim()
        await worker.progress(job, 1)
        await becomes(broker, job_id, "processing")
        await other.register()
        with pytest.raises(TimeoutError):
            await other.until(within=3.0, type="job_available")
        assert (await worker.about("complete_job", job, result={}))["status"] == "completed"


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_worker_that_could_speak_and_does_not_name_its_job_loses_it(
    start_broker: Start, cancelled: bool
) -> None:
    broker = await start_broker(lease_s=2.0, reap_s=0.05)
    async with broker.client() as client, worker_of(broker) as worker:
        job_id = (await client.ask(submit()))["job_id"]
        await worker.register()
        job = await worker.claim()
        await worker.progress(job, 1)
        await hears(client, "processing")
        if cancelled:
            await broker.json("POST", f"/api/jobs/{job_id}/cancel", json={})
        reading = asyncio.create_task(worker.until(within=60, type="never"))  # answers pings
        try:
            await hears(client, "cancelled" if cancelled else "pending")
            assert await fleet_state(broker) == "idle", "the worker itself is still there"
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def test_a_worker_that_is_silent_for_too_long_loses_its_job(start_broker: Start) -> None:
    broker = await start_broker(lease_s=1.0, reap_s=0.05, hang_s=1.0)
    async with broker.client() as client, worker_of(broker) as worker:
        await client.ask(submit())
        await worker.register()
        await worker.progress(await worker.claim(), 1)
        await hears(client, "processing")
        await hears(client, "pending")


@pytest.mark.parametrize("started", [False, True])
async def test_a_job_that_heartbeats_do_not_name_goes_back(start_broker: Start, started: bool) -> None:
    broker = await start_broker(lease_s=0.5, reap_s=0.05)
    job_id = await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        if started:
            await worker.progress(job, 1)

        async def back() -> bool:
            await worker.heartbeat(status="busy")
            return await status_of(broker, job_id) == "pending"

        await wait_until(back, what="the job went back")
        reply = await worker.about("complete_job", job, result={})
        assert reply["details"]["reason"] == "stale_lease"


async def test_a_claim_whose_answer_was_lost_goes_back_without_a_heartbeat(start_broker: Start) -> None:
    broker = await start_broker(lease_s=0.5, reap_s=0.05)
    job_id = await job_of(broker)
    async with worker_of(broker) as worker:
        await worker.register()
        await worker.claim()
        await becomes(broker, job_id, "pending")
