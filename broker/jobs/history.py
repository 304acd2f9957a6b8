"""History for the pages: what happened in each minute, sampled by one replica, and jobs by when they ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from broker.errors import EmqError
from broker.jobs.figures import public_stats, working
from broker.jobs.latest import Latest
from broker.jobs.records import loads
from broker.protocol.base import now_ms
from broker.queue.queue import Answer, Queue, parse
from broker.queue.series import KEPT, Series
from broker.recent import Recent

log = logging.getLogger(__name__)

MINUTE_MS = 60_000
MOST_PAGES = 25
"""Pages of ended jobs that one sample reads: 5,000 jobs a minute; of more, the latest count."""
MOST_KINDS, MOST_TENANTS, MOST_GPUS = 20, 50, 1000
MOST_LATEST, MOST_ENDED = 32, 5000
FRESH_S, DUE_S = 10.0, 0.5
"""How old samples may be; the same while the next one is due."""
LATE_MS = 5000
OTHERS = "others"


def ended_job(row: Answer) -> dict[str, Any]:
    """One job of ``emq_ended``; times in epoch ms, ``None`` where there is none."""
    times = {
        name: row.number(name) or None
        for name in ("created_at", "claimed_at", "started_at", "executed_at", "finished_at")
    }
    return {
        "job_id": row.text("job_id"),
        "status": row.text("status"),
        "tenant": row.text("tenant"),
        "worker_id": row.text("worker_id") or None,
        "class": row.text("class"),
        "models": row.lines("models"),
        "priority": row.number("priority"),
        "attempt": row.number("attempt"),
        "error_code": row.text("error_code") or None,
        "error": loads(row.text("error")),
        **times,
    }


class EndedJobs:
    """Ended jobs that were read last. One stays as it is until it is run again, and then it ends at another time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._known: Recent[tuple[bytes, bytes], dict[str, Any]] = Recent(MOST_ENDED, clock)

    def __len__(self) -> int:
        return len(self._known)

    def read(self, raw: list[Any], jobs: list[dict[str, Any]]) -> Answer:
        """The answer of ``emq_ended`` without its rows: these are added to ``jobs``, parsed if they are not known."""
        answer = Answer(raw[0].decode())
        for name, value in zip(raw[1::2], raw[2::2], strict=True):
            if isinstance(value, list):
                jobs.append(self._job(value))
            else:
                answer.pairs[name.decode()] = value
        return answer

    def _job(self, row: list[Any]) -> dict[str, Any]:
        fields = dict(zip(row[1::2], row[2::2], strict=True))  # a worker may be called like a field
        name = fields[b"job_id"], fields[b"finished_at"]
        return self._known.get(name, lambda: ended_job(parse(row)))


class History:
    """Reads the samples (at most ten seconds old) and the ended jobs."""

    def __init__(self, queue: Queue, series: Series) -> None:
        self._queue = queue
        self._series = series
        self._known: list[dict[str, Any]] = []
        self._turn = asyncio.Lock()
        self._asked = 0
        self._read_at = float("-inf")
        self._load: tuple[list[dict[str, Any]], int, dict[str, list[float]]] = ([], 0, {})
        self._latest: dict[tuple[str, str], Latest] = {}
        self._ended = EndedJobs()

    async def samples(self, minutes: int = 60) -> list[dict[str, Any]]:
        """The newest samples, the oldest first; see ``docs/queue.md`` for their fields."""
        minutes = max(1, min(KEPT, minutes))
        async with self._turn:
            if self._asked < minutes or self._are_old():
                self._known = await self._series.last(minutes)
                self._asked, self._read_at = minutes, time.monotonic()
        return self._known[-minutes:]

    def _are_old(self) -> bool:
        """Whether there may be newer samples: one is written just after each minute."""
        late_ms = now_ms() - self._known[-1]["t"] - MINUTE_MS if self._known else 0
        return time.monotonic() - self._read_at > (DUE_S if 0 <= late_ms < LATE_MS else FRESH_S)

    async def ended(
        self, *, since: int | None = None, until: int | None = None, limit: int = 200, **filters: str
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Jobs by when they ended, the latest first, and the ``until`` that goes on (``None``: no more).

        They are not to be changed. Filters: ``tenant``, ``worker``, ``status`` (lines; else completed and failed).
        """
        jobs: list[dict[str, Any]] = []
        read = partial(self._ended.read, jobs=jobs)
        answer = await self._queue.ended(since=since, until=until, limit=limit, read=read, **filters)
        return jobs, answer.number("next") or None

    async def gpu_load(self, minutes: int = 60) -> dict[str, list[float]]:
        """How busy each GPU was in the last minutes, in percent, the oldest first."""
        samples = await self.samples(minutes)
        if self._load[0] is not self._known or self._load[1] != minutes:
            names = {name for sample in samples for name in sample["gpus"]}
            load = {name: [sample["gpus"].get(name, 0) for sample in samples] for name in names}
            self._load = (self._known, minutes, load)
        return self._load[2]

    def latest(self, *, status: str = "", tenant: str = "") -> Latest:
        """The jobs that ended last, kept for whoever asks often; ``status``: else completed and failed."""
        filters = {"status": status, "tenant": tenant}
        if (status, tenant) not in self._latest:
            if len(self._latest) >= MOST_LATEST:
                self._latest.clear()
            self._latest[status, tenant] = Latest(self.ended, **filters)
        return self._latest[status, tenant]


class Recorder:
    """Samples each minute that no other replica has sampled."""

    def __init__(self, queue: Queue, series: Series) -> None:
        self._queue = queue
        self._series = series

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await asyncio.sleep(MINUTE_MS / 1000 - time.time() % (MINUTE_MS / 1000) + 0.5)
            try:
                if await self._series.take_turn(now_ms() // MINUTE_MS):
                    await self._series.add(await self.sample(now_ms() // MINUTE_MS * MINUTE_MS))
            except EmqError as error:
                log.warning("A minute of the history is missing: %s", error.message)

    async def sample(self, until: int) -> dict[str, Any]:
        """What happened in the minute before ``until``."""
        stats = public_stats(await self._queue.stats())
        fleet = [working(row) for row in (await self._queue.workers(jobs=True)).rows]
        since, jobs, cursor = until - MINUTE_MS, [], until
        for _ in range(MOST_PAGES):
            answer = await self._queue.ended(since=since, until=cursor, limit=200)
            jobs += [ended_job(row) for row in answer.rows]
            cursor = answer.number("next")
            if not cursor:
                break
        return {
            "t": until,
            "queued": stats["queued"],
            "running": stats["running"],
            "oldest_wait_ms": stats["oldest_wait_ms"],
            "workers": stats["workers"],
            "totals": stats["totals"],
            "kinds": _kinds(jobs),
            "tenants": _tenants(jobs),
            "gpus": _busy(jobs, fleet, since, until),
        }


def kind_of(job: dict[str, Any]) -> str:
    """What jobs are compared by: the heavy models they load, else their class."""
    return " + ".join(job["models"]) or f"class {job['class'][:8]}"


def quantiles(values: list[float]) -> list[float] | None:
    """p50 and p95."""
    if not values:
        return None
    ordered = sorted(values)
    return [ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.95)]


def _kinds(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Count, failures, and p50/p95 of wait and run in ms, of the most frequent kinds; the rest together."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for job in jobs:
        by_kind[kind_of(job)].append(job)
    ranked = sorted(by_kind, key=lambda kind: -len(by_kind[kind]))
    if len(ranked) > MOST_KINDS:
        by_kind[OTHERS] = [job for kind in ranked[MOST_KINDS - 1 :] for job in by_kind[kind]]
        ranked = [*ranked[: MOST_KINDS - 1], OTHERS]
    return {kind: _figures(by_kind[kind]) for kind in ranked}


def _figures(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    started = [job for job in jobs if job["started_at"]]
    return {
        "n": len(jobs),
        "failed": sum(job["status"] == "failed" for job in jobs),
        "wait_ms": quantiles([job["started_at"] - job["created_at"] for job in started if job["created_at"]]),
        "run_ms": quantiles([_ran_until(job) - job["started_at"] for job in started]),
    }


def _tenants(jobs: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for job in jobs:
        counts[job["tenant"]] += 1
    ranked = sorted(counts, key=lambda name: -counts[name])
    return {name: counts[name] for name in ranked[:MOST_TENANTS]}


def _ran_until(job: dict[str, Any]) -> int:
    return int(job["executed_at"] or job["finished_at"] or 0)


def _busy(jobs: list[dict[str, Any]], fleet: list[dict[str, Any]], since: int, until: int) -> dict[str, float]:
    """Percent of the minute that each live worker's GPU executed."""
    spans = [(job["worker_id"], job["started_at"], _ran_until(job)) for job in jobs if job["started_at"]]
    live = [worker for worker in fleet if worker["status"] != "offline"][:MOST_GPUS]
    for worker in live:
        spans += [(worker["worker_id"], job["started_at"], until) for job in worker["doing"] if job["started_at"]]
    busy: dict[str, float] = {worker["worker_id"]: 0 for worker in live}
    for worker_id, begin, end in spans:
        if worker_id in busy:
            busy[worker_id] += max(0, min(end, until) - max(begin, since))
    return {name: round(min(100.0, 100 * ms / MINUTE_MS), 1) for name, ms in busy.items()}
