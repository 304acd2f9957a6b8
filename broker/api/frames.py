"""A socket's incoming messages, read ahead within bounds, so that submits that wait together go to Redis together."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import WSCloseCode, WSMsgType, hdrs, web

from broker.access.credentials import BEARER_PROTOCOL
from broker.flag import Flag

PROTOCOL = "emq.v1"
READ_AHEAD = 256

Socket = web.WebSocketResponse[bool]


def transport_of(ws: Socket) -> asyncio.Transport | None:
    """A socket's transport, while it has one."""
    request = ws._req  # aiohttp shows the transport of a socket nowhere else
    return request.transport if request is not None else None


class Frames:
    """Messages in order; ``limit`` is the largest one and bounds all that were read ahead, in bytes."""

    __slots__ = ("_bytes", "_changed", "_ended", "_items", "_limit", "_room", "_task", "_ws", "too_large")

    def __init__(self, ws: Socket, limit: int) -> None:
        self.too_large = False
        self._ws = ws
        self._limit = limit
        self._bytes = 0
        self._items: list[tuple[bool, bytes]] = []  # few at any time, and a deque is large while it is empty
        self._changed = Flag()
        self._room = Flag(on=True)
        self._ended = False
        self._task = asyncio.create_task(self._read(), name="socket-reader")

    async def next(self) -> tuple[bool, bytes] | None:
        """The next message as ``(is text, data)``; ``None`` after the last one."""
        while not self._items and not self._ended:
            self._changed.clear()
            await self._changed.wait()
        return self.take()

    def take(self) -> tuple[bool, bytes] | None:
        """The next message if one is here already."""
        if not self._items:
            return None
        item = self._items.pop(0)
        self._bytes -= len(item[1])
        if len(self._items) < READ_AHEAD // 2 and self._bytes <= self._limit // 2:
            self._room.set()
        return item

    async def stop(self) -> None:
        """Read no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        try:
            async for msg in self._ws:
                if msg.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                    continue
                if len(msg.data) > self._limit:
                    self.too_large = True
                    return
                self._add(msg.type is WSMsgType.TEXT, msg.data)
                await self._room.wait()
        finally:
            self._ended = True
            self._changed.set()

    def _add(self, text: bool, data: bytes) -> None:
        self._items.append((text, data))
        self._bytes += len(data)
        if len(self._items) >= READ_AHEAD or self._bytes > self._limit:
            self._room.clear()
        self._changed.set()


def offered(request: web.Request) -> tuple[str, ...]:
    """The subprotocol that is answered: ``emq.v1``; a credential only to who offers nothing else.

    Browsers close a socket whose answer names none of what they offered.
    """
    names = [name.strip() for name in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")]
    return (names[0],) if len(names) == 1 and names[0].startswith(BEARER_PROTOCOL) else (PROTOCOL,)


async def cut_off(ws: Socket, request: web.Request) -> None:
    """Close a socket whose credential has ended (1008), also one whose client takes and answers nothing."""
    with contextlib.suppress(TimeoutError, ConnectionError, RuntimeError):
        async with asyncio.timeout(1):
            await ws.close(code=WSCloseCode.POLICY_VIOLATION, message=b"the credential has ended")
    if request.transport is not None:
        request.transport.abort()
