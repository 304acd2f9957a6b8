"""The jobs of one worker's socket: their leases, their progress, their previews, their results."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from broker.api.gateway_worker import GatewayWorker
from broker.errors import BadMessage, NotFound, PayloadTooLarge
from broker.files.outputs import checked_result
from broker.files.store import FileStore
from broker.jobs.strict import dumps
from broker.protocol import gateway as g
from broker.queue.new_job import Value
from broker.queue.queue import Answer, Queue

PROGRESS_GAP_S = 0.2
"""Progress of a job goes on at most five times a second; a newer one takes the place of one that waits."""
STORE_GAP_S = 1.0
STORED_AT_FIRST = 3
SILENCE_S = 0.3
"""A report that none follows for so long goes into the record, which those who come later start with."""
MAX_PREVIEW = 1 << 20
_PREVIEW_EVENT = 4


@dataclass(slots=True)
class Held:
    """A job in the worker's hands, as this socket knows it."""

    job_id: str
    token: str
    tenant: str | None = None
    attempt: int = 0
    queued_ms: int | None = None
    progress: float = 0.0
    p: int = 0
    sent_at: float = float("-inf")
    stored_at: float = float("-inf")
    sent: int = 0
    waiting: g.WorkerProgress | None = None
    timer: asyncio.Task[None] | None = None
    silence: asyncio.TimerHandle | None = None
    last_preview: bytes | None = field(default=None, repr=False)
    partner_keys: dict[str, str] | None = field(default=None, repr=False)
    """Handed out with the claim; a repeated claim gets them again."""
    cancel_told: bool = field(default=False)

    def next_p(self) -> int:
        """The number of the next report: it rises within a claim, also when the worker comes back on another socket."""
        self.p = max(self.p + 1, time.time_ns() // 1_000_000)
        return self.p


class HeldJobs:
    """All of them, by job id."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._jobs: dict[str, Held] = {}

    def get(self, job_id: str, token: str) -> Held:
        """The job under this token; one that this socket has not heard of is taken note of.

        Under another token than the claim's it is another attempt, most likely a stale one: what is known of the
        claim stays.
        """
        held = self._jobs.setdefault(job_id, Held(job_id, token))
        return held if held.token == token else Held(job_id, token)

    def find(self, job_id: str) -> Held | None:
        """The job, if the worker has it."""
        return self._jobs.get(job_id)

    def add(self, answer: Answer) -> Held:
        """Take note of a claim's answer."""
        job_id, token = answer.text("job_id"), answer.text("lease")
        if (before := self._jobs.get(job_id)) is not None and before.token != token:
            self.drop(job_id)
        held = self.get(job_id, token)
        held.tenant, held.attempt = answer.text("tenant"), answer.number("attempt")
        held.queued_ms = answer.number("queued_ms") if answer.text("queued_ms") else None
        return held

    def drop(self, job_id: str, token: str | None = None) -> None:
        """Forget a job that has ended or gone (only the claim with ``token``, when given)."""
        held = self._jobs.get(job_id)
        if held is not None and token in (None, held.token):
            del self._jobs[job_id]
            forget_progress(held)

    def clear(self) -> None:
        """Forget all."""
        for job_id in list(self._jobs):
            self.drop(job_id)

    async def complete(self, held: Held) -> Held:
        """Look up what the claim told, where it was made on another socket, if there is such a job."""
        if held.tenant is None:
            with suppress(NotFound):
                record = await self._queue.job(held.job_id)
                held.tenant, held.attempt = record.text("tenant"), record.number("attempt")
                held.queued_ms = max(0, record.number("claimed_at") - record.number("created_at"))
        return held


def forget_progress(held: Held) -> None:
    """Drop a report that waits: something later is said about the job."""
    held.waiting = None
    if held.timer is not None:
        held.timer.cancel()
        held.timer = None
    break_silence(held)


def break_silence(held: Held) -> None:
    """Something is said about the job again."""
    if held.silence is not None:
        held.silence.cancel()
        held.silence = None


class Reports:
    """Passes progress and previews on, not faster than the queue wants them; ``later`` says what waited."""

    def __init__(self, worker: GatewayWorker, later: Callable[[Held, g.WorkerProgress], Awaitable[None]]) -> None:
        self._worker = worker
        self._later = later

    async def progress(self, held: Held, report: g.WorkerProgress) -> Answer | None:
        """Report now, or, when one was made a moment ago, a moment later."""
        held.progress = max(held.progress, report.progress)
        break_silence(held)
        wait = held.sent_at + PROGRESS_GAP_S - time.monotonic()
        if wait <= 0:
            forget_progress(held)
            return await self.send(held, report)
        held.waiting = report
        if held.timer is None:
            self._schedule(held, wait)
        return None

    def _schedule(self, held: Held, wait: float) -> None:
        held.timer = asyncio.create_task(self._after(wait, held), name=f"progress-{held.job_id[:12]}")

    async def _after(self, wait: float, held: Held) -> None:
        await asyncio.sleep(wait)
        held.timer = None
        report, held.waiting = held.waiting, None
        if report is not None:
            await self._later(held, report)

    def _store(self, held: Held, report: g.WorkerProgress) -> None:
        """Nothing followed a report that only passed through: say it once more, to be kept."""
        held.silence = None
        if held.timer is None:
            held.waiting, held.stored_at = report, float("-inf")
            self._schedule(held, 0)

    async def send(self, held: Held, report: g.WorkerProgress) -> Answer:
        """Report; one in each second, the first few and the last before a silence are also kept in the record."""
        now = time.monotonic()
        held.sent += 1
        store = now - held.stored_at >= STORE_GAP_S or report.progress >= 100 or held.sent <= STORED_AT_FIRST
        held.sent_at = now
        if store:
            held.stored_at = now
        answer = await self._worker.call(
            "report",
            {
                "job": held.job_id,
                "token": held.token,
                "p": held.next_p(),
                "data": dumps(self._data(held, report)),
                "store": store,
            },
        )
        break_silence(held)
        if not store and answer.outcome == "ok" and held.waiting is None:
            held.silence = asyncio.get_running_loop().call_later(SILENCE_S, self._store, held, report)
        return answer

    def _data(self, held: Held, report: g.WorkerProgress) -> dict[str, Any]:
        fields = report.model_dump(include={"node", "nodes_done", "nodes_total", "eta_s", "message"}, exclude_none=True)
        said: dict[str, Any] = {"progress": held.progress, **fields, "worker_id": self._worker.worker_id}
        return {**said, "attempt": held.attempt} if held.attempt else said

    async def preview(self, jobs: HeldJobs, frame: bytes) -> None:
        """Pass a preview on to those who watch; one of a job that this worker no longer has is thrown away."""
        held = jobs.find(preview_job(frame))
        if held is not None:
            held.last_preview = frame
            await self.show(held)

    async def show(self, held: Held) -> None:
        """Send the latest preview to those who watch."""
        args: dict[str, Value | None] = {"job": held.job_id, "token": held.token, "frame": held.next_p()}
        if held.last_preview is not None:
            await self._worker.call("preview", {**args, "data": held.last_preview})


def preview_job(frame: bytes) -> str:
    """The job of a preview in ComfyUI's format 4 (event type, metadata length, metadata, picture); ``BadMessage``."""
    if len(frame) > MAX_PREVIEW:
        raise BadMessage(f"A preview has at most {MAX_PREVIEW} bytes.")
    try:
        event, length = struct.unpack_from(">II", frame)
        metadata = json.loads(frame[8 : 8 + length])
        job_id = metadata["job_id"]
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadMessage(
            "A binary frame must be a preview in ComfyUI's format 4 with job_id in its metadata."
        ) from error
    if event != _PREVIEW_EVENT or len(frame) <= 8 + length or not isinstance(job_id, str):
        raise BadMessage("A binary frame must be a preview in ComfyUI's format 4 with job_id in its metadata.")
    return job_id


async def result_json(store: FileStore, held: Held, result: dict[str, Any], limit_kb: int) -> str:
    """A worker's result, checked against what it uploaded, as the queue keeps it.

    Raises ``BadMessage`` for an output that is not there, ``PayloadTooLarge``.
    """
    checked = await checked_result(store, held.tenant or "", held.job_id, held.attempt, result)
    timings = checked.get("timings")
    if held.queued_ms is not None and isinstance(timings, dict | None):
        checked["timings"] = {"queued_ms": held.queued_ms, **(timings or {})}
    text = dumps(checked)
    size = len(text.encode())
    if size > limit_kb * 1024:
        raise PayloadTooLarge(
            f"The result has {size} bytes, at most {limit_kb * 1024} are taken; upload long texts as outputs.",
            size=size,
            limit=limit_kb * 1024,
        )
    return text


def error_json(error: g.WorkerFailure, limit_kb: int) -> str:
    """A failure as the queue keeps it: never refused, but cut to the limit."""
    body = error.model_dump()
    text = dumps(body)
    if len(text.encode()) <= limit_kb * 1024:
        return text
    return dumps({**body, "message": error.message[:4096], "details": None})


def exec_ms(timings: Any) -> int | None:
    """How long the GPU worked, from a worker's timings."""
    value = timings.get("execution_ms") if isinstance(timings, dict) else None
    plain = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12
    return int(value) if plain and value is not None else None
