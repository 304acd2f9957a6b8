"""What the gateway passes on of a running job: progress, previews, outputs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from typing import Any

import pytest

from tests.api.conftest import Broker, Start
from tests.support.gateway import job_of, worker_of
from tests.support.waiting import wait_until


async def test_progress_is_thinned_but_its_last_word_arrives(broker: Broker) -> None:
    await job_of(broker)
    async with broker.client() as client, worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        await client.ask({"type": "subscribe_job", "job_id": job["job_id"]})
        began = time.monotonic()
        for step in range(100):
            await worker.progress(job, step)
        await worker.progress(job, 42)
        while (await client.until("update_job_progress"))["progress"] < 99:
            pass
        took = time.monotonic() - began
        seen = [e["progress"] for e in client.of(job["job_id"]) if e["type"] == "update_job_progress"]
        assert seen == sorted(seen)
        assert len(seen) <= 1 + 5 * took, "one, and five in each second after it"


@pytest.mark.parametrize("watched", [False, True])
async def test_who_comes_later_starts_with_the_latest_progress(broker: Broker, watched: bool) -> None:
    job_id = await job_of(broker)
    async with broker.client() as first, broker.client() as late, worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        if watched:
            await first.ask({"type": "subscribe_job", "job_id": job_id})
        for step in range(60):
            await worker.progress(job, step)
            await asyncio.sleep(0.02)

        async def known() -> bool:
            _, record = await broker.json("GET", f"/api/jobs/{job_id}")
            return bool(record["progress"] == 59)

        if watched:
            while (await first.until("update_job_progress"))["progress"] < 59:
                pass
        else:
            await wait_until(known, what="the last report before a silence is in the record")
        await late.ask({"type": "subscribe_job", "job_id": job_id})
        seen = await late.until("update_job_progress")
        assert seen["progress"] == 59
        told = {"node", "nodes_done", "nodes_total", "eta_s", "message"}
        assert {name: seen[name] for name in told} == dict.fromkeys(told), "what was not told is null"


async def test_a_preview_that_was_made_is_shown_to_who_comes_later(start_broker: Start) -> None:
    one, two = await start_broker(), await start_broker()
    job_id = await job_of(one)
    async with worker_of(one) as worker:
        await worker.register()
        job = await worker.claim()
        await worker.progress(job, 1)
        picture = b"\xff\xd8\xff" + bytes(1000)
        await worker.preview(job, picture)
        await worker.heartbeat(job)
        for broker in (two, one):

            async def shown(broker: Broker = broker) -> bytes | None:
                async with broker.http.get(f"{broker.url}/api/jobs/{job_id}/preview") as response:
                    return await response.read() if response.status == 200 else None

            # An answer waits a second at most for the worker to hear that somebody watches.
            assert await wait_until(shown, what="the picture is shown") == picture


@pytest.mark.parametrize("by", ["hash", "filename"])
async def test_an_output_is_told_by_its_content_or_name(broker: Broker, by: str) -> None:
    job_id = await job_of(broker)
    files = {"cat.png": b"\x89PNG\r\n\x1a\n" + bytes(64), "dog.png": b"\x89PNG\r\n\x1a\n" + bytes(32)}
    async with worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        headers = {"Authorization": job["uploads"]["authorization"]}
        outputs: list[dict[str, Any]] = []
        for number, (name, data) in enumerate(files.items()):
            url = f"{job['uploads']['url_prefix']}{number}/{name}"
            async with broker.http.put(url, data=data, headers=headers) as response:
                stored = await response.json()
            outputs.insert(0, {"node_id": "2", "kind": "image", by: stored[by]})
        outputs.append({"node_id": "2", "kind": "image", by: "another"})
        await worker.about("complete_job", job, result={"outputs": outputs})
    _, record = await broker.json("GET", f"/api/jobs/{job_id}")
    given = record["result"]["outputs"]
    assert "url" not in given.pop()
    for output, data in zip(given, reversed(files.values()), strict=True):
        async with broker.http.get(broker.url + output["url"]) as response:
            assert await response.read() == data


async def test_a_preview_reaches_who_watches(broker: Broker) -> None:
    job_id = await job_of(broker)
    async with broker.client() as client, worker_of(broker) as worker:
        await worker.register()
        job = await worker.claim()
        await worker.progress(job, 1)
        await client.ask({"type": "subscribe_job", "job_id": job_id, "previews": True})
        await worker.until(type="watch_job", job_id=job_id)
        picture = b"\xff\xd8\xff" + bytes(range(256)) * 200

        async def seen() -> bool:
            await worker.preview(job, picture)
            await worker.progress(job, 2)
            with contextlib.suppress(TimeoutError):
                await client.next(0.3)
            return bool(client.previews)

        await wait_until(seen, what="a preview arrived")
        length = struct.unpack(">I", client.previews[0][4:8])[0]
        assert json.loads(client.previews[0][8 : 8 + length])["job_id"] == job_id
        assert client.previews[0][8 + length :] == picture
