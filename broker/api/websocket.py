"""The WebSockets of clients (``/ws``, ``/ws/client/{id}``) and monitors (``/ws/monitor/{id}``)."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

from aiohttp import web

from broker.access.credentials import watched
from broker.access.identity import Scope, current
from broker.access.limits import BROWSERS_PER_S, SERVERS_PER_S, TokenBucket
from broker.access.proxies import client_ip
from broker.api.client_socket import ClientSocket
from broker.api.frames import cut_off, offered
from broker.api.heartbeat import HEARTBEAT, VISIT_S, ListenedSocket, heartbeat
from broker.api.kernel import end_untaken_soon
from broker.api.seats import seat
from broker.api.services import SERVICES, services
from broker.logging import bind_client

FAREWELL_S = 0.5
"""How long the stop waits for the clients' answers to their close frames."""


def add_to(app: web.Application) -> None:
    """Register the routes, the sockets' heartbeat, and the farewell to open ones at the stop."""
    app.router.add_get("/ws", client)
    app.router.add_get("/ws/client/{client_id}", client)
    app.router.add_get("/ws/monitor/{monitor_id}", monitor)
    app.on_shutdown.append(close_all)
    app.cleanup_ctx.append(heartbeat)


async def client(request: web.Request) -> web.StreamResponse:
    """A client's socket."""
    return await _serve(request, stats=False)


async def monitor(request: web.Request) -> web.StreamResponse:
    """The same socket with the figures subscribed."""
    current(request).require(Scope.READ)
    return await _serve(request, stats=True)


async def close_all(app: web.Application) -> None:
    """Close every socket with 1001 at once: aiohttp would wait for each to leave by itself.

    All share one moment for their answers. It begins once each was told: with thousands of them that takes a while.
    """
    farewells = [asyncio.ensure_future(socket.close()) for socket in app[SERVICES].sockets]
    await asyncio.sleep(0)
    everybody = asyncio.gather(*farewells, return_exceptions=True)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(everybody, FAREWELL_S)


def open_socket(limit: int, protocols: tuple[str, ...]) -> ListenedSocket:
    """A socket for messages of at most ``limit`` bytes.

    aiohttp itself refuses only what is twice as large: it would cut the connection in the middle of the message, and
    the client, still sending, would see a reset instead of the close code. Text stays bytes, so that one that is not
    UTF-8 gets an answer; aiohttp would close the connection.
    """
    return ListenedSocket(
        protocols=protocols, heartbeat=VISIT_S, compress=False, max_msg_size=2 * limit + 1, decode_text=False
    )


async def _serve(request: web.Request, *, stats: bool) -> web.StreamResponse:
    async with seat(request):
        return await _serve_seated(request, stats=stats)


async def _serve_seated(request: web.Request, *, stats: bool) -> web.StreamResponse:
    parts = services(request)
    limit = int(parts.settings.max_message_mb * 1024 * 1024)
    ws = open_socket(limit, offered(request))
    await ws.prepare(request)
    end_untaken_soon(request)
    bucket = TokenBucket(BROWSERS_PER_S if "Origin" in request.headers else SERVERS_PER_S)
    socket = ClientSocket(ws, current(request), parts, bucket, limit, ip=client_ip(request))
    parts.sockets.add(socket)
    try:
        client_id = request.match_info.get("client_id") or request.match_info.get("monitor_id")
        with (
            bind_client(client_id),
            watched(request, partial(cut_off, ws, request)),
            request.config_dict[HEARTBEAT].watch(ws),
        ):
            await socket.run(stats=stats)
    finally:
        parts.sockets.discard(socket)
    return ws
