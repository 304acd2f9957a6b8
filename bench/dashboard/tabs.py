"""Open tabs: what a browser's stream gets, and how old it is when it comes."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import aiohttp

from bench.dashboard.fleet import MOST_STEP, step_now

STEP = re.compile(rb">(\d{1,9})/%d<" % MOST_STEP)
"""A progress report, by the moment at which it was sent."""
ROW = re.compile(rb'href="/jobs/([0-9a-f]{32})"')
AT = re.compile(rb' data-at="(\d+)"')
KEPT = 256


@dataclass
class Heard:
    """What all tabs together heard in a time: how old things were, in ms, by what they were."""

    ages: dict[str, list[float]] = field(default_factory=dict)
    messages: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    """On the wire."""
    unpacked: int = 0
    lost: int = 0
    """Streams that ended by themselves."""

    def note(self, what: str, ages: Sequence[float]) -> None:
        self.ages.setdefault(what, []).extend(ages)

    def percentile(self, share: int, what: str) -> float:
        """Milliseconds within which this share (1-99) of what is of one kind was there."""
        return statistics.quantiles(self.ages[what], n=100)[share - 1]


class Message:
    """What one message tells; many tabs get the same bytes, so it is looked through once."""

    def __init__(self, text: bytes) -> None:
        self.steps = [int(step) for step in STEP.findall(text)]
        self.jobs: dict[bytes, int] = {}
        links = [*ROW.finditer(text)]
        for at, link in enumerate(links, 1):
            moment = AT.search(text, link.end(), links[at].start() if at < len(links) else len(text))
            if moment:
                self.jobs.setdefault(link[1], int(moment[1]))


def _page(address: str) -> str:
    return address.partition("&")[0].removeprefix("page=")


class Tabs:
    """All tabs; :meth:`listen` begins to count anew."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http, self.url = http, url
        self.heard = Heard()
        self._known: dict[tuple[bytes, int], Message] = {}

    def listen(self) -> Heard:
        """Count from now on."""
        self.heard = Heard()
        return self.heard

    async def tab(self, address: str, opened: asyncio.Queue[str]) -> None:
        """One tab: the page, then its stream until cancelled. ``address`` is the stream's query."""
        headers = {"HX-Request": "true", "Accept-Encoding": "gzip"}
        async with self.http.get(f"{self.url}/ui/events?{address}", headers=headers, auto_decompress=False) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream"), await response.text()
            seen: set[bytes] | None = None
            buffer, unpack = bytearray(), zlib.decompressobj(16 + zlib.MAX_WBITS)
            async for chunk in response.content.iter_any():
                self.heard.bytes += len(chunk)
                buffer += unpack.decompress(chunk)
                while (end := buffer.find(b"\n\n")) >= 0:
                    event = bytes(buffer[:end])
                    del buffer[: end + 2]
                    if not event.startswith(b"id: "):
                        continue
                    message = self._read(event)
                    if seen is None:
                        seen = set(message.jobs)
                        opened.put_nowait(address)
                    else:
                        self._count(address, message, seen)
        self.heard.lost += 1

    def _read(self, event: bytes) -> Message:
        name = (event[: event.index(b"\n")], len(event))
        if name not in self._known:
            if len(self._known) > KEPT:
                self._known.clear()
            self._known[name] = Message(event)
        self.heard.unpacked += len(event)
        return self._known[name]

    def _count(self, address: str, message: Message, seen: set[bytes]) -> None:
        page = _page(address)
        self.heard.messages[page] += 1
        now, step = time.time_ns() // 1_000_000, step_now()
        if page in ("fleet", "job"):
            self.heard.note(f"{page}: progress", [(step - sent) % (MOST_STEP + 1) for sent in message.steps])
        if page == "fleet" or address == "page=jobs":
            new = [job for job in message.jobs if job not in seen]
            seen.update(new)
            word = "a job has begun" if page == "fleet" else "a job was submitted"
            self.heard.note(f"{page}: {word}", [now - message.jobs[job] for job in new])
