"""One client's WebSocket: requests in order, one writer, subscriptions."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from broker.access.audit import is_audited, named
from broker.access.identity import Identity, Scope
from broker.access.limits import TokenBucket
from broker.api import commands
from broker.api.errors import dumps, frame, unexpected
from broker.api.frames import Frames, Socket
from broker.api.groups import GroupFollower
from broker.api.sending import outbox_of, send_all
from broker.api.streams import Item
from broker.errors import BadMessage, EmqError, RateLimited
from broker.jobs import strict
from broker.protocol import messages as m
from broker.protocol.base import now_ms

if TYPE_CHECKING:
    from broker.api.services import Services

MAX_SUBSCRIPTIONS = 10_000
SALVAGE_BYTES = 65_536
"""A message over the rate is read for its ``message_id`` only up to this size: refusing must stay cheap."""

BATCH = 64
"""Submits that wait on one connection and go to Redis in one call, at most."""


@dataclass(slots=True)
class _Request:
    """A message that was read, or what is wrong with it."""

    kind: str = ""
    message: dict[str, Any] = field(default_factory=dict)
    echo: str | None = None
    error: EmqError | None = None


@dataclass(slots=True)
class _Places:
    """Subscriptions that may still be opened."""

    left: int = 0


class ClientSocket:
    """Serves one connection until it closes; bad messages never close it."""

    def __init__(
        self, ws: Socket, who: Identity, services: Services, bucket: TokenBucket, limit: int, *, ip: str = ""
    ) -> None:
        """``limit``: the largest message in bytes; ``ip``: where the client is, for the audit log."""
        self._ip = ip
        self._ws = ws
        self._limit = limit
        self._who = who
        self._services = services
        self._ops = services.operations
        self._usage = services.usage
        self._bucket = bucket
        self._outbox = outbox_of(ws)
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._followed: dict[str, str] = {}  # the last event of those that were followed to their end
        self._stats: asyncio.Task[None] | None = None
        self._groups = GroupFollower(services.groups, who.tenant, self._reply, self._fail)

    async def run(self, *, stats: bool = False) -> None:
        """Read and answer until the client leaves; ``stats`` subscribes to the figures at once."""
        writer = asyncio.create_task(send_all(self._ws, self._outbox), name="socket-writer")
        # The reader must not wait for room that nobody makes any more: it would not see that the socket has ended.
        writer.add_done_callback(lambda _: self._outbox.end())
        try:
            if stats:
                self._watch_stats(True)
            await self._read()
        finally:
            tasks = [writer, *self._jobs.values(), *self._groups.tasks(), *([self._stats] if self._stats else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Tell the client that this replica goes away, and wait for its answer; it may reconnect to another."""
        await self._ws.close(code=1001, message=b"the broker is stopping")

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        frames = Frames(self._ws, self._limit)
        try:
            held: _Request | None = None
            while (request := held or self._open(await frames.next())) is not None:
                batch, held = self._together(request, frames)
                await (self._handle(request) if len(batch) == 1 else self._submit_batch(batch))
                await self._outbox.room()
            if frames.too_large:
                await self._ws.close(code=1009, message=b"the message is too large")
        finally:
            await frames.stop()

    def _open(self, frame: tuple[bool, bytes] | None) -> _Request | None:
        """Read a frame as far as it says what it wants; what is wrong with it is kept to be answered in its turn."""
        if frame is None:
            return None
        text, raw = frame
        request = _Request()
        try:
            if not text:
                raise BadMessage("Messages are JSON text frames; binary frames are not accepted.")
            self._bucket.take()
            request.message = self._parse(raw)
            request.echo = commands.message_id(request.message)
            if request.message.get("message_id") is not None and request.echo is None:
                raise BadMessage("message_id: a string of at most 128 characters.")
            request.kind = commands.type_of(request.message)
        except EmqError as error:
            request.error = error
            request.echo = request.echo if request.echo is not None else _salvage(raw, error)
        return request

    def _parse(self, raw: bytes) -> dict[str, Any]:
        message = strict.parse(raw)
        if not isinstance(message, dict):
            raise BadMessage("A message must be a JSON object with a type.")
        return message

    def _together(self, first: _Request, frames: Frames) -> tuple[list[_Request], _Request | None]:
        """``first``, with the submits right behind it if it is one; and what came after them, if that was read."""
        batch = [first]
        while first.kind == "submit_job" and len(batch) < BATCH:
            following = self._open(frames.take())
            if following is None:
                break
            if following.kind != "submit_job":
                return batch, following
            batch.append(following)
        return batch, None

    async def _handle(self, request: _Request) -> None:
        """Answer one message; nothing it can contain ends the connection."""
        try:
            if request.error is not None:
                raise request.error
            special = _SPECIAL.get(request.kind)
            if special is not None:
                await special(self, request.message, request.echo)
            else:
                reply = await commands.run(request.kind, request.message, self._ops, self._who)
                await self._audit(request)
                self._reply(commands.wire(reply, request.echo))
                if request.kind == "force_retry_job":
                    await self._follow_again(request.message["job_id"])
        except EmqError as error:
            self._fail(error, request.echo)
        except Exception as exc:
            self._fail(unexpected(exc, "a client's message"), request.echo)

    async def _audit(self, request: _Request) -> None:
        """Note a change by an administrator or a person."""
        if request.kind in commands.CHANGES and is_audited(self._who):
            about = {name: request.message.get(name) for name in ("scope", "id", "job_id", "worker_id", "group")}
            await self._services.audit.note(self._who, self._ip, request.kind, named(about))

    # -- submitting ---------------------------------------------------------------------------------------------------

    async def _submit(self, message: dict[str, Any], echo: str | None) -> None:
        submitter = self._ops.submitter
        submitter.check_size(message)
        self._who.require(Scope.SUBMIT)
        follow = _follows(message)
        async with self._places(int(follow)) as places:
            accepted = await submitter.submit(self._who.tenant, message, key_id=self._who.key_id)
            self._reply(commands.wire(accepted, echo))
            if follow and accepted.job_id:
                self._follow(accepted.job_id, places, until_end=True)
                self._groups.once(message.get("group"))

    async def _submit_batch(self, batch: list[_Request]) -> None:
        """Answer submits that came together, in order; one call of the queue makes them all durable."""
        try:
            self._who.require(Scope.SUBMIT)
            async with self._places(sum(_follows(request.message) for request in batch)) as places:
                messages = [request.message for request in batch]
                tenant, key_id = self._who.tenant, self._who.key_id
                outcomes = await self._ops.submitter.submit_many(tenant, messages, None, key_id=key_id)
                self._answer_batch(batch, outcomes, places)
        except EmqError as error:
            self._answer_batch(batch, [error] * len(batch), _Places())
        except Exception as exc:
            self._answer_batch(batch, [unexpected(exc, "clients' submits")] * len(batch), _Places())

    def _answer_batch(
        self, batch: list[_Request], outcomes: Sequence[m.JobAccepted | EmqError], places: _Places
    ) -> None:
        for request, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, EmqError):
                self._fail(outcome, request.echo)
                continue
            self._reply(commands.wire(outcome, request.echo))
            if _follows(request.message) and outcome.job_id:
                self._follow(outcome.job_id, places, until_end=True)
                self._groups.once(request.message.get("group"))

    async def _submit_many(self, message: dict[str, Any], echo: str | None) -> None:
        self._who.require(Scope.SUBMIT)
        bulk = commands.read(m.SubmitJobs, message)
        follow = [_follows(job) for job in bulk.jobs]
        self._bucket.take(len(bulk.jobs) / 100)
        async with self._places(sum(follow)) as places:
            tenant, key_id = self._who.tenant, self._who.key_id
            outcomes = await self._ops.submitter.submit_many(tenant, bulk.jobs, bulk.group, key_id=key_id)
            self._reply(commands.wire(m.JobsAccepted(results=commands.bulk_results(bulk, outcomes)), echo))
            for job, wanted, outcome in zip(bulk.jobs, follow, outcomes, strict=True):
                if wanted and not isinstance(outcome, EmqError) and outcome.job_id:
                    self._follow(outcome.job_id, places, until_end=True)
                    self._groups.once(job.get("group") or bulk.group)

    # -- subscriptions ------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _places(self, wanted: int) -> AsyncIterator[_Places]:
        """Reserve places for subscriptions; those that are not used go back. Raises ``RateLimited``."""
        self._check_room(wanted)
        await self._usage.take("subscriptions", self._who, wanted)
        places = _Places(wanted)
        try:
            yield places
        finally:
            self._usage.give("subscriptions", self._who, places.left)

    def _check_room(self, wanted: int) -> None:
        if wanted and len(self._jobs) + wanted > MAX_SUBSCRIPTIONS:
            raise RateLimited(
                f"This connection follows {len(self._jobs)} jobs; at most {MAX_SUBSCRIPTIONS} are possible. "
                "Unsubscribe from some, or submit with subscribe:false.",
                retry_after_s=1,
            )

    async def _subscribe(self, message: dict[str, Any], echo: str | None) -> None:
        self._who.require(Scope.READ)
        msg = commands.read(m.SubscribeJob, message)
        await self._services.streams.check(msg.job_id, self._who.tenant)
        await self._stop_following(msg.job_id)
        async with self._places(1) as places:
            self._reply(commands.wire(m.SubscriptionConfirmed(job_id=msg.job_id), echo))
            self._follow(msg.job_id, places, after=msg.after, previews=msg.previews, px=msg.preview_px)

    async def _unsubscribe(self, message: dict[str, Any], echo: str | None) -> None:
        self._who.require(Scope.READ)
        msg = commands.read(m.UnsubscribeJob, message)
        await self._stop_following(msg.job_id)
        self._reply(commands.wire(m.SubscriptionConfirmed(job_id=msg.job_id, subscribed=False), echo))

    async def _stop_following(self, job_id: str) -> None:
        task = self._jobs.pop(job_id, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _follow(
        self,
        job_id: str,
        places: _Places,
        *,
        after: str | None = None,
        previews: bool = False,
        px: int = 0,
        until_end: bool = False,
    ) -> None:
        if job_id in self._jobs:
            return  # a duplicate submit of a job that is followed already
        places.left -= 1
        events = self._services.streams.follow(
            job_id, self._who.tenant, after, previews=previews, px=px, until_end=until_end
        )
        task = asyncio.create_task(self._pump(job_id, events), name=f"events-{job_id[:12]}")
        self._jobs[job_id] = task
        task.add_done_callback(lambda done: self._ended(job_id, done))

    async def _follow_again(self, job_id: str) -> None:
        """Who followed a job to its end, and has it start a new round, hears that one too."""
        if (last := self._followed.pop(job_id, None)) is not None:
            async with self._places(1) as places:
                self._follow(job_id, places, after=last, until_end=True)

    def _ended(self, job_id: str, task: asyncio.Task[None]) -> None:
        self._usage.give("subscriptions", self._who)
        if self._jobs.get(job_id) is task:
            del self._jobs[job_id]
        if not task.cancelled() and (exc := task.exception()) is not None:
            error = exc if isinstance(exc, EmqError) else unexpected(exc, "a subscription")  # type: ignore[arg-type]
            self._fail(error, None, job_id=job_id)

    async def _pump(self, job_id: str, events: AsyncGenerator[Item, None]) -> None:
        last = None
        async with contextlib.aclosing(events):
            async for item in events:
                last = item.event_id or last
                await self._outbox.room()
                if item.preview is not None:
                    self._outbox.put_preview(job_id, item.preview)
                elif item.latest_only:
                    self._outbox.put_latest("progress", job_id, item.text)
                else:
                    self._outbox.put(item.text)
        if last is not None:
            self._followed[job_id] = last
            if len(self._followed) > MAX_SUBSCRIPTIONS // 10:
                del self._followed[next(iter(self._followed))]

    async def _subscribe_group(self, message: dict[str, Any], echo: str | None) -> None:
        self._who.require(Scope.READ)
        msg = commands.read(m.SubscribeGroup, message)
        if msg.enabled:
            await self._ops.queue.group(self._who.tenant, msg.group)
        self._groups.always(msg.group, msg.enabled)
        self._reply(commands.wire(m.SubscriptionConfirmed(group=msg.group, subscribed=msg.enabled), echo))

    async def _subscribe_stats(self, message: dict[str, Any], echo: str | None) -> None:
        self._who.require(Scope.READ)
        msg = commands.read(m.SubscribeStats, message)
        self._reply(commands.wire(m.SubscriptionConfirmed(enabled=msg.enabled, subscribed=msg.enabled), echo))
        self._watch_stats(msg.enabled)

    def _watch_stats(self, on: bool) -> None:
        if self._stats is not None:
            self._stats.cancel()
            self._stats = None
        if on:
            self._stats = asyncio.create_task(self._pump_stats(), name="socket-stats")

    async def _pump_stats(self) -> None:
        async with contextlib.aclosing(self._services.figures.watch(self._who.sees)) as feed:
            async for stats in feed:
                text = dumps({"type": "stats_broadcast", "stats": stats, "timestamp": now_ms()})
                self._outbox.put_latest("stats", "", text)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _reply(self, message: dict[str, Any]) -> None:
        self._outbox.put(dumps(message))

    def _fail(self, error: EmqError, echo: str | None, **fields: Any) -> None:
        self._reply({**frame(error, echo), **fields})


_SPECIAL: dict[str, Callable[[ClientSocket, dict[str, Any], str | None], Awaitable[None]]] = {
    "submit_job": ClientSocket._submit,
    "submit_jobs": ClientSocket._submit_many,
    "subscribe_job": ClientSocket._subscribe,
    "unsubscribe_job": ClientSocket._unsubscribe,
    "subscribe_stats": ClientSocket._subscribe_stats,
    "subscribe_group": ClientSocket._subscribe_group,
}
"""Messages that change what the connection follows; the others are commands that any carrier may bring."""


def _follows(message: dict[str, Any]) -> bool:
    """Whether a submit wants its job's events on this socket."""
    return message.get("subscribe") is not False and message.get("dry_run") is not True


def _salvage(raw: bytes, error: EmqError) -> str | None:
    """The ``message_id`` of a message that was refused before it was read."""
    if error.code == "bad_json" or (error.code == "rate_limited" and len(raw) < SALVAGE_BYTES):
        return commands.message_id(strict.lenient(raw))
    return None
