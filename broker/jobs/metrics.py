"""What a monitoring system reads: the pool's figures and its Redis server's, read once for everybody who asks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from broker.errors import EmqError
from broker.jobs.fleet import Fleet
from broker.queue.queue import Answer, Queue

MAX_AGE_S = 1.0
SHOWN = 20
"""Classes with series of their own."""
KEEP_S = 3600.0
"""A class keeps its series this long after its last job went, so that they do not come and go."""

Info = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Depth:
    """Claimable jobs of one class and priority."""

    job_class: str
    priority: int
    waiting: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures of one moment; ``stats`` is ``None`` while Redis is away."""

    stats: Answer | None = None
    more: Answer | None = None
    server: dict[str, Any] = field(default_factory=dict)
    depths: list[Depth] = field(default_factory=list)
    oldest: dict[int, float] = field(default_factory=dict)
    """Age in seconds by priority, among the classes whose turn comes next."""
    models: dict[str, str] = field(default_factory=dict)
    """Heavy models by class, for classes whose models the fleet has."""


class PoolMetrics:
    """Reads the figures, at most once a second however many ask."""

    def __init__(self, queue: Queue, fleet: Fleet, info: Info) -> None:
        self._queue = queue
        self._fleet = fleet
        self._info = info
        self._lock = asyncio.Lock()
        self._latest, self._taken_at = Snapshot(), float("-inf")
        self._shown: dict[str, float] = {}

    async def snapshot(self) -> Snapshot:
        """The figures, at most a second old; an empty snapshot while Redis is away."""
        async with self._lock:
            if time.monotonic() - self._taken_at >= MAX_AGE_S:
                self._latest = await self._read()
                self._taken_at = time.monotonic()
            return self._latest

    async def _read(self) -> Snapshot:
        try:
            stats, more, server, view = await asyncio.gather(
                self._queue.stats(), self._queue.metrics(self._shown), self._info(), self._fleet.view()
            )
        except EmqError:
            return Snapshot()
        depths = self._depths(more)
        kinds = {row.text("class"): row.lines("kind") for row in more.rows}
        # A file that no worker has is only a text that some client sent.
        models = {
            name: ", ".join(kind)
            for name, kind in kinds.items()
            if name in self._shown and kind and all(f"m:{file}" in view.atoms for file in kind)
        }
        return Snapshot(stats, more, server, depths, _oldest(more), models)

    def _depths(self, more: Answer) -> list[Depth]:
        """What waits in the classes that are shown."""
        found = []
        for row in more.rows:
            name, lines = row.text("class"), [line.split() for line in row.lines("levels")]
            if self._show(name, bool(lines)):
                found += [Depth(name, int(level), int(n), int(age) / 1000) for level, n, age in lines]
        return found

    def _show(self, name: str, waiting: bool) -> bool:
        """Whether a class has series of its own; the first ``SHOWN`` have, as long as they are in use."""
        now = time.monotonic()
        if waiting and (name in self._shown or len(self._shown) < SHOWN):
            self._shown[name] = now
        elif now - self._shown.get(name, now) > KEEP_S:
            del self._shown[name]
        return name in self._shown


def _oldest(more: Answer) -> dict[int, float]:
    oldest: dict[int, float] = {}
    for line in (line for row in more.rows for line in row.lines("levels")):
        level, _, age_ms = line.split()
        oldest[int(level)] = max(oldest.get(int(level), 0), int(age_ms) / 1000)
    return oldest
