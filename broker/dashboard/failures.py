"""``/failures``: what goes wrong, grouped by its signature, and what is done about a whole group."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web

from broker.access.identity import Role, current
from broker.api.services import Services, services
from broker.dashboard.forms import done, field, read_form
from broker.dashboard.frame import Page, View, add_action, add_page
from broker.errors import Conflict, NotFound
from broker.jobs.failures import FailureGroup, grouped
from broker.protocol.base import now_ms

SPANS = {"1": "1 h", "24": "24 h", "168": "7 days"}
MINUTE_MS = 60_000
PAGES = 8
MOST = 100
MOST_KEPT = 32
FEW_JOBS, MOST_JOBS = 5, 500
"""Jobs that a group names among others, and alone."""


def add_to(app: web.Application) -> None:
    """Register the page and its action."""
    add_page(
        app,
        Page(
            "failures", "/failures", "Failures", "failures.html", partial(read, Groups()), nav="Failures", every_s=0.75
        ),
    )
    add_action(app, "/ui/failures/{signature}/retry", retry, Role.OPERATOR)


class Groups:
    """The groups of an open page, made again when other jobs have failed: most looks find the same ones."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int], tuple[list[dict[str, Any]], list[FailureGroup]]] = {}

    def of(self, jobs: list[dict[str, Any]], view: View, hours: int) -> list[FailureGroup]:
        """The groups of these jobs."""
        known = self._known.get((view.sees, hours))
        if known is None or known[0] != jobs:
            if len(self._known) >= MOST_KEPT:
                self._known.clear()
            known = self._known[view.sees, hours] = jobs, grouped(jobs)
        return known[1]


async def read(open_groups: Groups, parts: Services, view: View) -> dict[str, Any]:
    """The groups of the last hours (``span``); ``worker`` shows one worker's, ``group`` one group with all its jobs."""
    hours = int(view.get("span", "24")) if view.get("span", "24") in SPANS else 24
    worker, wanted = view.get("worker"), view.get("group")
    groups, whole = (
        await _open_groups(open_groups, parts, view, hours)
        if view.live and not worker
        else await _groups(parts, view.sees, hours, worker)
    )
    if wanted:
        groups = [group for group in groups if group.signature == wanted]
    total = sum(len(group.jobs) for group in groups)
    return {"groups": groups[:MOST], "hours": hours, "spans": SPANS, "whole": whole, "total": total,
            "worker": worker, "group": wanted, "shown": MOST_JOBS if wanted else FEW_JOBS}  # fmt: skip


async def _open_groups(open_groups: Groups, parts: Services, view: View, hours: int) -> tuple[list[FailureGroup], bool]:
    """The same for a page that is open: only what has failed since is read, unless some of it has gone."""
    totals = (await parts.operations.stats(view.sees, view.max_age_s))["totals"]
    since = now_ms() // MINUTE_MS * MINUTE_MS - hours * 3_600_000
    latest = parts.history.latest(status="failed", tenant=view.sees)
    jobs, known = await latest.since(since, totals["retried"])
    return open_groups.of(jobs, view, hours), known == since


async def _groups(parts: Services, tenant: str, hours: int, worker: str = "") -> tuple[list[FailureGroup], bool]:
    """The groups, and whether all failures of the time were looked at."""
    since, jobs = now_ms() - hours * 3_600_000, []
    until: int | None = None
    for _ in range(PAGES):
        page, until = await parts.history.ended(since=since, until=until, status="failed", tenant=tenant, worker=worker)
        jobs += page
        if until is None:
            break
    return grouped(jobs), until is None


async def retry(request: web.Request) -> web.StreamResponse:
    """Run every job of a group again; with ``elsewhere`` not on the worker that failed, if another can."""
    form = await read_form(request)
    parts, who, wanted = services(request), current(request), request.match_info["signature"]
    span = field(form, "span", "24")
    groups, _ = await _groups(parts, who.sees, int(span) if span in SPANS else 24)
    group = next((group for group in groups if group.signature == wanted), None)
    if group is None:
        return done(request, form, "These jobs have been run again already, or are not kept any more.")
    again = 0
    for job_id in group.jobs:
        try:
            await parts.operations.retry(job_id, who.sees, elsewhere=field(form, "elsewhere") == "1")
            again += 1
        except (Conflict, NotFound):
            continue  # somebody was faster, or its record has gone
    return done(request, form, f"{again} of {len(group.jobs)} jobs run again.")
