"""``/jobs``: all jobs, newest first, found by a search; ``/jobs/bulk``: how many an action would be about."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from broker.access.identity import Role
from broker.api.services import Services
from broker.dashboard.frame import Page, View, add_page
from broker.dashboard.words import element, term
from broker.errors import NotFound
from broker.jobs.operations import Operations
from broker.jobs.search import Search
from broker.jobs.search import read as read_search
from broker.protocol.base import JobStatus, now_ms

PER_PAGE = 50
LATEST = 200
"""Failures that the facets of errors and workers count."""
FACETS, FACETS_S = 8, 10.0
Facet = tuple[str, list[tuple[str, str, int]]]
MOST = 10_000
"""Jobs that one action over a search is about."""
VERBS = {
    "cancel": "Cancel",
    "retry": "Retry",
    "elsewhere": "Retry elsewhere",
    "raise": "Priority +1",
    "lower": "Priority \N{MINUS SIGN}1",
}


def add_to(app: web.Application) -> None:
    """Register the pages."""
    add_page(app, Page("jobs", "/jobs", "Jobs", "jobs.html", partial(read, Facets()), nav="Jobs"))
    add_page(app, Page("bulk", "/jobs/bulk", "Jobs", "jobs_bulk.html", read_bulk, role=Role.OPERATOR, every_s=5.0))


def tenant_of(search: Search, sees: str) -> str:
    """Whose jobs a search is about (empty: everybody's); another tenant's is a problem for who may not see them."""
    if sees and search.tenant not in ("", sees):
        search.problem = f"There is no tenant {search.tenant} for you."
    return sees or search.tenant


async def find(ops: Operations, search: Search, sees: str, cursor: str | None, limit: int) -> dict[str, Any]:
    """A page of a search: ``jobs`` and ``next_cursor``."""
    tenant = tenant_of(search, sees)
    if search.job_id:
        try:
            return {"jobs": [await ops.record(search.job_id, tenant)], "next_cursor": None}
        except NotFound:
            return {"jobs": [], "next_cursor": None}
    wanted = search.wanted.model_copy(update={"limit": limit, "cursor": cursor})
    return await ops.list_jobs(tenant, wanted, search.fits)


async def read(facets: Facets, parts: Services, view: View) -> dict[str, Any]:
    """A page of jobs and the facets."""
    search, cursor = read_search(view.get("q"), now_ms()), view.get("cursor")
    cursor = cursor if cursor.isascii() and cursor.isdigit() and len(cursor) < 17 else ""
    found = await find(parts.operations, search, view.sees, cursor or None, PER_PAGE)
    following = found["next_cursor"]
    stats = await parts.operations.stats(view.sees, view.max_age_s)
    return {
        "search": search,
        "rows": [(element("j", job["job_id"]), (job,), job) for job in found["jobs"]],
        "first": not cursor,
        "more": "/jobs?" + urlencode({"q": search.text, "cursor": following}) if following else "",
        "states": [(state.value, stats["jobs"][state.value]) for state in JobStatus],
        "facets": [] if search.text else await facets.read(parts, view, stats),
        "verbs": VERBS,
    }


class Facets:
    """What the latest failures have in common, read again when there are others."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[tuple[int, ...], float, list[Facet]]] = {}

    async def read(self, parts: Services, view: View, stats: dict[str, Any]) -> list[Facet]:
        """A title, and words, searches and counts."""
        state, now = (stats["jobs"]["failed"], stats["totals"]["failed"], stats["totals"]["retried"]), time.monotonic()
        known = self._known.get(view.sees)
        if view.live and known and known[0] == state and now - known[1] < FACETS_S:
            return known[2]
        failures, _ = await parts.history.ended(status="failed", limit=LATEST, tenant=view.sees)
        if len(self._known) > 1000:
            self._known.clear()
        self._known[view.sees] = (state, now, _facets(failures))
        return self._known[view.sees][2]


def _facets(failures: list[dict[str, Any]]) -> list[Facet]:
    out = []
    for title, name, field in (("Errors", "error", "error_code"), ("Failed on", "worker", "worker_id")):
        counts = Counter(job[field] for job in failures if job[field])
        out.append((title, [(word, f"status:failed {term(word, name)}", n) for word, n in counts.most_common(FACETS)]))
    return [(title, words) for title, words in out if words]


async def read_bulk(parts: Services, view: View) -> dict[str, Any]:
    """How many jobs of a search were submitted until now: what an action would be about, before it is done."""
    search, until, verb = read_search(view.get("q"), now_ms()), now_ms(), view.get("do")
    jobs = 0 if search.problem or verb not in VERBS else await count(parts.operations, search, view.sees, until)
    return {"search": search, "until": until, "jobs": jobs, "verb": verb, "word": VERBS.get(verb, ""), "most": MOST}


async def count(ops: Operations, search: Search, sees: str, until: int) -> int:
    """Jobs of a search; counting ends at ``MOST`` + 1."""
    found, cursor = 0, None
    search.wanted = up_to(search, until)
    while found <= MOST:
        page = await find(ops, search, sees, cursor, 1000)
        found += len(page["jobs"])
        cursor = page["next_cursor"]
        if not cursor:
            break
    return min(found, MOST + 1)


def up_to(search: Search, until: int) -> Any:
    """The search, of jobs that were submitted until ``until``."""
    earlier = min(until, search.wanted.until or until)
    return search.wanted.model_copy(update={"until": earlier})
