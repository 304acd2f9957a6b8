"""The jobs that ended last, kept between readings: an open page asks only for those that ended since."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

Jobs = list[dict[str, Any]]
Ended = Callable[..., Awaitable[tuple[Jobs, int | None]]]
"""``broker.jobs.history.History.ended``."""

PAGE, PAGES = 250, 8
OVERLAP_MS = 2000
"""What is asked for again each time: a replica of Redis may be behind, a clock may be set back a little."""
WHOLE_S = 10.0
"""After this all are read anew: some run again or were deleted."""


class Latest:
    """The latest 2,000 ended jobs of a status and a tenant (empty: all)."""

    def __init__(self, ended: Ended, **filters: str) -> None:
        self._ended = ended
        self._filters = filters
        self._jobs: dict[str, dict[str, Any]] = {}
        self._since = self._from = 0
        self._state: object = None
        self._read_at = float("-inf")
        self._turn = asyncio.Lock()

    async def since(self, since: int, state: object = None) -> tuple[Jobs, int]:
        """Those that ended after ``since``, the latest first, and from when on all of them are there.

        ``state`` is something that changes whenever one of them goes: all are read anew then.
        """
        async with self._turn:
            old = time.monotonic() - self._read_at > WHOLE_S or state != self._state
            if old or since < self._since or not await self._more():
                await self._all(since)
                self._state = state
            return [job for job in self._jobs.values() if job["finished_at"] > since], max(since, self._from)

    async def _all(self, since: int) -> None:
        began = time.monotonic()
        found: dict[str, dict[str, Any]] = {}
        until: int | None = None
        for _ in range(PAGES):
            jobs, until = await self._ended(since=since, until=until, limit=PAGE, **self._filters)
            found |= {job["job_id"]: job for job in jobs}
            if until is None:
                break
        self._jobs, self._since, self._from = found, since, since if until is None else until
        self._read_at = began

    async def _more(self) -> bool:
        """Add those that ended since the last time; false: they are too many for one page."""
        newest = max((job["finished_at"] for job in self._jobs.values()), default=self._since)
        jobs, more = await self._ended(since=max(self._since, newest - OVERLAP_MS), limit=PAGE, **self._filters)
        if more is not None:
            return False
        found = {job["job_id"]: job for job in jobs}
        if all(self._jobs.get(name) == job for name, job in found.items()):
            return True
        found |= {name: job for name, job in self._jobs.items() if name not in found}
        kept = sorted(found.values(), key=lambda job: -job["finished_at"])
        if len(kept) > PAGE * PAGES:
            self._from = max(self._from, kept[PAGE * PAGES]["finished_at"])
            kept = kept[: PAGE * PAGES]
        self._jobs = {job["job_id"]: job for job in kept}
        return True
