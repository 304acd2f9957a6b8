"""The live channels of one pool: a supervised pub/sub connection that knows when it missed something.

Three facts make the supervision necessary: messages that are published while the connection is broken are lost, a
server that froze looks like one that has nothing to say, and a client that subscribes anew by itself tells nobody.
So this one hears its own echo every second, gives a connection up after 3 s of silence, and reports every confirmed
subscription: whoever listens reads the log then.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from broker.errors import EmqError, Unavailable

log = logging.getLogger(__name__)

ECHO_S = 1.0
SILENT_S = 3.0
"""A connection without even its echo for this long is dead."""


class Line(Protocol):
    """One pub/sub connection; ``broker.queue.channels.Channels`` is the real one."""

    async def subscribe(self, channel: str) -> None:
        """Ask for a channel."""

    async def unsubscribe(self, channel: str) -> None:
        """Give it back."""

    async def read(self, timeout_s: float) -> tuple[str, str, bytes] | None:
        """The next ``(kind, channel, data)``."""

    async def close(self) -> None:
        """Close the connection."""


class Lines(Protocol):
    """Opens pub/sub connections and publishes; ``broker.queue.connection.Connection`` is the real one."""

    async def channels(self, key: str) -> Line:
        """A new connection to the server that has ``key``."""

    async def publish(self, channel: str, data: bytes) -> None:
        """Publish on a sharded channel."""


class Wire:
    """Keeps subscriptions alive; calls back in the event loop."""

    def __init__(
        self,
        lines: Lines,
        prefix: str,
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[str], None],
        on_broken: Callable[[], None],
    ) -> None:
        """``on_subscribed`` is called at every confirmation, the first and those after a break (``on_broken``)."""
        self._lines = lines
        self._prefix = prefix
        self._on_message = on_message
        self._on_subscribed = on_subscribed
        self._on_broken = on_broken
        self._echo = f"{prefix}echo:{secrets.token_hex(8)}"
        self._wanted: set[str] = set()
        self._leaving: Counter[str] = Counter()
        """Channels given back, and how often the server is still to confirm it."""
        self._requests: asyncio.Queue[tuple[bool, str]] = asyncio.Queue()
        self._heard = 0.0
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin to connect."""
        self._task = asyncio.create_task(self._run(), name="events-wire")

    async def stop(self) -> None:
        """Close the connection."""
        self._stopped = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def want(self, channel: str) -> None:
        """Subscribe, now and after every break."""
        if channel not in self._wanted:
            self._wanted.add(channel)
            self._requests.put_nowait((True, channel))

    def drop(self, channel: str) -> None:
        """Unsubscribe."""
        if channel in self._wanted:
            self._wanted.discard(channel)
            self._requests.put_nowait((False, channel))

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause = 0.1
        while not self._stopped:  # Python 3.11's TaskGroup forgets a cancel that comes together with an error
            started = time.monotonic()
            try:
                await self._live()
            except* EmqError as errors:
                log.warning("the events' connection broke: %s", _reason(errors))
            except* Exception:
                log.exception("the events' connection failed")
            self._on_broken()
            pause = 0.1 if time.monotonic() - started > 10 else min(pause * 2, 1.0)
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311

    async def _live(self) -> None:
        """One connection's life; ends with an error."""
        line = await self._lines.channels(self._prefix)
        try:
            self._requests = asyncio.Queue()
            self._leaving.clear()
            for channel in (self._echo, *self._wanted):
                self._requests.put_nowait((True, channel))
            self._heard = time.monotonic()
            async with asyncio.TaskGroup() as tasks:
                first = await self._send_next(line)
                assert first == self._echo
                tasks.create_task(self._read(line))
                tasks.create_task(self._send(line))
                tasks.create_task(self._beat())
        finally:
            await line.close()

    async def _send(self, line: Line) -> None:
        while True:
            await self._send_next(line)

    async def _send_next(self, line: Line) -> str:
        wanted, channel = await self._requests.get()
        if wanted:
            await line.subscribe(channel)
        else:
            self._leaving[channel] += 1
            await line.unsubscribe(channel)
        return channel

    async def _beat(self) -> None:
        while True:
            # A beat that could not be sent is a beat that is not heard.
            with suppress(EmqError):
                await self._lines.publish(self._echo, b"")
            await asyncio.sleep(ECHO_S)

    async def _read(self, line: Line) -> None:
        while True:
            message = await line.read(0.5)
            if message is not None:
                self._heard = time.monotonic()
                self._handle(*message)
            elif time.monotonic() - self._heard > SILENT_S:
                raise Unavailable("The events' connection is silent.", reason="silent")

    def _handle(self, kind: str, channel: str, data: bytes) -> None:
        if channel == self._echo:
            return
        if kind == "message":
            self._on_message(channel, data)
        elif kind == "subscribed":
            self._on_subscribed(channel)
        elif channel in self._leaving:
            self._leaving[channel] -= 1
            if not self._leaving[channel]:
                del self._leaving[channel]
        elif channel in self._wanted:
            # Nobody here asked for that: the cluster moved the slot to another node.
            raise Unavailable("The pool's slot moved.", reason="slot moved")


def _reason(errors: BaseExceptionGroup[EmqError]) -> str:
    found: list[str] = []
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            found.append(_reason(error))
        else:
            found.append(str(error.details.get("reason") or error))
    return ", ".join(found)
