"""The person at ComfyUI's own page."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from broker.trial.workflows import plain_image
from tests.support.comfyui import LONG, Client, ComfyProcess, slow
from tests.support.waiting import wait_until


class Page:
    """ComfyUI's page as its socket sees it."""

    def __init__(self, comfy: ComfyProcess) -> None:
        self.comfy = comfy
        self.client_id = f"page-{secrets.token_hex(4)}"
        self.heard: list[dict[str, Any] | bytes] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Page]:
        async with (
            aiohttp.ClientSession(self.comfy.url) as session,
            session.ws_connect(f"/ws?clientId={self.client_id}", max_msg_size=0) as ws,
        ):
            reading = asyncio.create_task(self._read(ws))
            try:
                yield self
            finally:
                reading.cancel()

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        async for frame in ws:
            data = json.loads(frame.data) if frame.type is aiohttp.WSMsgType.TEXT else frame.data
            self.heard.append(data)

    async def queue(self, graph: dict[str, Any]) -> str:
        answer = await self.comfy.post("/prompt", {"prompt": graph, "client_id": self.client_id})
        return str(answer["prompt_id"])

    def events(self, prompt_id: str | None = None) -> list[dict[str, Any]]:
        texts = [data for data in self.heard if isinstance(data, dict)]
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

        def names() -> list[str]:
            return [event["type"] for event in page.events(prompt)]

        # The history has it a moment before the page's socket does.
        await wait_until(lambda: "execution_success" in names(), 30, "the page is told of the end")
        assert names()[0] == "execution_start"
        assert names().count("progress") == 10
        assert {record["status"] for record in [await client.until(job) for job in jobs]} == {"completed"}


async def test_the_page_does_not_hear_of_jobs(client: Client, comfy: ComfyProcess) -> None:
    """No event of a job, no preview, its history stays the person's own; the queue's length comes now and then."""
    await comfy.until_idle()
    before = await _history(comfy)
    async with Page(comfy).open() as page:
        began = time.monotonic()
        jobs = [await client.submit(plain_image(4000 + index, 8), worker=comfy) for index in range(40)]
        for job in jobs:
            assert (await client.until(job))["status"] == "completed"
        seconds = time.monotonic() - began
        others = [event for event in page.events() if event["type"] != "status"]
        assert [event for event in others if "prompt_id" in (event.get("data") or {})] == []
        assert [data for data in page.heard if isinstance(data, bytes)] == []
        assert len(page.events()) <= 6 + 3 * seconds
        await wait_until(lambda: _told_length(page) == 0, 30, "the page is told that the queue is empty")
    assert await _history(comfy) == before


def _told_length(page: Page) -> int:
    """The length of ComfyUI's queue as the page was told last."""
    told = [event["data"] for event in page.events() if event["type"] == "status"]
    return int(told[-1]["status"]["exec_info"]["queue_remaining"]) if told else -1


async def _history(comfy: ComfyProcess) -> set[str]:
    """The prompts in the history."""
    return set(await comfy.get("/history"))


async def test_jobs_and_a_person_take_turns(client: Client, comfy: ComfyProcess, tmp_path: Path) -> None:
    """A person with many prompts does not keep jobs out, and many jobs do not keep the person out."""
    all_wait = tmp_path / "all wait"
    async with Page(comfy).open() as page:
        first = await page.queue(slow(LONG, seed=399, until=str(all_wait)))
        prompts = [await page.queue(slow(10, 0.02, seed=400 + index)) for index in range(8)]
        jobs = [await client.submit(slow(10, 0.02, seed=420 + index), worker=comfy) for index in range(8)]
        all_wait.touch()
        starts: list[tuple[int, str]] = []
        for job in jobs:
            record = await client.until(job)
            assert record["status"] == "completed"
            starts.append((record["started_at"], "job"))
        for prompt in (first, *prompts):
            entry = await page.ended(prompt)
            assert entry["status"]["status_str"] == "success"
            messages = dict(entry["status"]["messages"])
            starts.append((messages["execution_start"]["timestamp"], "page"))
        half = [who for _, who in sorted(starts)][:9]
        assert half.count("job") >= 3
        assert half.count("page") >= 3
