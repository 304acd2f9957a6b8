"""Pages that change while they are open: read and rendered once for all tabs that show the same.

A tab has no queue. It knows the version that it has seen; whatever changed since is sent in one message, the latest of
each part only. So a slow tab costs nothing, and however often something changes, a tab gets a few messages a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

from broker.dashboard.frame import View
from broker.dashboard.parts import Parts
from broker.dashboard.words import aged
from broker.errors import EmqError, RateLimited

log = logging.getLogger(__name__)

MAX_FEEDS, MAX_TABS = 256, 2000
LINGER_S = 5.0
"""How long a page is still read after its last tab has gone: tabs come back from a reload."""
IDLE_SHARE = 14
"""A page rests this many times as long as it kept the processor, whatever its own pace: many of them share one core."""

GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""What a gzip stream begins with; any number of packed messages may follow."""
PACK_LEVEL = 3

GLANCE_S = 0.5
"""How often the strip is looked at on a page that is read more seldom."""
BEAT_S = 0.25
"""Pages are read at moments that are multiples of this, so that they share what they read."""
LATE_S = 0.1

Render = Callable[[View, Parts | None], Awaitable[Parts]]
"""Draws a view's parts; gets those of the drawing before, of which what has not changed is taken again."""


def pack(data: bytes) -> bytes:
    """Bytes compressed by themselves, so that one result fits into the gzip stream of every tab."""
    squeeze = zlib.compressobj(PACK_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    return squeeze.compress(data) + squeeze.flush(zlib.Z_FULL_FLUSH)


@dataclass(frozen=True, slots=True)
class _Part:
    body: str
    shape: str
    version: int
    inside: tuple[str, ...]


def beat(every_s: float, rest_s: float = 0.0) -> float:
    """The next moment, after a rest, at which all look that look every so often: they share what they read."""
    return math.floor((time.monotonic() + rest_s) / every_s + 1) * every_s


async def _sleep_until(moment: float) -> None:
    await asyncio.sleep(moment - time.monotonic())


class Feed:
    """One view that somebody has open."""

    def __init__(self, view: View, render: Render, glance: Render, every_s: float) -> None:
        self.epoch = secrets.token_hex(6)
        self.version = 0
        self.tabs = 0
        self.left_at = 0.0
        self.task: asyncio.Task[None] | None = None
        self._view, self._render, self._glance, self._every = view, render, glance, every_s
        self.latest = Parts()
        self._known: dict[str, _Part] = {}
        self._inside: dict[str, str] = {}
        self._changed: list[str] = []
        self._changed_at = 0.0
        self._sent: dict[tuple[int, bool], bytes] = {}
        self._waiting: set[Callable[[], None]] = set()

    async def run(self) -> None:
        """Read and compare until cancelled; what stands on every page more often than a page that is read seldom."""
        while True:
            cost_s = await self._look(self._render, whole=True)
            due = max(beat(self._every), beat(BEAT_S, IDLE_SHARE * cost_s))
            while due - time.monotonic() > GLANCE_S + LATE_S:
                await _sleep_until(beat(GLANCE_S))
                await self._look(self._glance, whole=False)
            await _sleep_until(due)

    def end(self) -> None:
        """End the reading, and let go of what was drawn: a task that was cancelled and its error hold each other, and
        all that it had, until Python looks for such rings."""
        assert self.task
        self.task.cancel()
        self.latest, self._known, self._sent = Parts(), {}, {}

    async def _look(self, read: Render, *, whole: bool) -> float:
        """Read and compare; answers how long that kept the processor."""
        try:
            parts = await read(self._view, self.latest)
            self.take(parts, whole=whole)
        except EmqError as error:
            log.debug("No figures: %s", error.message)
        except Exception:
            log.exception("A page could not be rendered")
        else:
            return parts.cost_s
        return 0.0

    def take(self, parts: Parts, *, whole: bool = True) -> None:
        """Compare with what is known, and wake the tabs if anything is different; not ``whole``: some of the parts."""
        if not whole:
            if not self._known.keys() >= parts.bodies.keys():
                return
            parts.bodies, parts.keys = self.latest.bodies | parts.bodies, self.latest.keys | parts.keys
        version, before = self.version + 1, self._known
        self.latest, self._known = parts, {}
        changed, moved = [], False
        for name, body in parts.bodies.items():
            known = before.get(name)
            if known is not None and known.body is body:
                self._known[name] = known
                continue
            part = self._known[name] = self._compared(name, known, version)
            if part.version == version:
                changed.append(name)
                moved = moved or part.inside != (known.inside if known else ())
        if not changed:
            return
        if moved:
            self._inside = {child: name for name, part in self._known.items() for child in part.inside}
        self.version, self._changed, self._sent, self._changed_at = version, changed, {}, time.time()
        for wake in self._waiting:
            wake()

    def _compared(self, name: str, before: _Part | None, version: int) -> _Part:
        body = self.latest.bodies[name]
        if before is not None and before.body == body:
            return before
        shape = self.latest.shape(name)
        same = before is not None and before.shape == shape
        return _Part(body, shape, before.version if before and same else version, tuple(self.latest.inside(name)))

    @contextlib.contextmanager
    def waking(self, wake: Callable[[], None]) -> Iterator[None]:
        """Call ``wake`` with every version."""
        self._waiting.add(wake)
        try:
            yield
        finally:
            self._waiting.discard(wake)

    def since(self, version: int, *, packed: bool = False) -> bytes:
        """The message that brings a tab from ``version`` (0: from nothing) to now; ``packed``: for a gzip stream."""
        known = self._sent.get((version, packed))
        if known is None:
            known = self._sent[version, packed] = pack(self.since(version)) if packed else self._message(version)
        return known

    def _message(self, version: int) -> bytes:
        newest = version == self.version - 1
        names = self._changed if newest else [name for name, part in self._known.items() if part.version > version]
        changed, fresh = set(names), newest and 0 <= time.time() - self._changed_at < BEAT_S
        text = "\n".join([self._partial(name, fresh) for name in names if not self._covered(name, changed)])
        data = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\ndata: ")
        return f"id: {self.epoch}.{self.version}\ndata: {data}\n\n".encode()

    def _covered(self, name: str, changed: set[str]) -> bool:
        """Whether a part around this one is sent anyway."""
        while name in self._inside:
            name = self._inside[name]
            if name in changed:
                return True
        return False

    def _partial(self, name: str, fresh: bool) -> str:
        """A part as htmx takes it; ``fresh``: it was just drawn, so only ages in parts inside can be old."""
        body = self.latest.bodies[name]
        html = self.latest.whole(body)
        if not fresh or html is not body:
            html = aged(html)
        return f'<hx-partial hx-target="#{name}" hx-swap="outerMorph">{html}</hx-partial>'

    def seen(self, event_id: str) -> int:
        """The version that a tab has which saw ``event_id`` last; 0 for another feed's."""
        epoch, _, version = event_id.partition(".")
        known = epoch == self.epoch and version.isascii() and version.isdigit() and len(version) < 16
        return min(int(version), self.version) if known else 0


class Feeds:
    """The feeds of this replica: one a view, while there are tabs."""

    def __init__(self, render: Render, glance: Render) -> None:
        self._render, self._glance = render, glance
        self._feeds: dict[View, Feed] = {}
        self._tabs = 0

    @contextlib.asynccontextmanager
    async def join(self, view: View, every_s: float) -> AsyncIterator[Feed]:
        """The feed of a view, for one tab; raises ``RateLimited`` when too many are open."""
        self._forget()
        feed = self._feeds.get(view)
        if self._tabs >= MAX_TABS or (feed is None and len(self._feeds) >= MAX_FEEDS):
            raise RateLimited("Too many pages are open at this broker.", retry_after_s=10)
        if feed is None:
            feed = self._feeds[view] = Feed(view, self._render, self._glance, every_s)
            feed.task = asyncio.create_task(feed.run(), name=f"page-{view.page}")
        feed.tabs += 1
        self._tabs += 1
        try:
            yield feed
        finally:
            feed.tabs -= 1
            self._tabs -= 1
            feed.left_at = time.monotonic()
            asyncio.get_running_loop().call_later(LINGER_S + 0.1, self._forget)

    def latest(self, view: View) -> Parts | None:
        """What the tabs of a view show now."""
        feed = self._feeds.get(view)
        return feed.latest if feed else None

    def _forget(self) -> None:
        now = time.monotonic()
        for view, feed in list(self._feeds.items()):
            if not feed.tabs and now - feed.left_at > LINGER_S:
                feed.end()
                del self._feeds[view]

    async def stop(self) -> None:
        """End all reading."""
        tasks = [feed.task for feed in self._feeds.values() if feed.task]
        self._feeds.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
