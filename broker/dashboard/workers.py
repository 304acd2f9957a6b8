"""``/workers`` and ``/workers/{worker_id}``: who there is and was, and one of them closely."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import Any

from aiohttp import web

from broker.api.services import Services
from broker.dashboard.fleet import dress
from broker.dashboard.frame import Page, View, add_page
from broker.dashboard.previews import PREVIEWS
from broker.dashboard.words import element
from broker.jobs.history import kind_of
from broker.protocol.base import now_ms

MOST = 1000
RECENT = 25
HOUR_MS = 3_600_000
STATES = ("idle", "busy", "draining", "unhealthy", "offline")


def add_to(app: web.Application) -> None:
    """Register the pages."""
    add_page(app, Page("workers", "/workers", "Workers", "workers.html", read, nav="Workers"))
    add_page(app, Page("worker", "/workers/{worker_id}", "Worker", "worker.html", partial(read_one, app)))


async def read(parts: Services, view: View) -> dict[str, Any]:
    """Every worker that is known, also those that are gone; ``status``, ``q`` and ``has`` (a model file) choose."""
    has = view.get("has")
    workers = await parts.operations.working(max_age_s=view.max_age_s)
    if has:
        able = {worker["worker_id"] for worker in await parts.operations.workers(view.sees, has)}
        workers = [worker for worker in workers if worker["worker_id"] in able]
    found = Counter(worker["status"] for worker in workers)
    counts = {state: found[state] for state in STATES}
    wanted, text = view.get("status"), view.get("q").casefold()
    shown = [
        worker for worker in workers
        if (not wanted or worker["status"] == wanted) and (not text or text in _words(worker))
    ]  # fmt: skip
    return {"workers": [_row(worker, view.sees) for worker in shown[:MOST]], "hidden": len(shown) - MOST,
            "counts": counts, "total": len(workers), "status": wanted, "q": view.get("q"), "has": has}  # fmt: skip


def _row(worker: dict[str, Any], sees: str) -> tuple[str, tuple[Any, int], dict[str, Any]]:
    """A part of the page: what a row shows beyond the record is how many jobs it holds of those that may be seen."""
    held = sum(sees in ("", job["tenant"]) for job in worker["doing"])
    return element("w", worker["worker_id"]), (worker["record"], held), {**worker, "held": held}


def _words(worker: dict[str, Any]) -> str:
    gpus = [str(gpu.get("name", "")) for gpu in worker["gpus"]]
    named = [worker["worker_id"], worker["machine_id"] or "", *worker["tags"], *worker["loaded_models"], *gpus]
    return " ".join(named).casefold()


async def read_one(app: web.Application, parts: Services, view: View) -> dict[str, Any]:
    """One worker: its record, what it does, what it did last, and how busy it was. Raises ``NotFound``."""
    worker_id = view.get("worker_id")
    await parts.operations.worker(worker_id)  # not there: said so
    [worker], load, (ended, _), (failed, more) = await asyncio.gather(
        parts.operations.working(worker_id),
        parts.history.gpu_load(),
        parts.history.ended(worker=worker_id, limit=RECENT, tenant=view.sees),
        parts.history.ended(worker=worker_id, status="failed", since=now_ms() - HOUR_MS, tenant=view.sees),
    )
    worker = dress(worker, load, app[PREVIEWS], view)
    shown = [{**job, "kind": kind_of(job), "ran_ms": _ran_ms(job)} for job in ended]
    return {"worker": worker, "ended": shown, "failed": len(failed), "more_failed": more is not None}


def _ran_ms(job: dict[str, Any]) -> int | None:
    until = job["executed_at"] or job["finished_at"]
    return until - job["started_at"] if until and job["started_at"] else None
