"""Pages that change while they are open: read and rendered once for all tabs that show the same.

A tab has no queue. It knows the version that it has seen; whatever changed since is sent in one message, the latest of
each part only. So a slow tab costs nothing, and however often something changes, a tab gets a few messages a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from broker.dashboard.frame import View
from broker.dashboard.parts import Parts
from broker.errors import RateLimited

log = logging.getLogger(__name__)

MAX_FEEDS, MAX_TABS = 256, 2000
LINGER_S = 5.0
"""How long a page is still read after its last tab has gone: tabs come back from a reload."""
IDLE_SHARE = 4
"""A page rests this many times as long as its reading took, whatever its own pace: many of them share one core."""

Render = Callable[[View], Awaitable[Parts]]


@dataclass(slots=True)
class _Part:
    shape: str
    html: str
    version: int


class Feed:
    """One view that somebody has open."""

    def __init__(self, view: View, render: Render, every_s: float) -> None:
        self.epoch = secrets.token_hex(6)
        self.version = 0
        self.tabs = 0
        self.left_at = 0.0
        self.task: asyncio.Task[None] | None = None
        self._view, self._render, self._every = view, render, every_s
        self._parts: dict[str, _Part] = {}
        self._inside: dict[str, str] = {}
        self._sent: dict[int, bytes] = {}
        self._next: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Read and compare until cancelled."""
        while True:
            began = time.monotonic()
            try:
                self.take(await self._render(self._view))
            except Exception:
                log.exception("A page could not be rendered")
            took = time.monotonic() - began
            await asyncio.sleep(max(self._every - took, IDLE_SHARE * took))

    def take(self, parts: Parts) -> None:
        """Compare with what is known, and wake the tabs if anything is different."""
        found: dict[str, _Part] = {}
        version = self.version + 1
        for name in parts.bodies:
            shape, before = parts.shape(name), self._parts.get(name)
            same = before is not None and before.shape == shape
            found[name] = _Part(shape, parts.bodies[name], before.version if before and same else version)
        if all(part.version != version for part in found.values()):
            self._whole(found, parts)
            return
        self._whole(found, parts)
        self.version, self._sent = version, {}
        if self._next is not None and not self._next.done():
            self._next.set_result(None)

    def _whole(self, found: dict[str, _Part], parts: Parts) -> None:
        self._inside = {child: name for name in found for child in parts.inside(name)}
        for part in found.values():
            part.html = parts.whole(part.html)
        self._parts = found

    async def changed(self, since: int) -> None:
        """Return once there is a newer version than ``since``."""
        while self.version <= since:
            if self._next is None or self._next.done():
                self._next = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._next)

    def since(self, version: int) -> bytes:
        """The message that brings a tab from ``version`` (0: from nothing) to now."""
        known = self._sent.get(version)
        if known is None:
            changed = {name for name, part in self._parts.items() if part.version > version}
            lines = [
                self._partial(name) for name in self._parts if name in changed and not self._covered(name, changed)
            ]
            data = "\n".join(f"data: {line}" for line in "\n".join(lines).splitlines())
            known = self._sent[version] = f"id: {self.epoch}.{self.version}\n{data}\n\n".encode()
        return known

    def _covered(self, name: str, changed: set[str]) -> bool:
        """Whether a part around this one is sent anyway."""
        while name in self._inside:
            name = self._inside[name]
            if name in changed:
                return True
        return False

    def _partial(self, name: str) -> str:
        return f'<hx-partial hx-target="#{name}" hx-swap="outerMorph">{self._parts[name].html}</hx-partial>'

    def seen(self, event_id: str) -> int:
        """The version that a tab has which saw ``event_id`` last; 0 for another feed's."""
        epoch, _, version = event_id.partition(".")
        known = epoch == self.epoch and version.isascii() and version.isdigit() and len(version) < 16
        return min(int(version), self.version) if known else 0


class Feeds:
    """The feeds of this replica: one a view, while there are tabs."""

    def __init__(self, render: Render) -> None:
        self._render = render
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
            feed = self._feeds[view] = Feed(view, self._render, every_s)
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

    def _forget(self) -> None:
        now = time.monotonic()
        for view, feed in list(self._feeds.items()):
            if not feed.tabs and now - feed.left_at > LINGER_S:
                assert feed.task
                feed.task.cancel()
                del self._feeds[view]

    async def stop(self) -> None:
        """End all reading."""
        tasks = [feed.task for feed in self._feeds.values() if feed.task]
        self._feeds.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
