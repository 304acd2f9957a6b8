"""Everything a client can ask of the queue except its event streams: one method a request, whatever carries it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from broker.errors import Conflict, EmqError, NotFound
from broker.jobs import labels, listing, records
from broker.jobs.crew import Crew
from broker.jobs.figures import group_figures, public_stats, public_worker, waiting_job, working
from broker.jobs.fleet import Fleet
from broker.jobs.payloads import decode_payload
from broker.jobs.requirements import Requirement
from broker.jobs.search import Fits
from broker.jobs.shared_reading import SharedReading
from broker.jobs.submission import Submitter
from broker.jobs.waiting import from_atoms, held_back, values
from broker.protocol.base import WAITING, JobStatus
from broker.protocol.messages import Ack, GroupStatus, ListJobs
from broker.queue.queue import Answer, Queue, require

RemoveFiles = Callable[[str, str], Awaitable[None]]
"""Removes the files of a tenant's job."""
_MOST_TENANTS = 1000
_LIST_CALLS = 16
"""Calls for one page at most: each looks at a bounded number of jobs, whether they match or not."""


class Operations:
    """The requests of clients, each for one tenant (``""``: any, for administrators' figures)."""

    def __init__(
        self, queue: Queue, fleet: Fleet, submitter: Submitter, deliver: records.Deliver, remove_files: RemoveFiles
    ) -> None:
        self.queue = queue
        self.fleet = fleet
        self.submitter = submitter
        self.deliver = deliver
        self.remove_files = remove_files
        self._crew = Crew(queue)
        self._stats: dict[str, SharedReading[dict[str, Any]]] = {}

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def record(self, job_id: str, tenant: str) -> dict[str, Any]:
        """A job's public record; raises ``NotFound``."""
        answer = await self.queue.job(job_id, tenant)
        record = records.public_job(_named(answer, job_id), self.deliver)
        if JobStatus(record["status"]) in WAITING:
            await self._explain(record, answer, job_id, tenant)
        if record["status"] == JobStatus.PENDING:
            expected = await self.submitter.forecasts.of_job(job_id)
            record["estimated_start"] = expected.model_dump() if expected else None
        return record

    async def records(self, job_ids: Sequence[str], tenant: str) -> list[dict[str, Any]]:
        """The records of those that there are; of waiting ones without place, start and what they wait for."""
        return [records.public_job(row, self.deliver) for row in await self.queue.jobs(job_ids, tenant)]

    async def _explain(self, record: dict[str, Any], answer: Answer, job_id: str, tenant: str) -> None:
        """Say why a waiting job waits, as the fleet is now."""
        try:
            need = self.submitter.known(answer.text("class"))
            if need is None:
                stored = await self.queue.payload(job_id, tenant)
                given = record["requirements"] or {}
                need = await self.submitter.requirement_of(answer.text("class"), record["job_type"], stored, given)
            view = await self.fleet.view()
        except EmqError:
            return  # the record itself is good; the explanation is extra
        record["requirements"] = need.public()
        suspects = records.loads(answer.text("spec"), {}).get("suspects", [])
        reasons = from_atoms(answer.lines("missing"), need, view) + values(view.values.again(suspects))
        reasons += held_back(answer.text("held"))
        record["waiting_for"] = [reason.model_dump(mode="json") for reason in reasons]

    async def list_jobs(self, tenant: str, wanted: ListJobs, fits: Fits | None = None) -> dict[str, Any]:
        """A page of records, newest first: ``jobs`` and ``next_cursor``. ``fits`` leaves out more of them."""
        filters, metadata = listing.filters(wanted), listing.metadata(wanted)
        states, cursor = [s.value for s in wanted.status], wanted.cursor or ""
        jobs: list[dict[str, Any]] = []
        for _ in range(_LIST_CALLS):
            answer = await self.queue.list_jobs(tenant, states, wanted.limit - len(jobs), cursor, filters)
            found = (records.public_job(row, self.deliver, result=False) for row in answer.rows)
            jobs += [job for job in found if labels.matches(job["metadata"], metadata) and (not fits or fits(job))]
            cursor = answer.text("next")
            if not cursor or len(jobs) >= wanted.limit:
                break
        return {"jobs": jobs, "next_cursor": cursor or None}

    async def waiting(
        self, tenant: str, *, priority: int | None = None, after: str = "", limit: int = 50
    ) -> dict[str, Any]:
        """Waiting jobs in claim order: ``jobs``, ``next`` (an ``after`` that goes on), ``partial``.

        Jobs that no live worker could run are apart: ``stuck`` has their classes, with the reasons.
        """
        answer = await self.queue.waiting(tenant=tenant, priority=priority, after=after, limit=limit)
        jobs = [waiting_job(row) for row in answer.rows if row.outcome == "job"]
        stuck = [await self._stuck(row) for row in answer.rows if row.outcome == "class"]
        return {"jobs": jobs, "stuck": stuck, "next": answer.text("next"), "partial": answer.flag("partial")}

    async def _stuck(self, row: Answer) -> dict[str, Any]:
        missing = row.lines("missing")
        vram = max((int(atom[2:]) for atom in missing if atom.startswith("v:")), default=0)
        need = self.submitter.known(row.text("class")) or Requirement(
            row.text("class"), tuple(missing), tuple(row.lines("kind")), vram, {}
        )
        reasons = from_atoms(missing, need, await self.fleet.view())
        return {
            "class": row.text("class"),
            "models": row.lines("kind"),
            "jobs": row.number("jobs"),
            "exact": row.flag("exact"),
            "job_id": row.text("job_id"),
            "created_at": row.number("created_at") or None,
            "reasons": [reason.model_dump(mode="json") for reason in reasons],
        }

    async def submitted(self, job_id: str, tenant: str) -> Any:
        """What a job was submitted with: its payload; raises ``NotFound``."""
        stored = await self.queue.payload(job_id, tenant)
        return decode_payload(stored.pairs.get("payload", b"{}"))

    async def cancel(self, job_id: str, tenant: str, reason: str) -> Ack:
        """Cancel a job; raises ``Conflict`` when it has ended otherwise."""
        answer = await self.queue.cancel(job_id, tenant, reason)
        return Ack(job_id=job_id, status=answer.text("status") or None)

    async def delete(self, job_id: str, tenant: str) -> Ack:
        """Forget a job that has ended, and remove its files; raises ``Conflict`` when it has not."""
        answer = await self.queue.delete(job_id, tenant)
        await self.remove_files(answer.text("tenant"), job_id)
        return Ack.model_validate({"job_id": job_id, "deleted": True})

    async def retry(self, job_id: str, tenant: str, *, elsewhere: bool = False) -> Ack:
        """Start a new round of a job that has ended; raises ``Conflict`` when it has not."""
        answer = await self.queue.retry(job_id, tenant, elsewhere=elsewhere)
        return Ack.model_validate({"job_id": job_id, "status": "pending", "round": answer.number("round", 1)})

    async def retry_dead(self, tenant: str, job_ids: Sequence[str] | None) -> Ack:
        """Start a new round of dead letters, all of them or the named; those that are none (any more) are left out."""
        retried = 0
        for job_id in await self._dead(tenant) if job_ids is None else job_ids:
            with suppress(NotFound, Conflict):
                record = await self.queue.job(job_id, tenant)
                if record.flag("dead_letter"):
                    await self.queue.retry(job_id, tenant)
                    retried += 1
        return Ack.model_validate({"retried": retried})

    async def _dead(self, tenant: str) -> list[str]:
        found: list[str] = []
        cursor = None
        while True:
            page = await self.list_jobs(tenant, ListJobs(dead=True, limit=250, cursor=cursor))
            found += [job["job_id"] for job in page["jobs"]]
            cursor = page["next_cursor"]
            if not cursor:
                return found

    async def set_priority(self, job_id: str, tenant: str, priority: int | None, front: bool) -> Ack:
        """Move a waiting job."""
        await self.queue.set_priority(job_id, tenant, priority=priority, front=front)
        return Ack(job_id=job_id)

    async def cancel_group(self, tenant: str, group: str, reason: str) -> Ack:
        """Cancel every job of a group that has not ended; ``cancelled`` counts them."""
        cancelled, more = 0, True
        while more:
            answer = await self.queue.cancel_group(tenant, group, reason)
            found = answer.number("cancelled")
            cancelled += found
            more = answer.flag("more") and found > 0
        return Ack.model_validate({"group": group, "cancelled": cancelled})

    async def group(self, tenant: str, group: str) -> GroupStatus:
        """A group's figures."""
        return group_figures(group, await self.queue.group(tenant, group))

    # -- workers and figures ------------------------------------------------------------------------------------------

    async def stats(self, tenant: str, max_age_s: float = 0) -> dict[str, Any]:
        """The queue's figures; those that may be older are shared, and not to be changed."""
        if not max_age_s:
            return public_stats(await self.queue.stats(tenant))
        if tenant not in self._stats:
            if len(self._stats) >= _MOST_TENANTS:
                self._stats.clear()
            self._stats[tenant] = SharedReading(partial(self.stats, tenant))
        return await self._stats[tenant].read(max_age_s)

    async def workers(self, sees: str = "", has: str = "") -> list[dict[str, Any]]:
        """The fleet; ``sees``: only this tenant's jobs are named; ``has``: those live ones that have a model file."""
        answer = await self.queue.workers(jobs=sees != "")
        rows = answer.rows
        if has:
            able = (await self.fleet.view()).with_model(has)
            rows = [row for row in rows if row.text("profile") in able and not row.text("gone")]
        shown = (public_worker(row, sees) for row in rows)
        return sorted(shown, key=lambda worker: str(worker["worker_id"]))

    async def working(self, worker_id: str = "", max_age_s: float = 0) -> list[dict[str, Any]]:
        """The fleet (or one worker) with what each does right now (``doing``), not to be changed."""
        if worker_id:
            return [working(row) for row in (await self.queue.workers(worker_id, jobs=True)).rows]
        return await self._crew.read(max_age_s)

    async def worker(self, worker_id: str, sees: str = "") -> dict[str, Any]:
        """One worker, of its jobs only those that ``sees`` may know (empty: all); raises ``NotFound``."""
        answer = require(await self.queue.workers(worker_id, jobs=sees != ""), f"worker {worker_id}")
        for row in answer.rows:
            return public_worker(row, sees)
        raise NotFound(f"There is no worker {worker_id}.")

    async def pause(self, scope: str, target: str, on: bool) -> Ack:
        """Pause or resume the pool, a tenant or a worker; resuming a worker ends its drain too."""
        await self.queue.pause(scope, target, on)
        if scope == "worker" and not on:
            await self.queue.drain(target, on=False)
        return Ack.model_validate({"scope": scope, "id": target or None, "paused": on})

    async def drain(self, worker_id: str) -> Ack:
        """Let a worker finish what it has and take nothing new."""
        await self.queue.drain(worker_id)
        return Ack.model_validate({"worker_id": worker_id, "draining": True})


def _named(answer: Answer, job_id: str) -> Answer:
    answer.pairs.setdefault("job_id", job_id.encode())
    return answer
