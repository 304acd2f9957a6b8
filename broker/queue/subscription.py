"""One listener's view of one job: every event after a given one, in order, none missing, none twice.

An event's id is the pair ``n-p``. The log holds the events with p = 0 and no holes in n; the wire carries all of them
and, with p > 0, progress that belongs behind the log's n-th event. A listener takes what its channel brings if it
follows what it took last, and reads the log first if something is missing between the two.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from broker.errors import Unavailable
from broker.flag import Flag
from broker.queue.queue import Answer

INBOX = 256
"""Undelivered events of one listener; beyond them it forgets them and reads the log."""
TERMINAL = frozenset({"completed", "failed", "cancelled"})

Id = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a job; ``event_id`` is what a client may send back as ``after``."""

    type: str
    event_id: str
    data: dict[str, Any]
    n: int
    p: int

    @property
    def ends_round(self) -> bool:
        """Whether the job is over with this event (a forced retry would start a new round)."""
        if self.type == "fail_job":
            return not self.data.get("will_retry")
        return self.type == "complete_job" or (self.type == "job_update" and self.data.get("status") == "cancelled")


@dataclass(frozen=True, slots=True)
class Preview:
    """A live preview in ComfyUI's format 4."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Reset:
    """Events that can no longer be given; the job's record stands for them. Go on after ``event_id``."""

    event_id: str
    record: Answer


@dataclass(frozen=True, slots=True)
class Log:
    """What the server keeps of a job's events, at one moment."""

    epoch: str
    events: list[Event]
    progress: Event | None
    counter: int
    status: str
    tenant: str


class Feed(Protocol):
    """Where a subscription gets its job from; the hub's side of it."""

    job_id: str

    async def ready(self) -> None:
        """Wait until the channel is open. Raises ``Unavailable``."""

    async def log(self) -> Log:
        """Read the log. Raises ``NotFound``, ``Unavailable``."""

    async def record(self) -> Answer:
        """Read the record. Raises ``NotFound``, ``Unavailable``."""


class Subscription:
    """An async iterator of :class:`Event`, :class:`Preview` and :class:`Reset`; use it as a context manager.

    Entering raises ``NotFound`` and ``Unavailable``. While Redis is away the iterator waits. It raises ``NotFound``
    when the job's record is gone, and ends when the hub stops, or, with ``until_end``, after a round's last event.
    """

    def __init__(
        self,
        job_id: str,
        open_feed: Callable[[Subscription], Feed],
        close_feed: Callable[[Subscription], None],
        *,
        after: str | None = None,
        previews: bool = False,
        px: int = 0,
        until_end: bool = False,
    ) -> None:
        self.job_id = job_id
        self.previews, self.px = previews, px
        self._open, self._close = open_feed, close_feed
        self._until_end = until_end
        self._epoch, self._last = parse_id(after)
        self._log: deque[Event | Reset] = deque()
        self._inbox: deque[Event] = deque()
        self._preview: Preview | None = None
        self._stale = True
        self._looked_for: Id | None = None
        self._over = False
        self._closed = False
        self._wake = Flag()
        self._feed: Feed | None = None

    # -- the listener's side ------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Subscription:
        self._feed = self._open(self)
        try:
            await self._read_log(self._feed)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the subscription; a waiting iterator stops."""
        self._closed = True
        self._wake.set()
        if self._feed is not None:
            self._feed = None
            self._close(self)

    def __aiter__(self) -> AsyncIterator[Event | Preview | Reset]:
        return self

    async def __anext__(self) -> Event | Preview | Reset:
        while self._feed is not None and not self._closed:
            item = self._take()
            if item is not None:
                return item
            if self._over and self._until_end:
                break
            if self._stale:
                await self._catch_up(self._feed)
            else:
                self._wake.clear()
                await self._wake.wait()
        raise StopAsyncIteration

    def _take(self) -> Event | Preview | Reset | None:
        """What can be delivered now; sets ``_stale`` when the log must be read first."""
        if self._log:
            item = self._log.popleft()
            self._last = id_of(item)
            return item
        while self._inbox and not self._stale and not (self._over and self._until_end):
            event = self._inbox[0]
            here = (event.n, event.p)
            if here > self._last:
                if self._misses_something(event) and self._looked_for != here:
                    self._looked_for = here
                    self._stale = True
                    return None
                self._last = here
                self._over = event.ends_round
                return self._inbox.popleft()
            self._inbox.popleft()
        preview, self._preview = self._preview, None
        return preview

    def _misses_something(self, event: Event) -> bool:
        return event.n > self._last[0] + (1 if event.p == 0 else 0)

    # -- the hub's side -----------------------------------------------------------------------------------------------

    def offer(self, event: Event) -> None:
        """Bring an event from the channel. Progress replaces progress that was not delivered yet."""
        if event.p and self._inbox and self._inbox[-1].p:
            self._inbox[-1] = event
        else:
            self._inbox.append(event)
        if len(self._inbox) > INBOX:
            self._inbox.clear()
            self._stale = True
        self._wake.set()

    @property
    def newest(self) -> int:
        """The n of the newest event that has come here, delivered or not."""
        waiting = [id_of(events[-1]) for events in (self._log, self._inbox) if events]
        return max([self._last, *waiting])[0]

    def offer_preview(self, preview: Preview) -> None:
        """Bring a preview; it replaces one that was not delivered yet."""
        self._preview = preview
        self._wake.set()

    def catch_up(self) -> None:
        """Say that the channel may have missed something."""
        self._stale = True
        self._wake.set()

    # -- the log ------------------------------------------------------------------------------------------------------

    async def _catch_up(self, feed: Feed) -> None:
        """Read the log, waiting while Redis is away."""
        pause = 0.1
        while not self._closed:
            try:
                return await self._read_log(feed)
            except Unavailable:
                await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
                pause = min(pause * 2, 2.0)
        return None

    async def _read_log(self, feed: Feed) -> None:
        await feed.ready()
        # Before the read: what happens during it must be looked at again.
        self._stale = False
        try:
            log = await feed.log()
            if self._reaches(log):
                self._add(log)
            else:
                await self._reset(feed, log.epoch)
        except BaseException:
            self._stale = True
            raise

    def _reaches(self, log: Log) -> bool:
        """Whether the log has everything after the last event that was taken."""
        if self._epoch is None and self._last == (0, 0):
            self._epoch = log.epoch
        if self._epoch != log.epoch or self._last[0] > log.counter:
            return False
        first = log.events[0].n if log.events else log.counter + 1
        return self._last[0] + 1 >= first

    def _add(self, log: Log) -> None:
        self._log.extend(event for event in log.events if (event.n, 0) > self._last)
        progress = log.progress
        if progress is not None and progress.n == log.counter and (progress.n, progress.p) > self._last:
            self._log.append(progress)
        self._over = log.status in TERMINAL

    async def _reset(self, feed: Feed, epoch: str) -> None:
        record = await feed.record()
        n, p = record.number("events"), 0
        stored = parse_pair(record.text("progress_id"))
        if stored is not None and stored[0] == n:
            p = stored[1]
        self._epoch = epoch
        self._inbox.clear()
        self._log.clear()
        self._log.append(Reset(f"{epoch}.{n}-{p}", record))
        self._over = record.text("status") in TERMINAL


def id_of(item: Event | Reset) -> Id:
    """The position that an item brings its listener to."""
    if isinstance(item, Event):
        return item.n, item.p
    _, found = parse_id(item.event_id)
    return found


def parse_pair(text: str) -> Id | None:
    """Read ``n-p``."""
    n, _, p = text.partition("-")
    return (int(n), int(p)) if n.isdecimal() and p.isdecimal() else None


def parse_id(text: str | None) -> tuple[str | None, Id]:
    """Read a client's event id; one that cannot be read is of no epoch there is (its listener gets a reset)."""
    if not text:
        return None, (0, 0)
    epoch, _, rest = text.rpartition(".")
    pair = parse_pair(rest)
    return (epoch, pair) if pair is not None else ("", (0, 0))


def first_message(first: bytes) -> bytes:
    """A job's first event as it was published, from the record's ``first`` (``<status> <position>``).

    Most jobs wait with no other, so it is put in the log only with the second one.
    """
    status, _, position = first.partition(b" ")
    data = b'{"status":"%b","attempt":0,"worker_id":null,"position":%b,"reason":null}' % (status, position)
    return b"1-0\njob_update\n" + data


def parse_message(raw: bytes, epoch: str) -> Event:
    """Read an event as it is published and logged: ``<n>-<p>\\n<type>\\n<data JSON>``. Raises ``ValueError``."""
    head, kind, data = raw.split(b"\n", 2)
    pair = parse_pair(head.decode())
    if pair is None:
        raise ValueError(f"not an event id: {head!r}")
    return Event(kind.decode(), f"{epoch}.{head.decode()}", json.loads(data), *pair)
