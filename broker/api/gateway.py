"""The WebSocket of workers that must not reach Redis: ``/ws/worker`` and ``/ws/worker/{worker_id}``; and their end."""

from __future__ import annotations

import asyncio
from functools import partial

from aiohttp import WSMsgType, web

from broker.access.credentials import watched
from broker.access.identity import Scope, current
from broker.api import commands
from broker.api.frames import cut_off, offered
from broker.api.gateway_link import Link, Socket
from broker.api.gateway_session import GatewayParts, WorkerSession
from broker.api.kernel import find_dead_hosts
from broker.api.rest import answer, asks, read_message
from broker.api.seats import seat
from broker.logging import bind_client
from broker.protocol import gateway as g
from broker.protocol.messages import Ack


class Gateway:
    """Serves the workers' sockets of one replica."""

    def __init__(self, parts: GatewayParts) -> None:
        self._parts = parts
        self._sessions: set[WorkerSession] = set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Read one worker's messages, in order, until it leaves."""
        current(request).require(Scope.WORKER)
        async with seat(request, counted=False):
            return await self._serve(request)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        settings = self._parts.settings
        limit = int(settings.max_message_mb * 1024 * 1024)
        ws: Socket = web.WebSocketResponse(
            protocols=offered(request), compress=False, max_msg_size=limit + 1, decode_text=False, autoping=False
        )
        await ws.prepare(request)
        find_dead_hosts(request)
        worker_id = request.match_info.get("worker_id")
        link = Link(ws, request)
        session = WorkerSession(link, self._parts, self._base(request), worker_id)
        self._sessions.add(session)
        try:
            with bind_client(worker_id), watched(request, partial(cut_off, ws, request)):
                await _read(ws, link, session)
        finally:
            self._sessions.discard(session)
            await asyncio.shield(session.close())
        return ws

    def count(self) -> int:
        """How many workers are connected."""
        return len(self._sessions)

    async def close_all(self) -> None:
        """Close every socket with 1001: the workers connect to another replica."""
        await asyncio.gather(*(session.shut() for session in list(self._sessions)), return_exceptions=True)

    def _base(self, request: web.Request) -> str:
        """The broker's URL as this worker sees it: configured, else the address that it connected to."""
        settings = self._parts.settings
        configured = settings.worker_url or settings.public_url
        return configured.rstrip("/") if configured else f"{_scheme(request)}://{request.host}"


GATEWAY = web.AppKey("gateway", Gateway)


def add_to(app: web.Application) -> None:
    """Register the routes, and the farewell to open sockets at the stop; ``GATEWAY`` must be set by the start."""
    app.router.add_get("/ws/worker", _worker)
    app.router.add_get("/ws/worker/{worker_id}", _worker)
    app.router.add_post("/api/workers/{worker_id}/gone", _gone)
    app.on_shutdown.append(_close_all)


async def _worker(request: web.Request) -> web.StreamResponse:
    """A worker's socket."""
    return await request.config_dict[GATEWAY].serve(request)


async def _gone(request: web.Request) -> web.Response:
    """A worker's process has died: its jobs go back now. Its instance is a secret, so only its own side can say so."""
    ops, _ = asks(request, Scope.WORKER)
    message = await read_message(request, g.WorkerGone, worker_id=request.match_info["worker_id"])
    await ops.queue.worker_call("gone", {"instance": message.instance})
    return answer(commands.wire(Ack.model_validate({"worker_id": message.worker_id}), message.message_id))


async def _close_all(app: web.Application) -> None:
    await app[GATEWAY].close_all()


async def _read(ws: Socket, link: Link, session: WorkerSession) -> None:
    async for message in ws:
        session.pulse.heard()
        if message.type is WSMsgType.TEXT:
            await session.handle(message.data)
        elif message.type is WSMsgType.BINARY:
            await session.handle_binary(message.data)
        elif message.type is WSMsgType.PING:
            await link.pong(message.data)


def _scheme(request: web.Request) -> str:
    """http or https, as the worker's own side of a proxy has it; a wrong one only misleads who sent it."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").strip().lower()
    return forwarded if forwarded in ("http", "https") else request.scheme
