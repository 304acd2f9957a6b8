"""The person at ComfyUI's own page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from broker.trial.workflows import plain_image
from tests.support.comfyui import Client, ComfyProcess, slow


class Page:
    """ComfyUI's page as its socket sees it."""

    def __init__(self, comfy: ComfyProcess) -> None:
        self.comfy = comfy
        self.heard: list[tuple[float, dict[str, Any] | bytes]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Page]:
        async with (
            aiohttp.ClientSession(self.comfy.url) as session,
            session.ws_connect("/ws?clientId=page", max_msg_size=0) as ws,
        ):
            reading = asyncio.create_task(self._read(ws))
            try:
                yield self
            finally:
                reading.cancel()

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in ws:
            data = json.loads(frame.data) if frame.type is aiohttp.WSMsgType.TEXT else frame.data
            self.heard.append((time.monotonic(), data))

    async def queue(self, graph: dict[str, Any]) -> str:
        answer = await self.comfy.post("/prompt", {"prompt": graph, "client_id": "page"})
        return str(answer["prompt_id"])

    def events(self, prompt_id: str | None = None) -> list[dict[str, Any]]:
        texts = [data for _, data in self.heard if isinstance(data, dict)]
        if prompt_id is None:
            return texts
        return [data for data in texts if (data.get("data") or {}).get("prompt_id") == prompt_id]

    async def ended(self, prompt_id: str) -> dict[str, Any]:
        async with aiohttp.ClientSession(self.comfy.url) as session:
            for _ in range(2000):
                async with session.get(f"/history/{prompt_id}") as answer:
                    history = await answer.json()
                if history:
                    found: dict[str, Any] = history[prompt_id]
                    return found
                await asyncio.sleep(0.02)
        raise AssertionError(f"the page's prompt {prompt_id} did not end")


async def test_a_person_s_prompt_runs_and_is_told_as_ever(client: Client, comfy: ComfyProcess) -> None:
    async with Page(comfy).open() as page:
        jobs = [await client.submit(slow(10, 0.02, seed=300 + index), worker=comfy) for index in range(6)]
        prompt = await page.queue(slow(10, 0.02, seed=299))
        entry = await page.ended(prompt)
        assert entry["status"]["status_str"] == "success"
        names = [event["type"] for event in page.events(prompt)]
        assert names[0] == "execution_start"
        assert names.count("progress") == 10
        assert "execution_success" in names
        assert {record["status"] for record in [await client.until(job) for job in jobs]} == {"completed"}


async def test_the_page_does_not_hear_of_jobs(client: Client, comfy: ComfyProcess) -> None:
    """No event of a job, no preview, its history stays the person's own; the queue's length comes now and then."""
    before = await _history(comfy)
    async with Page(comfy).open() as page:
        began = time.monotonic()
        jobs = [await client.submit(plain_image(4000 + index, 8), worker=comfy) for index in range(40)]
        for job in jobs:
            assert (await client.until(job))["status"] == "completed"
        seconds = time.monotonic() - began
        others = [event for event in page.events() if event["type"] != "status"]
        assert [event for event in others if "prompt_id" in (event.get("data") or {})] == []
        assert [data for _, data in page.heard if isinstance(data, bytes)] == []
        assert len(page.events()) <= 6 + 3 * seconds
        await asyncio.sleep(1)
        last = [event for event in page.events() if event["type"] == "status"][-1]
        assert last["data"]["status"]["exec_info"]["queue_remaining"] == 0
    assert await _history(comfy) == before


async def _history(comfy: ComfyProcess) -> set[str]:
    """The prompts in the history."""
    return set(await comfy.get("/history"))


async def test_jobs_and_a_person_take_turns(client: Client, comfy: ComfyProcess) -> None:
    """A person with many prompts does not keep jobs out, and many jobs do not keep the person out."""
    async with Page(comfy).open() as page:
        prompts = [await page.queue(slow(10, 0.02, seed=400 + index)) for index in range(8)]
        jobs = [await client.submit(slow(10, 0.02, seed=420 + index), worker=comfy) for index in range(8)]
        for job in jobs:
            assert (await client.until(job))["status"] == "completed"
        for prompt in prompts:
            assert (await page.ended(prompt))["status"]["status_str"] == "success"
        starts = [
            ("page", at) for at, data in page.heard if isinstance(data, dict) and data["type"] == "execution_start"
        ]
        began = page.heard[0][0]
        records = [await client.job(job) for job in jobs]
        base = min(record["created_at"] for record in records)
        ours = [("job", began + (record["started_at"] - base) / 1000) for record in records]
        order = [who for who, _ in sorted(starts + ours, key=lambda each: each[1])]
        half = order[: len(order) // 2 + 2]
        assert half.count("job") >= 2
        assert half.count("page") >= 2
