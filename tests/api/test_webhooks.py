"""Webhooks from a broker to a real receiver, checked with the Standard Webhooks library."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import redis

from broker.files.opening import open_stores
from broker.jobs import webhooks
from broker.jobs.archive import Archive
from broker.jobs.export import Exporter, Stores
from broker.settings import Settings
from tests.api.conftest import Broker, Start, submit
from tests.support.waiting import wait_until
from tests.support.webhooks import Receiver


@pytest.fixture
async def open_broker(start_broker: Start) -> Broker:
    """A broker that may call this machine."""
    return await start_broker(webhook_urls="any", reap_s=0.05)


async def secret_of(broker: Broker) -> str:
    _, answer = await broker.json("GET", "/api/webhooks/secret")
    return str(answer["secret"])


async def log_of(broker: Broker, job_id: str) -> list[dict[str, Any]]:
    _, answer = await broker.json("GET", f"/api/jobs/{job_id}/webhooks")
    return list(answer["deliveries"])


async def post(broker: Broker, receiver: Receiver, **fields: Any) -> str:
    status, accepted = await broker.json("POST", "/api/jobs", json=submit(webhook_url=receiver.url, **fields))
    assert status == 201, accepted
    return str(accepted["job_id"])


async def test_the_end_is_told_signed_and_logged(open_broker: Broker, receiver: Receiver, valkey_url: str) -> None:
    async with open_broker.worker().running(valkey_url):
        job = await post(open_broker, receiver, metadata={"order": 5})
        await wait_until(lambda: receiver.got)
    [event] = receiver.events(await secret_of(open_broker))
    assert (event["type"], event["data"]["job_id"], event["data"]["status"]) == ("job.completed", job, "completed")
    assert event["data"]["metadata"] == {"order": 5}
    [line] = await wait_until(lambda: log_of(open_broker, job))
    assert (line["event"], line["status"], line["error"], line["again_s"]) == ("completed", 204, None, None)
    assert line["webhook_id"] == receiver.got[0][0]["webhook-id"]


async def test_chosen_events(open_broker: Broker, receiver: Receiver) -> None:
    worker = open_broker.worker()
    await worker.register()
    chosen = ["started", "retrying", "failed"]
    await post(open_broker, receiver, webhook_events=chosen, max_attempts=2)
    for _ in range(2):
        held = await wait_until(worker.claim)
        await worker.report(held, 5)
        await worker.fail(held)
    cancelled = await post(open_broker, receiver, webhook_events=["completed"])
    await open_broker.json("POST", f"/api/jobs/{cancelled}/cancel", json={})
    await wait_until(lambda: len(receiver.got) == 4)
    types = sorted(event["type"] for event in receiver.events(await secret_of(open_broker)))
    assert types == ["job.failed", "job.retrying", "job.started", "job.started"]
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 4


async def test_a_job_that_an_export_takes_is_told_as_cancelled(
    open_broker: Broker, receiver: Receiver, tmp_path: Path
) -> None:
    job = await post(open_broker, receiver)
    folder, stores = Archive.create(tmp_path / "export"), Stores(*open_stores(Settings(data=tmp_path)))
    done = await Exporter(open_broker.queue, stores, folder).run(take=True)
    assert (done.written, done.taken) == (1, 1)
    await wait_until(lambda: receiver.got, what="the webhook")
    (event,) = receiver.events(await secret_of(open_broker))
    assert (event["type"], event["data"]["job_id"], event["data"]["reason"]) == ("job.cancelled", job, "exported")


async def test_failed_delivery_is_tried_again_with_its_id(
    open_broker: Broker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.05, 0.05))
    receiver.answers = [500, 302, 200]
    job = await post(open_broker, receiver)
    await open_broker.json("POST", f"/api/jobs/{job}/cancel", json={"reason": "enough"})
    await wait_until(lambda: len(receiver.got) == 3)
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    lines = await wait_until(lambda: _when(log_of(open_broker, job), 3))
    assert [line["status"] for line in lines] == [500, 302, 200]
    assert [line["try"] for line in lines] == [1, 2, 3]
    assert [line["again_s"] is None for line in lines] == [False, False, True]


async def _when(lines: Any, count: int) -> Any:
    found = await lines
    return found if len(found) == count else None


async def test_it_is_given_up_after_the_last_pause_and_at_once_by_410(
    open_broker: Broker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, valkey_url: str, pool: str
) -> None:
    monkeypatch.setattr(webhooks, "PAUSES_S", (0.05,))
    receiver.answers = [500, 500, 410]
    first = await post(open_broker, receiver)
    await open_broker.json("POST", f"/api/jobs/{first}/cancel", json={})
    lines = await wait_until(lambda: _when(log_of(open_broker, first), 2))
    assert lines[-1]["again_s"] is None
    second = await post(open_broker, receiver)
    await open_broker.json("POST", f"/api/jobs/{second}/cancel", json={})
    [line] = await wait_until(lambda: _when(log_of(open_broker, second), 1))
    assert (line["status"], line["again_s"]) == (410, None)
    with redis.Redis.from_url(valkey_url) as client:
        assert client.zcard(f"emq:{{{pool}}}:outbox") == 0
        assert client.hlen(f"emq:{{{pool}}}:outbox_tries") == 0


async def test_redelivery(open_broker: Broker, receiver: Receiver) -> None:
    job = await post(open_broker, receiver)
    await open_broker.json("POST", f"/api/jobs/{job}/cancel", json={})
    [line] = await wait_until(lambda: _when(log_of(open_broker, job), 1))
    path = f"/api/jobs/{job}/webhooks/redeliver"
    assert (await open_broker.json("POST", path, json={"entry": line["entry"]}))[0] == 202
    await wait_until(lambda: len(receiver.got) == 2)
    assert receiver.got[0][0]["webhook-id"] == receiver.got[1][0]["webhook-id"]
    for entry in (f"{job} completed 9.1", "x", f"{job}"):
        assert (await open_broker.json("POST", path, json={"entry": entry}))[0] == 404


async def test_a_rotated_secret_counts_for_a_day_more(open_broker: Broker, receiver: Receiver) -> None:
    old = await secret_of(open_broker)
    _, answer = await open_broker.json("POST", "/api/webhooks/secret/rotate", json={})
    job = await post(open_broker, receiver)
    await open_broker.json("POST", f"/api/jobs/{job}/cancel", json={})
    await wait_until(lambda: receiver.got)
    assert answer["secret"] != old
    assert receiver.events(old) == receiver.events(answer["secret"])


async def test_a_dead_target_delays_no_job(open_broker: Broker, receiver: Receiver, valkey_url: str) -> None:
    receiver.hold = asyncio.Event()
    async with open_broker.worker().running(valkey_url), open_broker.client() as client:
        for _ in range(20):
            await client.ask(submit(webhook_url=receiver.url))
        while sum(message["type"] == "complete_job" for message in client.heard) < 20:
            await client.next()
    assert receiver.got == []
    receiver.hold.set()
    await wait_until(lambda: len(receiver.got) == 20)


async def test_a_broker_that_dies_in_a_delivery_loses_nothing(
    start_broker: Start, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "LEASE_MS", 300)
    first = await start_broker(webhook_urls="any", reap_s=0.05)
    receiver.hold = asyncio.Event()
    job = await post(first, receiver)
    await first.json("POST", f"/api/jobs/{job}/cancel", json={})
    await wait_until(lambda: _tries(first, job))
    await first.server.close()
    receiver.hold.set()
    receiver.hold = None
    second = await start_broker(webhook_urls="any", reap_s=0.05)
    await wait_until(lambda: log_of(second, job))  # twice, where it takes longer than its lease
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {receiver.got[0][0]["webhook-id"]}


async def _tries(broker: Broker, job: str) -> bool:
    found = await broker.queue._caller.read(  # type: ignore[attr-defined]
        broker.queue.prefix, ("HLEN", f"{broker.queue.prefix}outbox_tries")
    )
    return bool(found[0])


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/hook", "https://localhost.example:1/", "https://user:x@example.com/", "http://example.com"],
)
async def test_what_may_not_be_called_is_refused_at_the_submit(broker: Broker, url: str) -> None:
    status, answer = await broker.json("POST", "/api/jobs", json=submit(webhook_url=url))
    assert (status, answer["code"]) == (400, "bad_message")


async def test_a_name_that_leads_inside_is_not_called(start_broker: Start, receiver: Receiver) -> None:
    port = receiver.url.split(":")[2].split("/")[0]
    broker = await start_broker(webhook_urls="public", webhook_ports=port, reap_s=0.05)
    status, accepted = await broker.json("POST", "/api/jobs", json=submit(webhook_url=f"https://localhost:{port}/hook"))
    assert status == 201
    await broker.json("POST", f"/api/jobs/{accepted['job_id']}/cancel", json={})
    [line] = await wait_until(lambda: _when(log_of(broker, accepted["job_id"]), 1))
    assert (line["status"], line["again_s"]) == (None, None)
    assert "no public address" in line["error"]
    assert receiver.got == []
