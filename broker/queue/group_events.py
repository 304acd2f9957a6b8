"""Groups that have ended: told to every listener of this replica, once for each time the last open job ends.

The message on the wire only says that there is news; what is told is the group's figures, read then. So nothing is
missed when a connection breaks: whoever listens reads again as soon as it stands.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Protocol

from broker.errors import Unavailable
from broker.queue.queue import Answer, Queue
from broker.queue.wire import Lines, Wire

OPEN_S = 5.0
"""How long a new listener waits for its channel."""


class Source(Lines, Protocol):
    """Reads keys, besides what the wire needs."""

    async def read(self, key: str, *commands: Any) -> list[Any]:
        """Answers of reading commands."""


class _Listener:
    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.news = asyncio.Event()


class GroupHub:
    """The replica's listener to groups; it connects with the first one that somebody follows."""

    def __init__(self, source: Source, queue: Queue) -> None:
        self._source, self._queue = source, queue
        self._listeners: dict[str, set[_Listener]] = {}
        self._open: set[str] = set()
        self._wire: Wire | None = None

    async def stop(self) -> None:
        """Close the connection."""
        if self._wire is not None:
            await self._wire.stop()

    async def follow(self, tenant: str, group: str) -> AsyncGenerator[Answer, None]:
        """A group's figures each time its last open job ends, first of all when that has happened already.

        Raises ``NotFound`` for a group that is not there, ``Unavailable`` when the channel cannot be reached.
        """
        await self._queue.group(tenant, group)
        channel = await self._channel(tenant, group)
        listener, told = self._join(channel), 0
        try:
            await self._opened(listener)
            while True:
                listener.news.clear()
                answer = await self._read(tenant, group)
                ended = answer.number("ended")
                if ended > told and not answer.number("open"):
                    told = ended
                    yield answer
                await listener.news.wait()
        finally:
            self._leave(channel, listener)

    async def _read(self, tenant: str, group: str) -> Answer:
        while True:
            try:
                return await self._queue.group(tenant, group)
            except Unavailable:
                await asyncio.sleep(0.5)

    async def _channel(self, tenant: str, group: str) -> str:
        prefix = self._queue.prefix
        (deployment,) = await self._source.read(prefix, ("HGET", f"{prefix}meta", "deployment"))
        return f"{prefix}gv:{(deployment or b'').decode()}:{tenant}:{group}"

    async def _opened(self, listener: _Listener) -> None:
        try:
            async with asyncio.timeout(OPEN_S):
                await listener.open.wait()
        except TimeoutError:
            raise Unavailable("The group's events cannot be reached; try again.", reason="no channel") from None

    # -- listeners and the wire ---------------------------------------------------------------------------------------

    def _join(self, channel: str) -> _Listener:
        if self._wire is None:
            self._wire = Wire(self._source, self._queue.prefix, self._on_message, self._on_subscribed, self._open.clear)
            self._wire.start()
        listener = _Listener()
        self._listeners.setdefault(channel, set()).add(listener)
        self._wire.want(channel)
        if channel in self._open:
            listener.open.set()
        return listener

    def _leave(self, channel: str, listener: _Listener) -> None:
        listeners = self._listeners[channel]
        listeners.discard(listener)
        if not listeners:
            del self._listeners[channel]
            self._open.discard(channel)
            if self._wire is not None:
                self._wire.drop(channel)

    def _on_message(self, channel: str, _: bytes) -> None:
        for listener in self._listeners.get(channel, ()):
            listener.news.set()

    def _on_subscribed(self, channel: str) -> None:
        if channel in self._listeners:
            self._open.add(channel)
        for listener in self._listeners.get(channel, ()):
            listener.open.set()
            listener.news.set()
