"""An auto-pipelining Redis client: whatever is asked in one turn of the event loop is written at once.

One connection, answers parsed by hiredis. What floor and EMQ are measured with: a client that waits for a reply before
it writes the next call makes every queue as slow as the loopback is.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import hiredis

from broker.queue.in_order import UNDER_WAY


class Mux(asyncio.Protocol):
    """One multiplexed connection."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(notEnoughData=self)
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._out: list[bytes] = []
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_exception(ConnectionError("Redis closed the connection"))
        self._waiting.clear()

    def call(self, *args: bytes | str | int) -> asyncio.Future[Any]:
        """Ask; the future gets the answer."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(hiredis.pack_command(args))  # type: ignore[arg-type]  # it takes integers, too
        future = self._loop.create_future()
        self._waiting.append(future)
        return future

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not self:
            future = self._waiting.popleft()
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def fcall(self, function: str, prefix: str, args: Any) -> Any:
        """Run a function with one key (``broker.queue.queue.Caller``)."""
        return await self.call("FCALL", function, 1, prefix, *args)

    async def fcalls(self, function: str, prefix: str, calls: Any) -> AsyncGenerator[Any]:
        """Run it for each of some arguments, two at once (``Caller``)."""
        sent = deque[asyncio.Future[Any]]()
        for args in calls:
            sent.append(self.call("FCALL", function, 1, prefix, *args))
            await asyncio.sleep(0)  # it is written
            if len(sent) == UNDER_WAY:
                yield await sent.popleft()
        while sent:
            yield await sent.popleft()

    def close(self) -> None:
        self._transport.close()


async def connect(url: str) -> Mux:
    """Connect to ``redis://host:port``."""
    at = urlsplit(url)
    assert at.hostname
    _, mux = await asyncio.get_running_loop().create_connection(Mux, at.hostname, at.port or 6379)
    return mux
