"""A job's events as Server-Sent Events."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from aiohttp import web

from broker.access.credentials import watched
from broker.access.identity import Scope, current
from broker.api.errors import dumps
from broker.api.kernel import end_untaken_soon
from broker.api.seats import seat
from broker.api.services import SERVICES, services
from broker.api.streams import Item, picture_of, wished_px
from broker.errors import EmqError
from broker.protocol.base import TERMINAL, JobStatus

KEEPALIVE_S = 15.0
STALLED_S = 10.0


async def events(request: web.Request) -> web.StreamResponse:
    """Every event after ``Last-Event-ID`` (or ``?after=``), with ``?previews=1`` previews too; ends with the round.

    A browser that comes again for a job that has ended and has had everything gets 204, which ends its reconnecting.
    """
    parts, who = services(request), current(request).require(Scope.READ)
    job_id = request.match_info["job_id"]
    record = await parts.operations.queue.job(job_id, who.tenant)
    after = (request.headers.get("Last-Event-ID") or request.query.get("after") or "")[:128] or None
    ended = JobStatus(record.text("status")) in TERMINAL
    previews, px = request.query.get("previews") in ("1", "true"), wished_px(request.query.get("px"))
    following = parts.streams.follow(job_id, who.tenant, after, previews=previews, px=px, until_end=True)
    async with contextlib.aclosing(following) as stream:
        first = await anext(stream, None) if ended else None
        if ended and first is None:
            return web.Response(status=204)
        async with seat(request):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
            await response.prepare(request)
            end_untaken_soon(request)
            # A client of a job that is deleted, say, comes again and is told.
            with contextlib.suppress(ConnectionError, TimeoutError, EmqError), until_the_end(request) as stop:
                await send(response, text_of(first) if first else b": events of the job\n\n")
                await _pump(response, stream, stop)
    return response


@contextlib.contextmanager
def until_the_end(request: web.Request) -> Iterator[asyncio.Future[Any]]:
    """A future that is done when the broker stops, and cancelled when the request's credential ends."""
    parts = services(request)
    stop: asyncio.Future[Any] = asyncio.ensure_future(parts.stopping.wait())

    async def end() -> None:
        stop.cancel()

    parts.event_streams += 1
    try:
        with watched(request, end):
            yield stop
    finally:
        parts.event_streams -= 1
        stop.cancel()


async def _pump(response: web.StreamResponse, stream: AsyncGenerator[Item, None], stop: asyncio.Future[Any]) -> None:
    """Write what comes, and a comment now and then, so that a client that has gone is noticed."""
    following = asyncio.ensure_future(anext(stream, None))
    try:
        while True:
            await asyncio.wait({stop, following}, timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if stop.done():
                return
            if not following.done():
                await send(response, b": still here\n\n")
                continue
            item = following.result()
            if item is None:
                return
            await send(response, text_of(item))
            following = asyncio.ensure_future(anext(stream, None))
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


async def send(response: web.StreamResponse, data: bytes) -> None:
    """Write; raises ``TimeoutError`` when the client takes nothing for ten seconds."""
    async with asyncio.timeout(STALLED_S):
        await response.write(data)


async def stop_all(app: web.Application) -> None:
    """End every stream at the stop; the clients come again, to another replica."""
    app[SERVICES].stopping.set()


def text_of(item: Item) -> bytes:
    """One event as the stream has it; a preview has no id, so that a client that comes again misses no event."""
    if item.preview is not None:
        return _preview_text(item.preview)
    return f"id: {item.event_id}\nevent: {item.type}\ndata: {item.text}\n\n".encode()


def _preview_text(frame: bytes) -> bytes:
    found = picture_of(frame)
    if found is None:
        return b": a preview of an unknown kind\n\n"
    data = {
        "type": "preview",
        "node_id": found.node_id,
        "image_type": found.content_type,
        "data": base64.b64encode(found.image).decode(),
    }
    return f"event: preview\ndata: {dumps(data)}\n\n".encode()
