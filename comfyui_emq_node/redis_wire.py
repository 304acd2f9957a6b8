"""A connection to Redis for the calls of every job: redis-py opens it, the calls then go over its bare transport.

Login, TLS, sentinels and the nodes of a cluster are redis-py's business. Its reading of replies, a task and a stream a
call, took a third of all that a job costs ComfyUI's interpreter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from typing import Any

from .resp import Incomplete, parse

LIMIT_S = 5.0


class Wire(asyncio.Protocol):
    """Sends commands and gives their replies, in order."""

    def __init__(self, connection: Any, transport: Any, limit_s: float) -> None:
        self._connection, self._transport, self._limit_s = connection, transport, limit_s
        self._rest = b""
        self._trips: deque[tuple[int, float, asyncio.Future[list[Any]]]] = deque()
        """Of each trip under way: how many replies it gets, when it began, and who waits."""
        self._limit: asyncio.TimerHandle | None = None
        self._unsent: list[bytes] = []
        self._sending: asyncio.TimerHandle | None = None
        """When the unsent are to go at the latest."""
        self._replies: list[Any] = []
        self.is_closed = False

    @classmethod
    async def over(cls, connection: Any, limit_s: float | None = None) -> Wire:
        """Open one of redis-py's connections, and take it over. Raises what redis-py raises.

        ``limit_s``: how long an answer may take, where that is not a few seconds.
        """
        await connection.connect()
        writer = getattr(connection, "_writer", None)
        if writer is None:
            raise ConnectionError("this redis-py is not known to the worker: install one that requirements.txt allows")
        wire = cls(connection, writer.transport, LIMIT_S if limit_s is None else limit_s)
        wire._transport.set_protocol(wire)
        return wire

    async def ask(self, commands: Sequence[bytes], patience_s: float = 0.0) -> list[Any]:
        """Send packed commands in one piece; an error reply is among the replies, not raised.

        With ``patience_s`` they wait so long for others, to go with them: each trip is a write to the server's disk.

        Raises:
            ConnectionError: it is closed; whether the commands were run is not known.
        """
        if self.is_closed:
            raise ConnectionError("the connection to Redis is closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()
        self._trips.append((len(commands), loop.time(), future))
        self._unsent += commands
        if not patience_s:
            self._send()
        elif self._sending is None:
            self._sending = loop.call_later(patience_s, self._send)
        if self._limit is None:
            self._limit = loop.call_later(self._limit_s, self._look, loop)
        return await future

    def _send(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the connection where the oldest trip takes too long: one timer now and then, not one for each trip."""
        self._limit = None
        if not self._trips:
            return
        left = self._trips[0][1] + self._limit_s - loop.time()
        if left <= 0:
            self._end(ConnectionError(f"Redis does not answer within {self._limit_s:g} s"))
        else:
            self._limit = loop.call_later(left, self._look, loop)

    def data_received(self, data: bytes) -> None:
        """Replies; a part of one waits for the rest."""
        data, at = self._rest + data, 0
        try:
            while self._trips:
                reply, at = parse(data, at)
                self._take(reply)
        except Incomplete:
            pass
        except ValueError as error:
            self._end(ConnectionError(str(error)))
        self._rest = data[at:]

    def _take(self, reply: Any) -> None:
        self._replies.append(reply)
        count, _, future = self._trips[0]
        if len(self._replies) == count:
            self._trips.popleft()
            replies, self._replies = self._replies, []
            if not future.done():
                future.set_result(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server has gone."""
        self._end(ConnectionError(str(exc) if exc else "Redis has closed the connection"))

    def _end(self, error: Exception) -> None:
        self.is_closed = True
        self._transport.close()
        for timer in (self._limit, self._sending):
            if timer is not None:
                timer.cancel()
        while self._trips:
            *_, future = self._trips.popleft()
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Close it; never raises."""
        self._end(ConnectionError("the connection to Redis is closed"))
        with contextlib.suppress(Exception):
            await self._connection.disconnect(nowait=True)
