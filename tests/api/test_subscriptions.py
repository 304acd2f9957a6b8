"""Following a job: everything, in order, nothing twice, across reconnects, replicas and rounds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from broker.api.services import SERVICES
from broker.api.streams import Item, Streams
from broker.errors import NotFound
from tests.api.conftest import Broker, Client, Start, submit
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import PATIENCE_S, wait_until


async def new_job(client: Client, **fields: Any) -> str:
    accepted = await client.ask(submit(subscribe=False, **fields))
    job: str = accepted["job_id"]
    return job


async def run_job(worker: SimulatedWorker, steps: int = 3) -> None:
    held = await worker.claim()
    assert held is not None
    for n in range(steps):
        await worker.report(held, n * 10)
    await worker.finish(held)


def ids(events: list[dict[str, Any]]) -> list[str]:
    return [event["event_id"] for event in events]


def pairs(events: list[dict[str, Any]]) -> list[tuple[int, int]]:
    found = [event["event_id"].rpartition(".")[2].split("-") for event in events]
    return [(int(n), int(p)) for n, p in found]


async def test_a_late_subscriber_gets_every_event_in_order(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        job = await new_job(client)
        await run_job(worker)
        confirmed = await client.ask({"type": "subscribe_job", "job_id": job, "after": None})
        assert (confirmed["type"], confirmed["job_id"]) == ("subscription_confirmed", job)
        await client.until("complete_job")
        events = client.of(job)
        assert client.heard.index(confirmed) < client.heard.index(events[0])
        assert [e.get("status") or e["type"] for e in events] == [
            "pending", "claimed", "processing", "update_job_progress", "completed", "completed",
        ]  # fmt: skip
        assert pairs(events) == sorted(set(pairs(events)))


async def test_a_reconnect_to_another_replica_goes_on_where_it_was(start_broker: Start) -> None:
    one, two = await start_broker(), await start_broker()
    worker = one.worker()
    await worker.register()
    async with one.client() as client:
        job = await new_job(client)
        await client.ask({"type": "subscribe_job", "job_id": job})
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 30)
        await client.until("update_job_progress")
        first = client.of(job)
    await worker.report(held, 60)
    async with two.client() as client:
        await client.ask({"type": "subscribe_job", "job_id": job, "after": first[-1]["event_id"]})
        await worker.finish(held)
        await client.until("complete_job")
        second = client.of(job)
    together = pairs(first + second)
    assert together == sorted(set(together)), "nothing twice, nothing out of order"
    logged = [n for n, p in together if p == 0]
    assert logged == list(range(1, logged[-1] + 1)), "nothing missing"


async def test_after_the_last_event_nothing_comes_again(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        job = await new_job(client)
        await run_job(worker)
        await client.ask({"type": "subscribe_job", "job_id": job})
        last = await client.until("complete_job")
        await client.ask({"type": "unsubscribe_job", "job_id": job})
        heard = len(client.heard)
        await client.ask({"type": "subscribe_job", "job_id": job, "after": last["event_id"]})
        await client.ask({"type": "force_retry_job", "job_id": job})
        while not (events := [message for message in client.heard[heard:] if "event_id" in message]):
            await client.next()
        assert [(event["type"], event["status"]) for event in events] == [("job_update", "pending")]


async def test_an_id_of_another_deployment_gives_a_reset_with_the_record(broker: Broker) -> None:
    async with broker.client() as client:
        job = await new_job(client)
        await client.ask({"type": "subscribe_job", "job_id": job, "after": "elsewhere.5-0"})
        reset = await client.until("reset")
        assert (reset["record"]["job_id"], reset["record"]["status"]) == (job, "pending")
        assert reset["event_id"]


async def test_unsubscribe_ends_it(broker: Broker) -> None:
    async with broker.client() as client:
        job = await new_job(client)
        await client.ask({"type": "subscribe_job", "job_id": job})
        await client.until("job_update")
        ended = await client.ask({"type": "unsubscribe_job", "job_id": job})
        assert (ended["type"], ended["subscribed"]) == ("subscription_confirmed", False)
        await client.ask({"type": "cancel_job", "job_id": job})
        await client.ask({"type": "request_stats"})
        assert all(event.get("status") != "cancelled" for event in client.of(job))


async def test_subscribe_true_on_submit_misses_nothing(broker: Broker, valkey_url: str) -> None:
    """Jobs that end at once, many at a time: each gives its whole story."""
    async with broker.client() as client, broker.worker().running(valkey_url):
        await client.send({"type": "submit_jobs", "jobs": [submit() for _ in range(50)], "message_id": "bulk"})
        accepted = await client.until("jobs_accepted")
        jobs = [one["job_id"] for one in accepted["results"]]
        for _ in jobs:
            await client.until("complete_job")
        for job in jobs:
            events = client.of(job)
            assert events[0]["status"] == "pending"
            assert events[-1]["type"] == "complete_job"
            assert [n for n, p in pairs(events) if p == 0] == list(range(1, 7))
            assert any(e["type"] == "update_job_progress" and e["progress"] == 100 for e in events)


async def test_previews_only_for_who_asked(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as watcher, broker.client() as other:
        job = await new_job(watcher)
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 1)
        await watcher.ask({"type": "subscribe_job", "job_id": job, "previews": True})
        await other.ask({"type": "subscribe_job", "job_id": job})

        async def watched() -> bool:
            return (await worker.report(held, 2)).text("watch") == "1"

        await wait_until(watched, what="the worker hears that somebody watches")
        meta = json.dumps({"job_id": job, "node_id": "2", "image_type": "image/png"}).encode()
        frame = struct.pack(">II", 4, len(meta)) + meta + b"\x89PNG picture"

        async def arrived() -> bool:
            await worker.preview(held, frame)
            with_timeout = asyncio.timeout(0.2)
            try:
                async with with_timeout:
                    await watcher.next()
            except TimeoutError:
                pass
            return bool(watcher.previews)

        await wait_until(arrived, what="a preview arrives")
        assert watcher.previews[0] == frame
        async with broker.http.get(f"{broker.url}/api/jobs/{job}/preview") as response:
            assert (response.status, response.content_type) == (200, "image/png")
            assert await response.read() == b"\x89PNG picture"
        await worker.finish(held)
        await other.until("complete_job")
        assert other.previews == []


async def test_no_preview_is_204(broker: Broker) -> None:
    async with broker.client() as client:
        job = await new_job(client)
        async with broker.http.get(f"{broker.url}/api/jobs/{job}/preview") as response:
            assert response.status == 204
        status, answer = await broker.json("GET", "/api/jobs/nope/preview")
        assert (status, answer["code"]) == (404, "not_found")


async def test_a_stream_whose_job_goes_ends(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong is not told in the middle of it: a client that comes again is answered."""

    async def gone(*_: Any, **__: Any) -> AsyncGenerator[Item, None]:
        raise NotFound("There is no such job.")
        yield Item()

    async with broker.client() as client:
        job = await new_job(client)
    monkeypatch.setattr(Streams, "follow", gone)
    async with broker.http.get(f"{broker.url}/api/jobs/{job}/events") as response:
        assert await asyncio.wait_for(response.read(), PATIENCE_S) == b": events of the job\n\n"


async def read_sse(response: Any, until: str) -> list[dict[str, Any]]:
    """Events of a stream until one of the type ``until``; ids and types must agree with the data."""
    events: list[dict[str, Any]] = []
    fields: dict[str, str] = {}
    async with asyncio.timeout(PATIENCE_S):
        async for raw in response.content:
            line = raw.decode().rstrip("\n")
            if line.startswith(":"):
                continue
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                data = json.loads(fields["data"])
                assert (data["event_id"], data["type"]) == (fields["id"], fields["event"])
                events.append(data)
                if data["type"] == until:
                    return events
                fields = {}
    return events


async def test_server_sent_events_resume_and_end(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        job = await new_job(client)
    path = f"{broker.url}/api/jobs/{job}/events"
    async with broker.http.get(path) as response:
        assert response.content_type == "text/event-stream"
        first = await read_sse(response, "job_update")
        assert first[0]["status"] == "pending"
        await run_job(worker)
        rest = await read_sse(response, "complete_job")
        assert await response.content.read() in (b"", b"\n"), "the stream ends with the job"
    last = rest[-1]["event_id"]
    async with broker.http.get(path, headers={"Last-Event-ID": first[0]["event_id"]}) as response:
        again = await read_sse(response, "complete_job")
        assert ids(again)[0] != first[0]["event_id"]
        assert again[-1]["event_id"] == last
    async with broker.http.get(path, headers={"Last-Event-ID": last}) as response:
        assert response.status == 204
    async with broker.http.get(f"{broker.url}/api/jobs/nope/events") as response:
        assert response.status == 404


async def test_a_job_that_fails_and_is_retried_tells_the_whole_story(start_broker: Start) -> None:
    broker = await start_broker(backoff_s=0.0, reap_s=0.05)
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        job = (await client.ask(submit(max_attempts=2)))["job_id"]
        for expected in (True, False):

            async def claim() -> Any:
                return await worker.claim()

            held = await wait_until(claim, what="the job can be claimed")
            await worker.report(held, 10)
            await worker.fail(held, "node_error", "It broke.")
            failed = await client.until("fail_job")
            assert failed["will_retry"] is expected
        record = await client.ask({"type": "request_job_status", "job_id": job})
        assert (record["status"], record["attempt"], record["failures"]) == ("failed", 2, 2)


@pytest.mark.parametrize("previews", [False, True])
async def test_a_second_subscription_replaces_the_first(broker: Broker, previews: bool) -> None:
    async with broker.client() as client:
        job = await new_job(client)
        for _ in range(3):
            await client.ask({"type": "subscribe_job", "job_id": job, "previews": previews})
            await client.until("job_update")
        await client.ask({"type": "cancel_job", "job_id": job})
        while not any(e.get("status") == "cancelled" for e in client.of(job)):
            await client.next()
        await client.ask({"type": "request_stats"})
        assert sum(e.get("status") == "cancelled" for e in client.of(job)) == 1


async def test_who_submitted_a_job_and_retries_it_hears_the_new_round_too(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        job = (await client.ask(submit()))["job_id"]
        await run_job(worker)
        await client.until("complete_job")
        first = ids(client.of(job))
        assert (await client.ask({"type": "force_retry_job", "job_id": job}))["type"] == "ack"
        await run_job(worker)
        await client.until("complete_job")
        both = client.of(job)
        assert ids(both)[: len(first)] == first
        assert len(set(ids(both))) == len(both)
        states = [event["status"] for event in both[len(first) :] if event["type"] == "job_update"]
        assert states == ["pending", "claimed", "processing", "completed"]


async def test_listeners_of_one_job_share_messages_but_no_tenant_has_another_s_addresses(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with broker.client() as client:
        job = await new_job(client)
    held = await worker.claim()
    assert held is not None
    streams = broker.server.app[SERVICES].streams
    async with contextlib.AsyncExitStack() as stack:
        listeners = [
            await stack.enter_async_context(contextlib.aclosing(streams.follow(job, tenant, until_end=True)))
            for tenant in ("default", "default", "other", "default")
        ]
        firsts = [await anext(listener) for listener in listeners]
        await worker.report(held, 50)
        output = {"node_id": "2", "kind": "image", "filename": "x.png", "name": "1-0.png"}
        await worker.finish(held, {"outputs": [output]})
        heard = [[first] + [item async for item in rest] for first, rest in zip(firsts, listeners, strict=True)]
    for items in heard:
        assert [item.event_id for item in items] == [item.event_id for item in heard[0]]
        assert all(json.loads(item.text)["event_id"] == item.event_id for item in items)
    urls = [json.loads(items[-1].text)["result"]["outputs"][0]["url"] for items in heard]
    assert [parse_qs(urlsplit(url).query)["t"] for url in urls] == [["default"], ["default"], ["other"], ["default"]]
