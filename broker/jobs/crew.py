"""What all workers do: one reading for all who ask in the same moment, in which only what has changed is read anew."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from broker.jobs.figures import doing, working
from broker.queue.queue import Answer, Queue


@dataclass(frozen=True, slots=True)
class _Known:
    row: Answer
    worker: dict[str, Any]


class Crew:
    """The fleet with what each worker does right now; nothing of it is to be changed."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._known: dict[bytes, _Known] = {}
        self._shown: list[dict[str, Any]] = []
        self._began = float("-inf")
        self._turn = asyncio.Lock()

    async def read(self, max_age_s: float) -> list[dict[str, Any]]:
        """All workers by name, as they were ``max_age_s`` ago at most; what has not changed is the same object."""
        wanted = time.monotonic() - max_age_s
        async with self._turn:
            if self._began < wanted:
                began = time.monotonic()
                rows = (await self._queue.workers(jobs=True)).rows
                self._known = {known.row.pairs["worker_id"]: known for known in map(self._of, rows)}
                self._shown = sorted(
                    (known.worker for known in self._known.values()), key=lambda worker: str(worker["worker_id"])
                )
                self._began = began
            return self._shown

    def _of(self, row: Answer) -> _Known:
        known = self._known.get(row.pairs["worker_id"])
        if known is None or known.row.pairs != row.pairs:
            return _Known(row, working(row))
        if known.row.rows == row.rows:
            return known
        return _Known(row, {**known.worker, "doing": [doing(job) for job in row.rows]})
