"""The events of jobs: log and wire put together, for every listener of this replica.

One hub a replica: however many clients listen to a job, its channel is subscribed once. ``subscription.py`` has the
rule that leaves no gap and no double, ``wire.py`` the connection.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from broker.errors import EmqError, NotFound, Unavailable
from broker.queue.queue import Answer, Queue
from broker.queue.seal import result_of
from broker.queue.subscription import (
    Event,
    Log,
    Preview,
    Reset,
    Subscription,
    first_message,
    parse_message,
    parse_pair,
)
from broker.queue.wire import Lines, Wire

__all__ = ["Event", "EventHub", "Preview", "Reset", "Subscription"]

log = logging.getLogger(__name__)

OPEN_S = 5.0
"""How long a new subscription waits for its channel."""
KEEP_S = 5.0
"""How often counters are compared, and the queue is told who watches previews (it believes that for 15 s)."""
BATCH = 500
"""Counters read at once."""
LOGS = 64
"""Logs read at once."""


class Source(Lines, Protocol):
    """Reads several keys at one moment, besides what the wire needs."""

    async def read(self, key: str, *commands: Sequence[bytes | str | int]) -> list[Any]:
        """Answers of reading commands."""


class _Feed:
    """One job that somebody here listens to."""

    def __init__(self, hub: EventHub, job_id: str) -> None:
        self.job_id = job_id
        self.listeners: set[Subscription] = set()
        self.open = asyncio.Event()
        self.last_preview: bytes | None = None
        self.last_progress: Event | None = None
        self._hub = hub
        self._frame: tuple[str, dict[int, bytes]] = ("", {})

    @property
    def previews(self) -> bool:
        return any(listener.previews for listener in self.listeners)

    @property
    def px(self) -> int:
        """The largest previews that are wished for, in pixels; 0: as they come."""
        return max((listener.px for listener in self.listeners if listener.previews), default=0)

    async def ready(self) -> None:
        try:
            async with asyncio.timeout(OPEN_S):
                await self.open.wait()
        except TimeoutError:
            raise Unavailable("The job's events cannot be reached; try again.", reason="no channel") from None

    async def log(self) -> Log:
        """What the server keeps; progress that only passed through here may be newer than what is stored."""
        log, seen = await self._hub.read_log(self.job_id), self.last_progress
        if seen is None or not seen.event_id.startswith(f"{log.epoch}."):
            return log
        stored = log.progress
        return log if stored and (stored.n, stored.p) >= (seen.n, seen.p) else replace(log, progress=seen)

    async def record(self) -> Answer:
        return await self._hub.queue.job(self.job_id)

    def part(self, raw: bytes) -> Preview | None:
        """Take a part of a preview, ``<frame>-<part>-<parts>\\n<bytes>``; the whole frame when it was the last."""
        head, _, data = raw.partition(b"\n")
        frame, part, parts = head.decode().split("-")
        # A worker's numbers start anew with each claim, so the same number can be another frame.
        if self._frame[0] != frame or int(part) in self._frame[1]:
            self._frame = (frame, {})
        self._frame[1][int(part)] = data
        if len(self._frame[1]) < int(parts):
            return None
        whole = b"".join(data for _, data in sorted(self._frame[1].items()))
        self._frame = ("", {})
        self.last_preview = whole
        return Preview(whole)


class EventHub:
    """The replica's listener. ``start`` needs a configured pool (``Queue.configure`` was called)."""

    def __init__(self, source: Source, queue: Queue) -> None:
        self.queue = queue
        self._source = source
        self._feeds: dict[str, _Feed] = {}
        self._epoch = ""
        self._wire = Wire(source, queue.prefix, self._on_message, self._on_subscribed, self._on_broken)
        self._asked: list[tuple[str, asyncio.Future[Any]]] = []
        """Logs that somebody waits for and that no read under way will bring."""
        self._reading: asyncio.Task[None] | None = None
        self._watch_now = asyncio.Event()
        self._told: dict[str, int] = {}
        """Jobs of which the queue was told that somebody here watches, and how large the pictures may be."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Learn the deployment and begin to listen. Raises ``Unavailable``."""
        self._epoch = await self._deployment() or ""
        self._wire.start()
        self._task = asyncio.create_task(self._keep(), name="events-watch")

    async def stop(self) -> None:
        """End every subscription and close the connection."""
        for feed in list(self._feeds.values()):
            for listener in list(feed.listeners):
                listener.close()
        tasks = [task for task in (self._task, self._reading) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _, asked in self._asked:
            asked.cancel()
        self._task = None
        await self._wire.stop()

    def subscribe(
        self,
        job_id: str,
        after: str | None = None,
        previews: bool = False,
        *,
        px: int = 0,
        until_end: bool = False,
    ) -> Subscription:
        """Listen to a job from behind the event ``after`` (from the first when ``None``).

        Whether the listener may see the job is for the caller to know. ``px`` wishes for larger previews than 256
        pixels; ``until_end`` ends the iteration after the last event of the round.
        """
        return Subscription(
            job_id,
            lambda listener: self._join(job_id, listener),
            lambda listener: self._part(job_id, listener),
            after=after,
            previews=previews,
            px=px,
            until_end=until_end,
        )

    def result(self, job_id: str, result: Any) -> Any:
        """The result in a ``complete_job`` event, decrypted."""
        if not isinstance(result, dict) or "sealed" not in result:
            return result
        sealed = json.dumps(result, separators=(",", ":"))
        return json.loads(self.queue.seal.open_json(sealed.encode(), result_of(job_id)))

    def last_preview(self, job_id: str) -> bytes | None:
        """The newest preview of a job that somebody here watches."""
        feed = self._feeds.get(job_id)
        return feed.last_preview if feed else None

    async def preview(self, job_id: str, wait_s: float = 1.0, px: int = 0) -> bytes | None:
        """The newest preview, asking the worker for one and waiting a moment when nobody here watches yet.

        Raises ``NotFound``, ``Unavailable``.
        """
        known = self.last_preview(job_id)
        if known is not None:
            return known
        async with self.subscribe(job_id, previews=True, px=px) as listener:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    async for item in listener:
                        if isinstance(item, Preview):
                            return item.data
        return None

    # -- listeners come and go ----------------------------------------------------------------------------------------

    def _join(self, job_id: str, listener: Subscription) -> _Feed:
        feed = self._feeds.get(job_id)
        if feed is None:
            feed = self._feeds[job_id] = _Feed(self, job_id)
        watched, px = feed.previews, feed.px
        feed.listeners.add(listener)
        self._wire.want(self._channel("ev", job_id))
        if listener.previews and not watched:
            self._wire.want(self._channel("pv", job_id))
        if listener.previews and (not watched or feed.px > px):
            self._told.pop(job_id, None)
            self._watch_now.set()
        if listener.previews and feed.last_preview is not None:
            listener.offer_preview(Preview(feed.last_preview))
        return feed

    def _part(self, job_id: str, listener: Subscription) -> None:
        feed = self._feeds[job_id]
        feed.listeners.discard(listener)
        if not feed.previews:
            self._wire.drop(self._channel("pv", job_id))
            feed.last_preview = None
        if not feed.listeners:
            self._wire.drop(self._channel("ev", job_id))
            del self._feeds[job_id]

    def _channel(self, kind: str, job_id: str) -> str:
        return f"{self.queue.prefix}{kind}:{self._epoch}:{job_id}"

    # -- the wire -----------------------------------------------------------------------------------------------------

    def _feed_of(self, channel: str) -> tuple[str, _Feed | None]:
        """Kind (``ev``, ``pv``) and feed of a channel; no feed for one that nobody wants any more."""
        kind, epoch, job_id = channel.removeprefix(self.queue.prefix).split(":", 2)
        return kind, self._feeds.get(job_id) if epoch == self._epoch else None

    def _on_message(self, channel: str, raw: bytes) -> None:
        kind, feed = self._feed_of(channel)
        if feed is None:
            return
        try:
            if kind == "ev":
                event = parse_message(raw, self._epoch)
                if event.p:
                    feed.last_progress = event
                for listener in feed.listeners:
                    listener.offer(event)
            elif preview := feed.part(raw):
                for listener in feed.listeners:
                    if listener.previews:
                        listener.offer_preview(preview)
        except ValueError:
            log.warning("a message on %s cannot be read", channel)

    def _on_subscribed(self, channel: str) -> None:
        kind, feed = self._feed_of(channel)
        if feed is not None and kind == "ev":
            feed.open.set()
            for listener in feed.listeners:
                listener.catch_up()

    def _on_broken(self) -> None:
        for feed in self._feeds.values():
            feed.open.clear()

    # -- the log ------------------------------------------------------------------------------------------------------

    async def read_log(self, job_id: str) -> Log:
        """What the server keeps of a job's events. Raises ``NotFound``, ``Unavailable``.

        Whoever asks while a read is under way is in the next one, so thousands that come together need few.
        """
        asked: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.append((job_id, asked))
        if self._reading is None:
            self._reading = asyncio.create_task(self._read_logs(), name="events-logs")
        epoch, record, lines, stored = await asked
        if record[0] is None or epoch is None:
            raise NotFound(f"There is no job {job_id}.", what=f"job {job_id}")
        name = epoch.decode()
        self._move(name)
        if record[1] == b"1" and record[2] and not lines:
            lines = [first_message(record[2])]
        events = [parse_message(line, name) for line in lines]
        tenant = (record[3] or b"").decode()
        return Log(name, events, _progress(stored, name), int(record[1] or 0), record[0].decode(), tenant)

    async def _read_logs(self) -> None:
        waiting: list[tuple[str, asyncio.Future[Any]]] = []
        try:
            while self._asked:
                waiting, self._asked = self._asked[:LOGS], self._asked[LOGS:]
                await self._answer(waiting)
        finally:
            self._reading = None
            for _, asked in waiting:
                asked.cancel()

    async def _answer(self, waiting: Sequence[tuple[str, asyncio.Future[Any]]]) -> None:
        prefix, jobs = self.queue.prefix, list(dict.fromkeys(job_id for job_id, _ in waiting))
        commands: list[Sequence[bytes | str | int]] = [("HGET", f"{prefix}meta", "deployment")]
        for job_id in jobs:
            commands.append(("HMGET", f"{prefix}j:{job_id}", "status", "events", "first", "tenant"))
            commands.append(("LRANGE", f"{prefix}e:{job_id}", 0, -1))
            commands.append(("GET", f"{prefix}pr:{job_id}"))
        try:
            epoch, *found = await self._source.read(prefix, *commands)
        except Exception as error:
            also, self._asked = self._asked, []  # who came meanwhile need not wait for a failure of its own
            for _, asked in (*waiting, *also):
                if not asked.done():
                    asked.set_exception(error)
            return
        logs = {job_id: (epoch, *found[3 * i : 3 * i + 3]) for i, job_id in enumerate(jobs)}
        for job_id, asked in waiting:
            if not asked.done():
                asked.set_result(logs[job_id])

    async def _deployment(self) -> str | None:
        prefix = self.queue.prefix
        (epoch,) = await self._source.read(prefix, ("HGET", f"{prefix}meta", "deployment"))
        return epoch.decode() if epoch else None

    def _move(self, epoch: str) -> None:
        """Follow a pool that was made anew (its data was lost or deleted): its channels have other names."""
        if epoch == self._epoch:
            return
        if self._epoch:
            log.warning("the pool has a new deployment id, %s: its data was lost or replaced", epoch)
        jobs = list(self._feeds)
        for job_id in jobs:
            self._wire.drop(self._channel("ev", job_id))
            self._wire.drop(self._channel("pv", job_id))
        self._epoch = epoch
        for job_id, feed in self._feeds.items():
            feed.open.clear()
            self._wire.want(self._channel("ev", job_id))
            if feed.previews:
                self._wire.want(self._channel("pv", job_id))

    # -- at intervals -------------------------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Say who watches previews, and look whether the pool is still the one it was and every message came."""
        while True:
            self._watch_now.clear()
            with suppress(EmqError):
                await self._tell_watched()
                epoch = await self._deployment()
                if epoch:
                    self._move(epoch)
                await self._compare()
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_S):
                    await self._watch_now.wait()

    async def _compare(self) -> None:
        """Find listeners whose events did not come: nothing after it would show the last one's loss."""
        feeds = list(self._feeds.values())
        for batch in (feeds[i : i + BATCH] for i in range(0, len(feeds), BATCH)):
            known = [(listener, listener.newest) for feed in batch for listener in feed.listeners]
            keys = (("HGET", f"{self.queue.prefix}j:{feed.job_id}", "events") for feed in batch)
            read = await self._source.read(self.queue.prefix, *keys)
            counters = {feed.job_id: int(counter or 0) for feed, counter in zip(batch, read, strict=True)}
            for listener, before in known:
                if listener.newest == before != counters[listener.job_id]:
                    listener.catch_up()

    async def _tell_watched(self) -> None:
        wishes = {job_id: feed.px for job_id, feed in self._feeds.items() if feed.previews}
        self._told = {job_id: px for job_id, px in self._told.items() if job_id in wishes}
        for job_id, px in wishes.items():
            with suppress(NotFound):
                again = self._told.get(job_id) == px
                await self.queue.watch(job_id, px=px or None, again=again)
                self._told[job_id] = px


def _progress(stored: bytes | None, epoch: str) -> Event | None:
    """The stored progress, ``<n>-<p>\\n<data JSON>``."""
    if not stored:
        return None
    head, _, data = stored.partition(b"\n")
    if parse_pair(head.decode()) is None:
        return None
    return parse_message(head + b"\nupdate_job_progress\n" + data, epoch)
