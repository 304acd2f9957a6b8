"""``/timeline``: what each GPU did when, idle times and changes of model included."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from blake3 import blake3

from broker.api.services import Services
from broker.dashboard.frame import Page, View, add_page
from broker.dashboard.gantt import LABEL, ROW, TOP, WIDTH
from broker.jobs.history import kind_of
from broker.protocol.base import now_ms

SPANS = {"5": "5 min", "30": "30 min", "120": "2 h", "720": "12 h"}
MOST_ROWS, PAGES, MOST_KINDS = 60, 8, 10
COLOURS = 8
MINUTE_MS = 60_000
FOREIGN = "another tenant's"


@dataclass(frozen=True, slots=True)
class Bar:
    """One execution; x and width in the picture's units."""

    x: float
    width: float
    job_id: str
    kind: str
    status: str
    ms: int
    colour: int
    mine: bool
    swap: bool
    """Another model than the one before it."""


def add_to(app: web.Application) -> None:
    """Register the page."""
    add_page(app, Page("timeline", "/timeline", "Timeline", "timeline.html", read, nav="Timeline", every_s=0.75))


async def read(parts: Services, view: View) -> dict[str, Any]:
    """Bars of each worker in the last minutes (``span``); ``worker`` shows one alone."""
    minutes = int(view.get("span", "30")) if view.get("span", "30") in SPANS else 30
    until = now_ms() // 1000 * 1000
    since = until - minutes * 60_000
    workers = await parts.operations.working(max_age_s=view.max_age_s)
    if view.get("worker"):
        workers = [worker for worker in workers if worker["worker_id"] == view.get("worker")]
    spans, known = await _ended(parts, since, view)
    loads = [] if known == since else await parts.history.samples(minutes)
    for worker in workers:
        spans[worker["worker_id"]] += [
            (job["started_at"], until, job) for job in worker["doing"] if job["started_at"]
        ]  # fmt: skip
    busy = [worker for worker in workers if spans[worker["worker_id"]] or worker["status"] != "offline"]
    kinds = Counter(_kind(job, view) for worker in busy for _, _, job in spans[worker["worker_id"]])
    colours = coloured(kinds)
    rows = [
        _row(worker, spans[worker["worker_id"]], since, until, view=view, colours=colours)
        for worker in busy[:MOST_ROWS]
    ]
    for row in rows:
        row["loads"] = coarse(row["worker_id"], loads, since, known, (WIDTH - LABEL) / (until - since))
    return {
        "known_s": None if known == since else (until - known) // 1000,
        "legend": [(kind, colours[kind]) for kind, _ in kinds.most_common(MOST_KINDS)],
        "rows": rows, "hidden": len(busy) - len(rows), "minutes": minutes, "spans": SPANS,
        "ticks": _ticks(since, until),
        "height": TOP + ROW * max(1, len(rows)), "width": WIDTH,
        "worker": view.get("worker"),
    }  # fmt: skip


def _kind(job: dict[str, Any], view: View) -> str:
    """What a bar's colour stands for."""
    if view.sees not in ("", job["tenant"]):
        return FOREIGN
    return kind_of(job)


def coloured(kinds: Iterable[str]) -> dict[str, int]:
    """A colour for each kind: by its name, so that it keeps it, and another one where two have the same."""
    found: dict[str, int] = {}
    for kind in sorted(kinds):
        first = blake3(kind.encode()).digest()[0]
        free = [colour for n in range(COLOURS) if (colour := (first + n) % COLOURS) not in found.values()]
        found[kind] = free[0] if free else first % COLOURS
    return found


async def _ended(
    parts: Services, since: int, view: View
) -> tuple[dict[str, list[tuple[int, int, dict[str, Any]]]], int]:
    """Executions by worker, and from when on all of them are there: of many only the latest are read."""
    found: dict[str, list[tuple[int, int, dict[str, Any]]]] = defaultdict(list)
    jobs, known = await _latest(parts, since, view.get("worker"))
    for job in jobs:
        end = job["executed_at"] or job["finished_at"]
        if job["worker_id"] and job["started_at"] and end:
            found[job["worker_id"]].append((job["started_at"], end, job))
    return found, known


async def _latest(parts: Services, since: int, worker: str) -> tuple[list[dict[str, Any]], int]:
    """The jobs that ended last, of one worker or of all."""
    if not worker:
        return await parts.history.latest().since(since)
    found, until = [], None
    for _ in range(PAGES):
        jobs, until = await parts.history.ended(since=since, until=until, worker=worker)
        found += jobs
        if until is None:
            return found, since
    return found, max(since, until or since)


def coarse(
    worker: str, samples: list[dict[str, Any]], since: int, until: int, scale: float
) -> list[tuple[float, float, int]]:
    """What is known of the time before the executions: x, width and how busy (1-4), minute by minute."""
    cells: list[tuple[float, float, int]] = []
    for sample in samples:
        end, share = min(sample["t"], until), sample["gpus"].get(worker, 0)
        begin = max(sample["t"] - MINUTE_MS, since)
        if share and begin < end:
            x, width, level = LABEL + (begin - since) * scale, (end - begin) * scale, min(4, 1 + int(share // 25))
            before = cells[-1] if cells else (0.0, 0.0, 0)
            if before[2] == level and abs(before[0] + before[1] - x) < 0.5:
                x, width = before[0], before[1] + width
                cells.pop()
            cells.append((round(x, 1), round(width, 1), level))
    return cells


def _row(
    worker: dict[str, Any],
    spans: list[tuple[int, int, dict[str, Any]]],
    since: int,
    until: int,
    *,
    view: View,
    colours: dict[str, int],
) -> dict[str, Any]:
    scale = (WIDTH - LABEL) / (until - since)
    bars: list[Bar] = []
    busy, before = 0, ""
    for start, end, job in sorted(spans, key=lambda span: span[0]):
        begin, finish = max(start, since), min(end, until)
        mine = view.sees in ("", job["tenant"])
        kind = _kind(job, view)
        bars.append(
            Bar(
                x=round(LABEL + (begin - since) * scale, 1),
                width=max(1.0, round((finish - begin) * scale - 0.5, 1)),
                job_id=job["job_id"] if mine else "",
                kind=kind,
                status=job["status"],
                ms=end - start,
                colour=colours[kind],
                mine=mine,
                swap=bool(before) and kind != before,
            )
        )
        before = kind
        busy += max(0, finish - begin)
    share = round(100 * min(1.0, busy / (until - since)))
    swaps = sum(bar.swap for bar in bars)
    return {"worker_id": worker["worker_id"], "status": worker["status"], "bars": bars, "busy": share, "swaps": swaps}


def _ticks(since: int, until: int) -> list[dict[str, Any]]:
    """Five moments on the axis."""
    step = (until - since) / 5
    return [
        {"x": round(LABEL + (WIDTH - LABEL) * n / 5, 1), "ago_s": round((until - (since + step * n)) / 1000)}
        for n in range(5)
    ]
