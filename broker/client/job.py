"""A job in a client's hands."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from broker.client.errors import JobCancelled, JobFailed
from broker.client.events import Event, Preview
from broker.protocol.base import JobStatus
from broker.protocol.events import JobCompleted, JobUpdate, Reset
from broker.protocol.events import JobFailed as JobFailedEvent
from broker.protocol.messages import JobAccepted
from broker.protocol.records import Failure, Job, Result

if TYPE_CHECKING:
    from broker.client.client import Client


class JobHandle:
    """One job: its id, what the broker said when it accepted it (``None`` when it was not submitted here)."""

    def __init__(self, client: Client, job_id: str, accepted: JobAccepted | None = None) -> None:
        self.id = job_id
        self.accepted = accepted
        self._client = client

    async def events(self, *, after: str | None = None, previews: bool = False) -> AsyncGenerator[Event | Preview]:
        """Every event from the first (or after an ``event_id``) to the one that ends the job; none missing, none twice.

        Raises ``NotFound`` when the broker knows no such job, ``Unauthorized`` and ``Forbidden``.
        """
        listener = await self._client.listen(self.id, after, previews)
        try:
            async for item in listener:
                yield item
        finally:
            listener.close()

    async def result(self) -> Result:
        """Wait for the end. Raises ``JobFailed`` or ``JobCancelled`` when there is no result."""
        result: Result | None = None
        async with aclosing(self.events()) as events:
            async for event in events:
                result = result_of(self.id, event) or result
        if result is None:
            raise JobFailed(self.id, Failure(code="node_error", message="The job ended without a result."))
        return result

    async def record(self) -> Job:
        """The job as it is now."""
        return await self._client.job(self.id)

    async def cancel(self, reason: str = "") -> None:
        """Ask for its end; the events tell when it has come. Raises ``Conflict`` when it has ended."""
        await self._client.cancel(self.id, reason)


def result_of(job_id: str, event: Event | Preview) -> Result | None:
    """The result that an event brings; raises ``JobFailed`` or ``JobCancelled`` for one that ends the job without."""
    if isinstance(event, JobCompleted):
        return event.result
    if isinstance(event, JobFailedEvent) and not event.will_retry:
        raise JobFailed(job_id, event.error)
    if isinstance(event, JobUpdate) and event.status == JobStatus.CANCELLED:
        raise JobCancelled(job_id, event.reason)
    return _of_record(event.record) if isinstance(event, Reset) else None


def _of_record(job: Job) -> Result | None:
    if job.status == JobStatus.FAILED:
        raise JobFailed(job.job_id, job.error or Failure(code="node_error", message="No reason is kept."))
    if job.status == JobStatus.CANCELLED:
        raise JobCancelled(job.job_id, job.reason)
    return job.result if job.status == JobStatus.COMPLETED else None
