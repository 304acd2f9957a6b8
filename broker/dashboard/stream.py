"""``/ui/events?page=…``: the live changes of one open page.

It answers an event stream, 401, 403, 429 or 503 and nothing else: htmx hammers at anything else that is good.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import Any

from aiohttp import hdrs, web

from broker.access.identity import Role, current
from broker.api.seats import seat
from broker.api.services import services
from broker.api.sse import send, until_the_end
from broker.dashboard.frame import PAGES, view_of
from broker.dashboard.live import GZIP_HEAD, Feed, Feeds, pack
from broker.dashboard.roles import ROLES, includes
from broker.errors import Forbidden, Unavailable

FEEDS = web.AppKey("feeds", Feeds)
PATH = "/ui/events"
PAUSE_S = 0.25
"""The least time between two messages to one tab."""
BEAT_S = 4.0
"""A tab that hears nothing for longer than this knows that the connection is dead."""
HELLO, BEAT = b"retry: 500\n\n", b"event: beat\ndata: .\n\n"
BYE = b"event: bye\ndata: the session has ended\n\n"


def add_to(app: web.Application) -> None:
    """Register the stream."""
    app[ROLES]["GET", PATH] = Role.VIEWER
    app.router.add_get(PATH, events)


async def events(request: web.Request) -> web.StreamResponse:
    """What changes on a page from now on, or after ``Last-Event-ID``; at first, all of it."""
    parts, who = services(request), current(request)
    page = request.config_dict[PAGES].by_name.get(request.query.get("page", ""))
    if page is None or not includes(who.role, page.role):
        raise Forbidden("There is no such page for this role.")
    if parts.stopping.is_set():
        raise Unavailable("This broker stops.")
    view = replace(view_of(request, page.name, who), live=True)
    async with seat(request), request.config_dict[FEEDS].join(view, page.every_s) as feed:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        packed = "gzip" in request.headers.get(hdrs.ACCEPT_ENCODING, "")
        if packed:
            response.headers[hdrs.CONTENT_ENCODING] = "gzip"
        await response.prepare(request)
        seen = feed.seen(request.headers.get("Last-Event-ID", "")[:64])
        with contextlib.suppress(ConnectionError, TimeoutError), until_the_end(request) as stop:
            await send(response, GZIP_HEAD + pack(HELLO) if packed else HELLO)
            await _pump(response, feed, stop, seen, packed=packed)
    return response


class _Wait:
    """What a tab waits for, without a task or a timer of its own for each message."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] | None = None

    def wake(self, *_: object) -> None:
        """Something has happened."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def until_woken(self, seconds: float) -> None:
        """Wait, so long at most."""
        self._woken = self._loop.create_future()
        timer = self._loop.call_later(seconds, self.wake)
        try:
            await self._woken
        finally:
            timer.cancel()


async def _pump(
    response: web.StreamResponse, feed: Feed, stop: asyncio.Future[Any], seen: int, *, packed: bool
) -> None:
    beat, bye = (pack(BEAT), pack(BYE)) if packed else (BEAT, BYE)
    wait, sent_at = _Wait(), float("-inf")
    stop.add_done_callback(wait.wake)
    with feed.waking(wait.wake):
        while True:
            if feed.version <= seen and not stop.done():
                await wait.until_woken(BEAT_S)
            if stop.done():
                if stop.cancelled():
                    await send(response, bye)
                return
            if feed.version <= seen:
                await send(response, beat)
                continue
            if (rest_s := sent_at + PAUSE_S - time.monotonic()) > 0:
                await asyncio.sleep(rest_s)
            version, message = feed.version, feed.since(seen, packed=packed)
            await send(response, message)
            seen, sent_at = version, time.monotonic()
