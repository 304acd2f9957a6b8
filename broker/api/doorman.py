"""Connections that say nothing: a client has to send its first request's header soon, and it must not be long.

aiohttp waits for a header for ever. What comes after the first header is its own business: it closes connections
that idle between requests, and handlers bound how long they wait for bodies.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

HEADER_S = 10.0
MAX_HEADER = 32 * 1024
MAX_SILENT = 100
"""Connections that may be silent for longer than a second; beyond that the oldest is cut for a new one."""
_END = b"\r\n\r\n"


class Hall:
    """The connections of one listener whose first header is not complete."""

    def __init__(self, server: Callable[[], asyncio.Protocol], header_s: float = HEADER_S) -> None:
        """``server`` makes the protocol that serves a connection."""
        self._server = server
        self.header_s = header_s
        self._loop = asyncio.get_running_loop()
        self._waiting: OrderedDict[Doorman, float] = OrderedDict()

    def __call__(self) -> Doorman:
        """A connection's protocol."""
        return Doorman(self._server(), self)

    def enter(self, doorman: Doorman) -> None:
        """A connection has come."""
        now = self._loop.time()
        while len(self._waiting) >= MAX_SILENT and now - next(iter(self._waiting.values())) > 1:
            self._waiting.popitem(last=False)[0].cut()
        self._waiting[doorman] = now

    def leave(self, doorman: Doorman) -> None:
        """A connection has sent its header, or has gone."""
        self._waiting.pop(doorman, None)


class Doorman(asyncio.Protocol):
    """Stands before the real protocol until the first header is complete, then hands the connection over."""

    def __init__(self, inner: asyncio.Protocol, hall: Hall) -> None:
        self._inner = inner
        self._hall = hall
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._size = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start the clock."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(self._hall.header_s, self.cut)
        self._hall.enter(self)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Look for the header's end."""
        assert self._transport is not None
        self._size += len(data)
        # Empty lines may come before a request, and are no header.
        text = self._tail + data if self._tail else data.lstrip(b"\r\n")
        end = _END in text
        self._tail = text[-3:]
        if end:
            self._done()
            self._transport.set_protocol(self._inner)
        elif self._size > MAX_HEADER:
            self.cut()
            return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has gone before it said anything."""
        self._done()
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Passed on."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Passed on."""
        self._inner.resume_writing()

    def cut(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _done(self) -> None:
        self._hall.leave(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
