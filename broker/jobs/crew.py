"""What all workers do: one reading for all who ask in the same moment, in which only what has changed is read anew."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from broker.jobs.figures import Doing, working
from broker.jobs.shared_reading import SharedReading
from broker.queue.queue import Answer, Queue
from broker.queue.rows import Rows


@dataclass(frozen=True, slots=True)
class _Known:
    row: Answer
    worker: dict[str, Any]
    doing: list[Doing]


class Crew:
    """The fleet with what each worker does right now; nothing of it is to be changed."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._rows = Rows()
        self._known: dict[bytes, _Known] = {}
        self._reading = SharedReading(self._read)

    async def read(self, max_age_s: float) -> list[dict[str, Any]]:
        """All workers by name, as they were ``max_age_s`` ago at most; what has not changed is the same object."""
        return await self._reading.read(max_age_s)

    async def _read(self) -> list[dict[str, Any]]:
        self._rows.turn()
        rows = (await self._queue.workers(jobs=True, read=self._rows.parse)).rows
        self._known = {row.pairs["worker_id"]: self._of(row) for row in rows}
        return sorted((known.worker for known in self._known.values()), key=lambda worker: str(worker["worker_id"]))

    def _of(self, row: Answer) -> _Known:
        known = self._known.get(row.pairs["worker_id"])
        if known is not None and known.row is row:
            return known
        before = {one.job_id: one for one in known.doing} if known else {}
        doing = [Doing.of(job, before.get(job.pairs["job_id"])) for job in row.rows]
        if known is None or known.row.pairs is not row.pairs:
            return _Known(row, {**working(row), "doing": [one.shown for one in doing]}, doing)
        return _Known(row, {**known.worker, "doing": [one.shown for one in doing]}, doing)
