"""Many calls of one function in their order: each is sent while Redis still works on the one before it.

Calls on several connections may overtake each other, so these share one, and Redis does not wait for its caller between
two of them. Only for calls that may be repeated: when the connection fails, what was not answered is asked again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from typing import Any

from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from broker.errors import QueueFull, Unavailable
from broker.queue.refusals import cancellable

UNDER_WAY = 2
"""Calls that are sent and not answered."""
STEP_S = 3.0
"""A step of the connection may take so long: it is opened, takes a call, has an answer."""

Args = Sequence[bytes | str]
Refusal = Unavailable | QueueFull
Ask = Callable[[Args], Awaitable[Any]]


async def in_order(ask: Ask, calls: Iterable[Args], stream: Stream | None = None) -> AsyncGenerator[Any]:
    """The answer of each call, or the refusal that it ended with; no call begins after a refusal.

    ``ask`` makes one by itself: all of them without a ``stream``, else those that it failed. What it raises besides
    refusals is raised.
    """
    left, sent = iter(calls), deque[Args]()
    if stream is not None:
        try:
            async with aclosing(stream.answers(left, sent)) as answers:
                async for answer in answers:
                    yield answer
        except (RedisError, OSError, TimeoutError):
            pass  # whatever it was, `ask` knows what to do about it
        else:
            return
    refused = False
    while sent or not refused:  # what was sent may be in, so it is asked whatever the one before it was told
        args = sent.popleft() if sent else next(left, None)
        if args is None:
            return
        try:
            answer = await ask(args)
        except (Unavailable, QueueFull) as refusal:
            answer, refused = refusal, True
        yield answer


class Stream:
    """Sends calls over one connection of a pool."""

    def __init__(self, pool: ConnectionPool, command: Sequence[str | int], observe: Callable[[float], None]) -> None:
        """``command``: what comes before each call's arguments. ``observe`` is told how long each call took."""
        self._pool, self._command, self._observe = pool, command, observe

    async def answers(self, calls: Iterator[Args], sent: deque[Args]) -> AsyncGenerator[Any]:
        """The answers; ``sent`` has the calls that have none. Raises what redis-py raises, and ``TimeoutError``."""
        connection = await _step(self._pool.get_connection())  # type: ignore[no-untyped-call]
        began = deque[float]()

        async def answer() -> Any:
            found = await _step(connection.read_response())
            sent.popleft()
            self._observe(time.monotonic() - began.popleft())
            return found

        try:
            for args in calls:
                sent.append(args)
                began.append(time.monotonic())
                await _step(connection.send_command(*self._command, *args))
                if len(sent) == UNDER_WAY:
                    yield await answer()
            while sent:
                yield await answer()
        finally:
            if sent:  # its answers are nobody's
                await connection.disconnect(nowait=True)
            await self._pool.release(connection)


async def _step(awaitable: Awaitable[Any]) -> Any:
    with cancellable():
        async with asyncio.timeout(STEP_S):
            return await awaitable
