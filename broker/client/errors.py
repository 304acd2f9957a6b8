"""What a client raises: the broker's own refusals, and what only a client can find."""

from __future__ import annotations

from typing import Any

from broker import errors
from broker.errors import EmqError
from broker.protocol.records import Failure


class BrokerUnreachable(errors.Unavailable):
    """No broker answered in time, or what answered is none."""


class JobEnded(EmqError):
    """The job will give no result."""

    code = "job_ended"

    def __init__(self, job_id: str, message: str, **details: Any) -> None:
        super().__init__(message, job_id=job_id, **details)
        self.job_id = job_id


class JobFailed(JobEnded):
    """The job failed and will not be tried again; ``failure`` says why."""

    code = "job_failed"

    def __init__(self, job_id: str, failure: Failure) -> None:
        super().__init__(job_id, f"The job failed: {failure.code}: {failure.message}")
        self.failure = failure


class JobCancelled(JobEnded):
    """The job was cancelled."""

    code = "job_cancelled"

    def __init__(self, job_id: str, reason: str | None) -> None:
        super().__init__(job_id, f"The job was cancelled{': ' + reason if reason else ''}.")
        self.reason = reason


KINDS: dict[str, type[EmqError]] = {
    kind.code: kind
    for kind in (
        errors.BadJson, errors.BadMessage, errors.UnknownType, errors.InvalidWorkflow, errors.PayloadTooLarge,
        errors.NotFound, errors.Conflict, errors.Unauthorized, errors.Forbidden, errors.RateLimited,
        errors.QueueFull, errors.Unavailable,
    )
}  # fmt: skip


def refusal(body: dict[str, Any]) -> EmqError:
    """A broker's error message as the exception of its ``code``; a code that is not known here gives ``EmqError``."""
    details = dict(body.get("details") or {})
    if body.get("retry_after_s") is not None:
        details["retry_after_s"] = body["retry_after_s"]
    kind = KINDS.get(str(body.get("code")), EmqError)
    return kind(str(body.get("error") or "The broker refused."), **details)
