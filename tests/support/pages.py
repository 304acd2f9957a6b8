"""The dashboard's pages: what an open one hears, and jobs that every page must show as text."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.api.conftest import Broker
from tests.dashboard.html import EVIL
from tests.support.gateway import job_of


@dataclass
class PageStream:
    """What an open page hears."""

    response: aiohttp.ClientResponse
    heard: list[tuple[str, str, str]] = field(default_factory=list)

    async def until(self, fits: Callable[[str, str, str], bool], seconds: float = 20) -> tuple[str, str, str]:
        """Read to the first message (event, id, data) that fits."""
        async with asyncio.timeout(seconds):
            while True:
                found = {"event": "", "id": "", "data": ""}
                while line := (await self.response.content.readline()).decode().rstrip("\n"):
                    name, _, value = line.partition(": ")
                    found[name] = found.get(name, "") + value
                assert found["event"] or found["data"] or not self.response.content.at_eof(), self.heard
                self.heard.append((found["event"], found["id"], found["data"]))
                if fits(*self.heard[-1]):
                    return self.heard[-1]


@contextlib.asynccontextmanager
async def page_stream(broker: Broker, page: str = "fleet", **headers: str) -> AsyncIterator[PageStream]:
    """Listen as this page does while it is open in a tab."""
    async with broker.http.get(f"{broker.url}/ui/events?page={page}", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        yield PageStream(response)


async def evil_jobs(broker: Broker) -> Sequence[str]:
    """Jobs whose every text is hostile: one waits, one runs, one has failed."""
    name = EVIL[:-1]  # of nodes and classes only printable names are taken
    worker = broker.worker(EVIL, nodes=(name,))
    await worker.register()
    graph = {name: {"class_type": name, "inputs": {"x": EVIL}, "_meta": {"title": EVIL}}}
    fields: dict[str, Any] = {
        "payload": {"workflow": graph},
        "group": EVIL,
        "metadata": {EVIL: EVIL},
        "max_attempts": 1,
    }
    jobs = [await job_of(broker, **fields) for _ in range(2)]
    held = await worker.claim(jobs[0])
    assert held is not None
    await worker.report(held, 3, node={"id": EVIL, "class_type": EVIL, "value": 1, "max": 2})
    await worker.fail(held, EVIL, EVIL)
    held = await worker.claim(jobs[1])
    assert held is not None
    await worker.report(held, 3, node={"id": EVIL, "class_type": EVIL, "value": 1, "max": 2})
    stuck = await job_of(broker, **fields, requirements={"models": [EVIL], "tags": [EVIL]})
    return [*jobs, stuck]
