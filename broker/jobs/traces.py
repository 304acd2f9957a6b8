"""A job's trace: submit → wait → attempt, with the worker's steps (inputs, execution with its nodes, upload) below it.

The submit's span is made by the broker that takes the job, and its context is kept with the job. What happens later
happens in Redis and in workers, which know nothing of OpenTelemetry: the function that ends a claim leaves its times,
and what the worker told of its steps, in the queue, and the next broker that looks makes the spans. All times are of
Redis' clock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, Protocol, Self

from pydantic import BaseModel, ValidationError

from broker.errors import EmqError
from broker.protocol.gateway import Step, Steps
from broker.queue.new_job import NewJob
from broker.queue.queue import Answer, Queue

log = logging.getLogger(__name__)

Kind = Literal["producer", "consumer", "internal"]
TAKEN = 100
LOOK_S = 1.0
"""Pause between two looks for what has ended."""
MS = 1_000_000


class OpenSpan(Protocol):
    """A span that has begun."""

    traceparent: str | None
    """Its context, for spans below it; none when nobody is to see it."""

    def end(self, at_ns: int, error: str = "") -> None:
        """End it, as failed when there is an ``error``."""


class Tracer(Protocol):
    """Makes spans; ``broker.tracing.OtelTracer`` is the real one."""

    def begin(
        self, name: str, parent: str | None, at_ns: int, kind: Kind, attributes: Mapping[str, str | int]
    ) -> OpenSpan:
        """Begin a span under ``parent``, a ``traceparent``."""


class Submits:
    """The spans of the jobs that one call submits; the jobs carry them on. A context for that call."""

    def __init__(self, tracer: Tracer | None, tenant: str, jobs: Iterable[tuple[NewJob, str | None, int]]) -> None:
        """``jobs`` come with the ``traceparent`` that their client gave, and when they came."""
        self._spans: list[OpenSpan] = []
        for job, parent, began_ns in jobs if tracer else ():
            assert tracer is not None
            about: dict[str, str | int] = {
                "job_id": job.job_id,
                "job_type": job.job_type,
                "tenant": tenant,
                "priority": job.priority,
            }
            span = tracer.begin("submit", parent, began_ns, "producer", about)
            job.trace = span.traceparent
            self._spans.append(span)

    def __enter__(self) -> Self:
        return self

    def answered(self, answers: list[Answer]) -> list[Answer]:
        """The queue has taken or refused them."""
        for span, answer in zip(self._spans, answers, strict=False):
            span.end(time.time_ns(), "" if answer.outcome in ("ok", "duplicate") else answer.outcome)
        return answers

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: object) -> None:
        if error is not None:
            for span in self._spans:
                span.end(time.time_ns(), error.code if isinstance(error, EmqError) else type(error).__name__)


class Ended(BaseModel):
    """What the queue leaves of a claim, or of a job that ended without any; times in epoch ms."""

    job: str
    trace: str
    tenant: str
    job_type: str
    status: str
    why: str | None
    worker_id: str | None
    spans: str | None
    attempt: int | None
    round: int | None
    created_at: int
    ready_at: int | None
    claimed_at: int | None
    started_at: int | None
    executed_at: int | None
    ended_at: int

    @property
    def error(self) -> str:
        """Why it counts as failed; empty when it does not."""
        return self.why or self.status if self.status in ("failed", "pending", "lost") else ""

    def attributes(self) -> dict[str, str | int]:
        """What a span tells of it."""
        fields = {"job_id": self.job, "job_type": self.job_type, "tenant": self.tenant, "status": self.status}
        more = {"worker_id": self.worker_id, "attempt": self.attempt, "round": self.round, "reason": self.why}
        return fields | {name: value for name, value in more.items() if value is not None}

    def steps(self) -> Steps:
        """What the worker told; where it told nothing, what the queue saw."""
        if self.spans:
            try:
                return Steps.model_validate_json(self.spans)
            except ValidationError as error:
                log.debug("job %s: its worker's steps make no sense: %s", self.job, error)
        return Steps(steps=list(self._seen()))

    def _seen(self) -> Iterator[Step]:
        if self.claimed_at is None or self.started_at is None:
            return
        over = self.executed_at or self.ended_at
        yield _between("execution", self.claimed_at, self.started_at, over)
        if self.executed_at is not None:
            yield _between("upload", self.claimed_at, over, self.ended_at)


def _between(kind: Literal["execution", "upload"], claimed_at: int, began: int, ended: int) -> Step:
    return Step(kind=kind, start_ms=max(0, began - claimed_at), ms=max(0, ended - began))


class TraceMaker:
    """Makes the spans of what has ended; a replica's loop calls :meth:`look`."""

    def __init__(self, queue: Queue, tracer: Tracer) -> None:
        self._queue, self._tracer = queue, tracer

    async def look(self) -> None:
        """Take everything that there is. What is taken here is told by nobody else."""
        more = True
        while more:
            entries = (await self._queue.call("traces", [("limit", TAKEN)])).lines("entries")
            for entry in entries:
                try:
                    self._tell(Ended.model_validate_json(entry))
                except ValidationError:
                    log.exception("a trace's entry cannot be read")
            more = len(entries) == TAKEN

    def _tell(self, ended: Ended) -> None:
        about = ended.attributes()
        since, until = ended.ready_at or ended.created_at, ended.claimed_at or ended.ended_at
        if ended.claimed_at is None or ended.attempt == 1:
            waiting = self._tracer.begin("wait", ended.trace, since * MS, "internal", about)
            waiting.end(max(since, until) * MS, ended.error if ended.claimed_at is None else "")
        if ended.claimed_at is None:
            return
        attempt = self._tracer.begin("attempt", ended.trace, ended.claimed_at * MS, "consumer", about)
        self._tell_steps(ended, ended.claimed_at, attempt)
        attempt.end(ended.ended_at * MS, ended.error)

    def _tell_steps(self, ended: Ended, claimed_at: int, attempt: OpenSpan) -> None:
        above = attempt.traceparent
        below: dict[str, str | None] = {}
        for step in sorted(ended.steps().steps, key=lambda step: step.kind == "node"):
            began = min(claimed_at + step.start_ms, ended.ended_at)
            name = f"node {step.class_type}" if step.kind == "node" else step.kind
            named = {"job_id": ended.job, "node_id": step.node_id, "class_type": step.class_type}
            about = {field: value for field, value in named.items() if value is not None}
            parent = below.get("execution", above) if step.kind == "node" else above
            span = self._tracer.begin(name, parent, began * MS, "internal", about)
            below[step.kind] = span.traceparent
            span.end(min(began + step.ms, ended.ended_at) * MS)
