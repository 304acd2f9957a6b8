"""One worker's socket: its messages become calls of the queue's functions, the queue's hints become its messages.

The table of messages is in ``docs/protocol.md``, the functions are in ``docs/queue.md``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from broker.access.limits import SERVERS_PER_S, TokenBucket
from broker.access.side_keys import SideKeys
from broker.api.commands import message_id, read
from broker.api.errors import unexpected
from broker.api.gateway_jobs import HeldJobs
from broker.api.gateway_link import Link
from broker.api.gateway_pulse import Pulse
from broker.api.gateway_work import Files, Work
from broker.api.gateway_worker import GatewayWorker, lease_lines, name_lines
from broker.errors import BadMessage, EmqError, UnknownType
from broker.files.store import FileStore
from broker.jobs import strict
from broker.jobs.payloads import message_errors
from broker.protocol import gateway as g
from broker.protocol.base import Message
from broker.protocol.messages import Ack
from broker.queue.inbox import Hint, Inbox
from broker.queue.queue import Queue
from broker.settings import Settings

log = logging.getLogger(__name__)
PING_S = 20.0

MODELS: dict[str, type[Message]] = {model.model_fields["type"].default: model for model in g.WORKER_MESSAGES}


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What sessions work with."""

    queue: Queue
    inbox: Inbox
    outputs: FileStore
    settings: Settings
    side: SideKeys


class WorkerSession:
    """Serves one socket. ``base`` is the broker's URL as this worker sees it, ``path_id`` the worker its URL names."""

    def __init__(self, link: Link, parts: GatewayParts, base: str, path_id: str | None) -> None:
        self._link = link
        self._parts = parts
        self._path_id = path_id
        self._heard_at = time.monotonic()
        self.pulse = Pulse()
        self._bucket = TokenBucket(SERVERS_PER_S)
        self._tasks: list[asyncio.Task[None]] = []
        self._jobs = HeldJobs(parts.queue)
        self._worker = GatewayWorker(parts.queue, self._on_superseded)
        self._work = Work(link, self._worker, self._jobs, Files(parts.outputs, parts.settings, base), parts.side)
        self._handlers: dict[str, Callable[[Any, str | None], Awaitable[None]]] = {
            "register_worker": self._register,
            "worker_status": self._status,
            "worker_heartbeat": self._heartbeat,
            "steer_worker": self._steer,
            "claim_job": self._work.claim,
            "update_job_progress": self._work.progress,
            "job_executed": self._work.executed,
            "complete_job": self._work.complete,
            "fail_job": self._work.fail,
            "release_job": self._work.release,
        }

    # -- the socket ---------------------------------------------------------------------------------------------------

    async def handle(self, raw: str | bytes) -> None:
        """Do what one text frame asks; whatever it contains, the socket stays open."""
        echo: str | None = None
        self._heard_at = time.monotonic()
        try:
            self._bucket.take()
            message = strict.parse(raw)
            echo = message_id(message)
            await self._dispatch(message, echo)
        except EmqError as error:
            if error.code == "bad_json":
                echo = message_id(strict.lenient(raw))
            await self._link.fail(error, echo)
        except Exception as error:
            await self._link.fail(unexpected(error, "a worker's message"), echo)

    async def handle_binary(self, frame: bytes) -> None:
        """Pass a preview on."""
        self._heard_at = time.monotonic()
        try:
            self._bucket.take()
            await self._work.preview(frame)
        except EmqError as error:
            await self._link.fail(error)

    async def _dispatch(self, message: Any, echo: str | None) -> None:
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise BadMessage("A message must be a JSON object with a type, for example register_worker.")
        kind = message["type"]
        if kind not in MODELS:
            raise UnknownType(f"No message of a worker has the type {kind[:64]!r}.", known=sorted(MODELS))
        if kind == "register_worker" and self._path_id:
            message = {"worker_id": self._path_id, **message}
        parsed = read(MODELS[kind], message)
        self._check_worker(getattr(parsed, "worker_id", None))
        await self._handlers[kind](parsed, echo)

    def _check_worker(self, named: str | None) -> None:
        own = self._worker.worker_id or self._path_id
        if named is not None and own is not None and named != own:
            raise BadMessage(f"worker_id: this connection is {own[:128]!r}; open another one for another worker.")

    async def close(self) -> None:
        """The socket is closed: offline at once; jobs stay for one lease, in case the worker comes back."""
        for task in self._tasks:
            task.cancel()
        self._jobs.clear()
        await self._worker.leave()
        pending = set(self._tasks)
        while pending:  # a cancel that comes while redis-py connects can be lost
            _, pending = await asyncio.wait(pending, timeout=0.2)
            for task in pending:
                task.cancel()

    async def shut(self) -> None:
        """This replica ends: the worker may connect to another."""
        await self._link.close(1001, b"the broker is stopping")

    async def _on_superseded(self) -> None:
        self._jobs.clear()
        await self._link.send(g.Superseded(worker_id=self._worker.worker_id or ""))

    # -- the worker itself --------------------------------------------------------------------------------------------

    async def _register(self, message: g.RegisterWorker, echo: str | None) -> None:
        if self._worker.superseded:
            self._worker.require_registered()
        answer = await self._worker.enrol(message)
        for lease in message.jobs or []:
            self._jobs.get(lease.job_id, lease.lease)
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._keep())]
        lease_ms = answer.number("lease_ms", int(self._parts.settings.lease_s * 1000))
        extra: dict[str, Any] = {n: answer.text(n) for n in ("deployment", "input_urls") if answer.text(n)}
        extra |= {f"{n}_s": answer.number(f"{n}_ms") / 1000 for n in ("hang", "stall") if answer.text(f"{n}_ms")}
        reply = g.WorkerRegistered(
            worker_id=message.worker_id, instance=self._worker.instance, lease_s=lease_ms / 1000, **extra
        )
        await self._link.send(reply, echo)
        if message.status == "idle" and not message.jobs:
            await self._work.offer()

    async def _status(self, message: g.WorkerStatus, echo: str | None) -> None:
        """Changed capabilities, in ``capabilities`` or beside it."""
        known = self._worker.require_registered()
        caps = known.capabilities.model_dump(exclude_none=True) | message.changes()
        status = message.status or known.status
        try:
            update = {"capabilities": g.Capabilities.model_validate(caps), "status": status, "jobs": None}
        except ValidationError as error:
            raise message_errors(error) from None
        await self._worker.enrol(known.model_copy(update=update))
        if echo is not None:
            await self._link.send(Ack(status=status), echo)

    async def _heartbeat(self, message: g.WorkerHeartbeat, echo: str | None) -> None:
        gpus = [gpu.model_dump(exclude_none=True) for gpu in message.gpus]
        answer = await self._worker.as_worker(
            "heartbeat",
            {
                "status": message.status,
                "jobs": lease_lines(message.jobs),
                "loaded": name_lines(message.loaded_models),
                "gpus": strict.dumps(gpus) if gpus else None,
            },
        )
        for lease in message.jobs:
            self._jobs.get(lease.job_id, lease.lease)
        ack = g.HeartbeatAck(
            worker_id=self._worker.worker_id or "",
            jobs=[self._verdict(line) for line in answer.lines("jobs")],
            work=answer.flag("work"),
            pause=answer.flag("paused"),
            drain=answer.flag("drain"),
            watch=answer.lines("watch"),
        )
        await self._link.send(ack, echo)
        if ack.work and message.status == "idle":
            await self._work.offer()

    async def _steer(self, message: g.SteerWorker, echo: str | None) -> None:
        """Pause, resume or drain this worker: whoever is at its machine may."""
        self._worker.require_registered()
        name, queue = self._worker.worker_id or "", self._parts.queue
        if message.word == "drain":
            await queue.drain(name)
        else:
            await queue.pause("worker", name, message.word == "pause")
        if message.word == "resume":
            await queue.drain(name, on=False)
        await self._link.send(Ack.model_validate({"worker_id": name, "word": message.word}), echo)

    def _verdict(self, line: str) -> g.JobVerdict:
        job_id, _, rest = line.partition(" ")
        state, _, reason = rest.partition(" ")
        if state == "lost":
            self._jobs.drop(job_id)
        return g.JobVerdict.model_validate({"job_id": job_id, "state": state, "reason": reason or None})

    # -- what the queue says by itself --------------------------------------------------------------------------------

    async def _listen(self) -> None:
        async with aclosing(self._parts.inbox.hints(self._worker.instance)) as hints:
            async for hint in hints:
                try:
                    await self._hinted(hint)
                except EmqError as error:
                    log.info("hint %s for worker %s: %s", hint.word, self._worker.worker_id, error)

    async def _hinted(self, hint: Hint) -> None:
        if hint.word == "work":
            await self._work.offer()
        elif hint.word == "cancel":
            held = self._jobs.find(hint.subject)
            if held is not None:
                record = await self._parts.queue.job(held.job_id)
                await self._work.tell_cancel(held, record.text("cancel") or record.text("reason"))
        elif hint.word in ("pause", "resume", "drain"):
            await self._link.send(
                g.WorkerOrder.model_validate({"type": hint.word, "worker_id": self._worker.worker_id or ""})
            )
        elif hint.word == "watch":
            job_id, _, px = hint.subject.partition(" ")
            await self._link.send(g.WatchJob(job_id=job_id, px=int(px) if px.isdecimal() else None))
            await self._work.show_again(job_id)
        elif hint.word == "superseded":
            await self._worker.supersede()

    async def _keep(self) -> None:
        """Keep the lease while the socket is open and the worker not silent for longer than it may be.

        One that could speak, and has not named a job for one lease, does not have it any more.
        """
        lease_s = self._parts.settings.lease_s
        while not self._worker.superseded:
            await asyncio.sleep(min(lease_s / 3, PING_S))
            self.pulse.asked()
            await self._link.ping()
            if time.monotonic() - self._heard_at < self._parts.settings.hang_s:
                await self._worker.extend(awake=self.pulse.is_awake(lease_s))
