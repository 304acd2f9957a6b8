"""The broker's end of one worker's socket: frames out, one at a time."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

from aiohttp import web

from broker.api.commands import wire
from broker.api.errors import dumps, frame
from broker.errors import EmqError
from broker.protocol.base import Reply

log = logging.getLogger(__name__)
STALLED_S = 60.0
"""A worker that takes nothing for so long is cut off (one whose interpreter is held by C code takes nothing either)."""

Socket = web.WebSocketResponse[bool]


class Link:
    """Sends messages to a worker; a closed socket makes sending do nothing."""

    def __init__(self, ws: Socket, request: web.Request) -> None:
        self._ws = ws
        self._transport = request.transport
        self._lock = asyncio.Lock()

    async def send(self, reply: Reply | dict[str, Any], echo: str | None = None) -> None:
        """Send a message; ``echo`` is the ``message_id`` of the request it answers."""
        await self._send(dumps(wire(reply, echo)))

    async def fail(self, error: EmqError, echo: str | None = None, **fields: Any) -> None:
        """Send an error."""
        await self._send(dumps({**frame(error, echo), **fields}))

    async def ping(self) -> None:
        """Ask whether the worker is awake, which also keeps proxies from closing a silent connection."""
        with suppress(ConnectionError, RuntimeError):
            await self._ws.ping()

    async def pong(self, data: bytes) -> None:
        """Answer the worker's own ping."""
        with suppress(ConnectionError, RuntimeError):
            await self._ws.pong(data)

    async def close(self, code: int, message: bytes) -> None:
        """Close the socket, waiting for the worker a moment only."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await self._ws.close(code=code, message=message)

    async def _send(self, text: str) -> None:
        try:
            async with self._lock, asyncio.timeout(STALLED_S):
                await self._ws.send_str(text)
        except TimeoutError:
            log.warning("a worker took nothing for %s s: cut off", STALLED_S)
            if self._transport is not None:
                self._transport.abort()
        except (ConnectionError, RuntimeError):
            pass  # it has gone; the reading side notices
