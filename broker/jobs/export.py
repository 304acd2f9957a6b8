"""Waiting jobs out of a queue and into one: the way back, and the way to another Redis."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from broker.errors import Conflict, EmqError, NotFound
from broker.files.meter import Expected
from broker.files.objects import CHUNK
from broker.files.outputs import tenant_folder
from broker.files.store import FileStore
from broker.jobs.archive import Archive, ArchivedJob
from broker.jobs.payloads import decode_payload
from broker.jobs.submission import Submitter
from broker.protocol.base import TERMINAL, WAITING, JobStatus
from broker.queue.queue import Answer, Queue

PAGE = 500
BATCH = 100
REASON = "exported"


@dataclass(frozen=True, slots=True)
class Stores:
    """Where the files of jobs are."""

    outputs: FileStore
    assets: FileStore


@dataclass(slots=True)
class Exported:
    """What an export did. ``missing`` are files that are gone: the jobs were exported without them."""

    written: int = 0
    known: int = 0
    taken: int = 0
    missing: list[str] = field(default_factory=list)


class Exporter:
    """Writes the waiting jobs of a queue into an archive."""

    def __init__(self, queue: Queue, stores: Stores, archive: Archive) -> None:
        self._queue = queue
        self._stores = stores
        self._archive = archive
        self.done = Exported()

    async def run(self, tenant: str = "", take: bool = False) -> Exported:
        """Export every waiting job (of one tenant); with ``take`` they are cancelled here, each once it is written.

        What was written before is not written again. A job that a worker takes meanwhile stays with it.
        """
        here = await self._waiting(tenant)
        known = {job.job_id for job in self._archive.jobs()}
        self.done.known = len(known & set(here))
        fresh = [job_id for job_id in here if job_id not in known]
        for start in range(0, len(fresh), BATCH):
            found = [await self._read(job_id) for job_id in fresh[start : start + BATCH]]
            jobs = [job for job in found if job is not None]
            self._archive.add(jobs)
            self.done.written += len(jobs)
        if take:
            # The newest first: a job that waits for another must not see that one cancelled.
            await self._take(list(reversed(here)))
        return self.done

    async def _waiting(self, tenant: str) -> list[str]:
        """Ids of waiting jobs, oldest first."""
        found: list[tuple[int, str]] = []
        before = ""
        while True:
            page = await self._queue.list_jobs(tenant, sorted(WAITING), PAGE, before)
            found += [(row.number("created_at"), row.text("job_id")) for row in page.rows]
            before = page.text("next")
            if not before:
                break
        found.reverse()
        return [job_id for _, job_id in sorted(found, key=lambda pair: pair[0])]

    async def _read(self, job_id: str) -> ArchivedJob | None:
        try:
            record, body = await self._queue.job(job_id), await self._queue.payload(job_id)
        except NotFound:
            return None
        if record.text("status") not in WAITING:
            return None
        message = submission(record, body)
        await self._keep_files(job_id, record.text("tenant"), message)
        await self._drop_ended_parents(message)
        return ArchivedJob(job_id, record.text("tenant"), record.number("created_at"), record.text("status"), message)

    async def _drop_ended_parents(self, message: dict[str, Any]) -> None:
        open_ = [parent for parent in message.get("depends_on", ()) if not await self._ended(parent)]
        message.pop("depends_on", None)
        if open_:
            message["depends_on"] = open_

    async def _ended(self, job_id: str) -> bool:
        try:
            return (await self._queue.job(job_id)).text("status") in TERMINAL
        except NotFound:
            return True

    # -- files --------------------------------------------------------------------------------------------------------

    async def _keep_files(self, job_id: str, tenant: str, message: dict[str, Any]) -> None:
        """Keep what the inputs name; an output of a job that has ended becomes a file like any other."""
        inputs = message["payload"].get("inputs") or {}
        for place, source in inputs.items():
            try:
                if source.get("asset"):
                    await self._keep_asset(tenant, str(source["asset"]))
                elif source.get("output"):
                    inputs[place] = await self._keep_output(source)
            except NotFound:
                self.done.missing.append(f"{job_id}: input {place}")

    async def _keep_asset(self, tenant: str, name: str) -> None:
        file = await self._stores.assets.stat(f"{tenant_folder(tenant)}/{name.removeprefix('blake3:')}")
        await self._archive.keep(name, self._stores.assets.read(file))

    async def _keep_output(self, source: dict[str, Any]) -> dict[str, Any]:
        wanted = source["output"]
        answer = await self._queue.job(wanted["job_id"])
        if answer.text("status") not in TERMINAL:
            return source  # that job is exported too, or still runs here
        made = [one for one in _outputs(answer) if one.get("node_id") == wanted["node_id"] and one.get("key")]
        if len(made) <= wanted.get("index", 0):
            raise NotFound("There is no such output.")
        output = made[wanted.get("index", 0)]
        file = await self._stores.outputs.stat(output["key"])
        await self._archive.keep(file.hash, self._stores.outputs.read(file))
        return {"asset": file.hash, "filename": output.get("filename") or file.label}

    # -- taking -------------------------------------------------------------------------------------------------------

    async def _take(self, job_ids: list[str]) -> None:
        stayed: list[str] = []
        for job_id in job_ids:
            try:
                await self._queue.cancel(job_id, reason=REASON, waiting=True)
                self.done.taken += 1
            except (Conflict, NotFound):
                stayed.append(job_id)
        self._archive.withdraw(stayed)
        self.done.written -= len(stayed)


def _outputs(answer: Answer) -> list[dict[str, Any]]:
    result = json.loads(answer.text("result") or "{}")
    outputs = result.get("outputs") if isinstance(result, dict) else None
    return [one for one in outputs or () if isinstance(one, dict)]


def submission(record: Answer, body: Answer) -> dict[str, Any]:
    """A job's record and body as the message that would submit it again (its idempotency key is not kept)."""
    spec = json.loads(body.text("spec") or "{}")
    message: dict[str, Any] = {"type": "submit_job", "payload": decode_payload(body.pairs.get("payload", b"{}"))}
    texts = {"job_type": "comfyui", "group": "", "on_parent_failure": "fail"}
    message |= {name: record.text(name) for name, default in texts.items() if record.text(name, default) != default}
    numbers = {"priority": 0, "max_attempts": 3}
    message |= {
        name: record.number(name, default)
        for name, default in numbers.items()
        if record.number(name, default) != default
    }
    if record.text("timeout_s"):
        message["timeout_s"] = float(record.text("timeout_s"))
    if record.text("status") == JobStatus.SCHEDULED and record.number("due_at"):
        message["start_at"] = record.number("due_at")
    if record.number("expires_at"):
        # `expires_s` counts from the submit; what had expired by then expires at once.
        message["expires_at"] = record.number("expires_at")
    kept = ("requirements", "metadata", "webhook_url", "depends_on")
    return message | {name: spec[name] for name in kept if spec.get(name) is not None}


@dataclass(slots=True)
class Imported:
    """What an import did; ``refused`` says which job and why."""

    submitted: int = 0
    returned: int = 0
    known: int = 0
    refused: list[str] = field(default_factory=list)


class Importer:
    """Submits the jobs of an archive under their own ids; one that is there already stays as it is."""

    def __init__(self, queue: Queue, submitter: Submitter, assets: FileStore, archive: Archive) -> None:
        self._queue = queue
        self._submitter = submitter
        self._assets = assets
        self._archive = archive
        self._here: frozenset[str] = frozenset()
        self.done = Imported()

    async def run(self, now: int) -> Imported:
        """Import every job, oldest first; ``now`` is epoch ms. It may be repeated after an interruption."""
        by_tenant: dict[str, list[ArchivedJob]] = defaultdict(list)
        archived = self._archive.jobs()
        self._here = frozenset(job.job_id for job in archived)
        for job in archived:
            by_tenant[job.tenant].append(job)
        for tenant, jobs in by_tenant.items():
            for start in range(0, len(jobs), BATCH):
                await self._submit(tenant, [job for job in jobs[start : start + BATCH] if await self._is_new(job)], now)
        return self.done

    async def _is_new(self, job: ArchivedJob) -> bool:
        """Whether the queue lacks the job; one that an export took out of this very queue is put back."""
        try:
            record = await self._queue.job(job.job_id)
        except NotFound:
            return True
        if record.text("status") == JobStatus.CANCELLED and record.text("reason") == REASON:
            await self._bring_files(job)
            await self._queue.retry(job.job_id)
            self.done.returned += 1
        else:
            self.done.known += 1
        return False

    async def _submit(self, tenant: str, jobs: list[ArchivedJob], now: int) -> None:
        ready = [replace(job, submit=await self._ready(job, now)) for job in jobs]
        if not ready:
            return
        outcomes = await self._submitter.submit_many(
            tenant, [job.submit for job in ready], None, [job.job_id for job in ready]
        )
        for job, outcome in zip(ready, outcomes, strict=True):
            if isinstance(outcome, EmqError):
                self.done.refused.append(f"{job.job_id}: {outcome.code}: {outcome.message}")
            else:
                self.done.submitted += 1

    async def _ready(self, job: ArchivedJob, now: int) -> dict[str, Any]:
        """The message for this queue: its files are here, parents that it names exist, its expiry counts from now."""
        message = dict(job.submit)
        await self._bring_files(job)
        if expires_at := message.pop("expires_at", None):
            message["expires_s"] = max(0.001, (expires_at - now) / 1000)
        if parents := message.pop("depends_on", None):
            message["depends_on"] = [one for one in parents if one in self._here or await self._exists(one)]
        return message

    async def _exists(self, job_id: str) -> bool:
        try:
            await self._queue.job(job_id)
        except NotFound:
            return False
        return True

    async def _bring_files(self, job: ArchivedJob) -> None:
        for source in (job.submit["payload"].get("inputs") or {}).values():
            name = source.get("asset")
            if name and (path := self._archive.file(name)).is_file():
                expected = Expected(limit=path.stat().st_size, hash=name)
                label = source.get("filename") or "file"
                await self._assets.put(tenant_folder(job.tenant), None, _chunks(path), label=label, expected=expected)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
