"""Removal of the files of jobs whose record has ended its life, and of input files that nobody uses."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol

from broker.errors import EmqError, NotFound
from broker.files.retention import NO_RULES, KeepRules
from broker.files.store import FileStore

log = logging.getLogger(__name__)
ROUND_LIMIT = 20_000
SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 3600.0


class Record(Protocol):
    """A job's record, as far as it matters here."""

    def text(self, name: str, default: str = "") -> str:
        """A field."""

    def number(self, name: str, default: int = 0) -> int:
        """A field that is a number."""


class Records(Protocol):
    """The one question that is asked of the queue."""

    async def job(self, job_id: str, tenant: str = "") -> Record:
        """A job's record; raises ``NotFound``."""


class Cleaner:
    """Walks the job folders in order, a bounded number a round, and goes on where it stopped.

    A folder goes when the rules say that its job ended long enough ago, or when its job has no record and nothing in it
    was written for ``min_age_s`` seconds. The age, the shortest life of a record, keeps a broker that was started on an
    empty or wrong Redis from removing fresh files.
    """

    def __init__(self, store: FileStore, records: Records, min_age_s: float, rules: KeepRules = NO_RULES) -> None:
        self._store = store
        self._records = records
        self._min_age = timedelta(seconds=min_age_s)
        self._rules = rules
        self._after = ""

    async def run(self) -> None:
        """Clean for ever: each hour, or twice within the shortest time that a rule gives."""
        await _repeat(self.round, self._rules.shortest, "expired jobs' folders of files")

    async def round(self, limit: int = ROUND_LIMIT) -> int:
        """One bounded walk; answers how many job folders were removed."""
        removed = 0
        for folder in await self._next_folders(limit):
            if await self._is_over(folder):
                await self._store.delete_folder(folder)
                removed += 1
        return removed

    async def _next_folders(self, limit: int) -> list[str]:
        found: list[str] = []
        for tenant in await self._store.folders():
            found = heapq.nsmallest(limit, [*found, *await self._store.folders(tenant, self._after, limit)])
        self._after = found[-1] if len(found) == limit else ""
        return found

    async def _is_over(self, folder: str) -> bool:
        try:
            record = await self._records.job(folder.rpartition("/")[2])
        except NotFound:
            written = await self._store.last_modified(folder)
            return written is None or datetime.now(UTC) - written > self._min_age
        kept_s = self._rules.seconds(record.text("tenant"), record.text("status"))
        ended_at = record.number("finished_at")
        return kept_s is not None and ended_at > 0 and time.time() - ended_at / 1000 > kept_s


async def drop_unused(store: FileStore) -> None:
    """Remove for ever what is not used any more, from a store that notes the use of its files."""
    if not store.keep_unused_s:
        return

    async def drop() -> int:
        return sum([await store.delete_unused(tenant) for tenant in await store.folders()])

    await _repeat(drop, store.keep_unused_s, "input files that were not used any more")


async def _repeat(clean: Callable[[], Awaitable[int]], kept_s: float | None, what: str) -> None:
    """Clean each hour, or twice in the time that something is kept where that is shorter."""
    pause_s = LONGEST_PAUSE_S if kept_s is None else min(max(kept_s / 2, SHORTEST_PAUSE_S), LONGEST_PAUSE_S)
    while True:
        try:
            if removed := await clean():
                log.info("removed %s %s", removed, what)
        except EmqError as error:
            log.warning("cleaning the object store: %s", error.message)
        await asyncio.sleep(pause_s)
