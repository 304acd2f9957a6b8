"""``/queue``: what waits, in claim order, and what cannot run anywhere."""

from __future__ import annotations

import time
from collections import OrderedDict
from functools import partial
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from broker.api.services import Services
from broker.dashboard.frame import Page, View, add_page
from broker.protocol.base import now_ms

PER_PAGE = 50
FORECAST = 20
"""Jobs of a page whose start is predicted."""
FORECAST_S = 5.0
AT_ONCE = 5
"""Of these at each look at an open page: where twenty start a second, most are gone before anybody has read when."""
_KEPT, _KEPT_S = 2000, 60.0


class Starts:
    """Predicted starts, each kept for a few seconds: a page is read more often than they change."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    async def of(self, parts: Services, job_ids: list[str], most: int = FORECAST) -> dict[str, Any]:
        """When waiting jobs are expected to start; those of which nothing is known are left out.

        ``most`` of them are predicted now, those first that start first.
        """
        now = time.monotonic()
        stale = [job for job in job_ids if now - self._known.get(job, (float("-inf"), None))[0] > FORECAST_S][:most]
        starts = await parts.operations.submitter.forecasts.of_jobs(stale)
        for job, start in zip(stale, starts, strict=True):
            about = {"p50": start.p50 // 1000 * 1000, "p90": start.p90 // 1000 * 1000} if start else None
            self._known[job] = (now, about)
            self._known.move_to_end(job)
        while len(self._known) > _KEPT or (self._known and now - next(iter(self._known.values()))[0] > _KEPT_S):
            self._known.popitem(last=False)
        return {job: self._known[job][1] for job in job_ids if job in self._known and self._known[job][1]}


def add_to(app: web.Application) -> None:
    """Register the page."""
    add_page(app, Page("queue", "/queue", "Queue", "queue.html", partial(read, Starts()), nav="Queue"))


def _number(text: str) -> int | None:
    try:
        return int(text[:17])
    except ValueError:
        return None


async def read(starts: Starts, parts: Services, view: View) -> dict[str, Any]:
    """A page of waiting jobs with their places and expected starts; the classes that nobody can run."""
    priority, after, place = _number(view.get("priority")), view.get("after"), _number(view.get("n")) or 0
    found = await parts.operations.waiting(view.sees, priority=priority, after=after, limit=PER_PAGE)
    jobs = found["jobs"]
    ahead = [job["job_id"] for job in jobs[:FORECAST] if not job["held"]]
    expected = await starts.of(parts, ahead, AT_ONCE if view.live else FORECAST)
    for number, job in enumerate(jobs, place + 1):
        job["about"] = {**job}
        job["place"] = number if not view.sees and priority is None else None
        job["expected"] = expected.get(job["job_id"])
    more = {"after": found["next"], "n": place + len(jobs)} | ({"priority": priority} if priority is not None else {})
    return {
        "jobs": jobs,
        "stuck": found["stuck"],
        "stuck_jobs": sum(each["jobs"] for each in found["stuck"]),
        "partial": found["partial"],
        "priority": priority,
        "first": not after,
        "more": f"/queue?{urlencode(more)}" if found["next"] else "",
        "now": now_ms() // 5000 * 5000,
    }
