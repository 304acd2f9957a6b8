"""The events of one job, once over the wire and to any number of listeners here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Self

from broker.client.events import Event, Preview, ends
from broker.errors import EmqError
from broker.protocol.events import JobProgress


class Listener:
    """An async iterator over a job's events; it ends after the event that ends the job.

    Progress that was not read yet is replaced by newer, as is a preview.
    """

    def __init__(self, close: Callable[[Listener], None], previews: bool) -> None:
        self.previews = previews
        self._close = close
        self._items: deque[Event] = deque()
        self._preview: Preview | None = None
        self._wake = asyncio.Event()
        self._error: EmqError | None = None
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Preview:
        while True:
            if self._items:
                event = self._items.popleft()
                if ends(event):
                    self.close()
                return event
            if self._preview is not None:
                preview, self._preview = self._preview, None
                return preview
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()

    def close(self) -> None:
        """Hear no more."""
        self._ended = True
        self._wake.set()
        self._close(self)

    def offer(self, event: Event) -> None:
        """Bring an event."""
        if self._items and isinstance(event, JobProgress) and isinstance(self._items[-1], JobProgress):
            self._items.pop()
        self._items.append(event)
        self._wake.set()

    def offer_preview(self, preview: Preview) -> None:
        """Bring a preview."""
        self._preview = preview
        self._wake.set()

    def fail(self, error: EmqError) -> None:
        """End with an error, after what has come."""
        self._error = error
        self._wake.set()


class Feed:
    """What has come of one job, for listeners that come later, and where to go on after a reconnect."""

    def __init__(self, job_id: str, after: str | None = None, previews: bool = False) -> None:
        self.job_id = job_id
        self.last = after
        self.previews = previews
        self.listeners: set[Listener] = set()
        self.asked: str | None = None
        """The newest subscription's ``message_id``."""
        self.standing: asyncio.Future[None] | None = None
        """Done when the broker has confirmed or refused."""
        self._kept: list[Event] = []

    def join(self, listener: Listener) -> None:
        """Give a listener what has come and what will come."""
        for event in self._kept:
            listener.offer(event)
        self.listeners.add(listener)

    def take(self, event: Event) -> None:
        """Keep and spread an event of the wire."""
        self.last = event.event_id
        if self._kept and isinstance(event, JobProgress) and isinstance(self._kept[-1], JobProgress):
            self._kept.pop()
        self._kept.append(event)
        for listener in self.listeners:
            listener.offer(event)

    def take_preview(self, preview: Preview) -> None:
        """Spread a preview."""
        for listener in self.listeners:
            if listener.previews:
                listener.offer_preview(preview)

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return bool(self._kept) and ends(self._kept[-1])

    def stands(self) -> None:
        """The broker has confirmed."""
        if self.standing is not None and not self.standing.done():
            self.standing.set_result(None)

    def fail(self, error: EmqError) -> None:
        """End every listener, or refuse the one that waits for the subscription."""
        if self.standing is not None and not self.standing.done():
            self.standing.set_exception(error)
        for listener in self.listeners:
            listener.fail(error)
