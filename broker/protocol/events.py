"""The events of a job, each with an ``event_id`` that is opaque to clients."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .base import EpochMs, Outgoing, Status
from .records import Failure, Job, ProgressNode, Result


class JobEvent(Outgoing):
    """What every event has."""

    job_id: str
    event_id: str = Field(description="Opaque; `after` and `Last-Event-ID` take it.")
    timestamp: EpochMs


class JobUpdate(JobEvent):
    """A change of state."""

    type: Literal["job_update"]
    status: Status
    attempt: int = 0
    worker_id: str | None = None
    position: int | None = None
    reason: str | None = None


class JobProgress(JobEvent):
    """Progress over the whole workflow; never falls within one attempt."""

    type: Literal["update_job_progress"]
    progress: float = Field(ge=0, le=100)
    node: ProgressNode | None = None
    nodes_done: int | None = None
    nodes_total: int | None = None
    eta_s: float | None = None
    worker_id: str | None = None
    attempt: int = 0
    message: str | None = None


class JobCompleted(JobEvent):
    """The last event of a completed round."""

    type: Literal["complete_job"]
    status: Literal["completed"]
    worker_id: str | None = None
    attempt: int
    result: Result


class JobFailed(JobEvent):
    """A failed attempt; the job goes on when ``will_retry``."""

    type: Literal["fail_job"]
    error: Failure
    attempt: int
    will_retry: bool


class Reset(JobEvent):
    """Replaces events that can no longer be given; ``record`` is the job as it is now."""

    type: Literal["reset"]
    record: Job


class StatsBroadcast(Outgoing):
    """The figures, at most once a second and only on change."""

    type: Literal["stats_broadcast"] = "stats_broadcast"
    stats: dict[str, Any]
    timestamp: EpochMs
