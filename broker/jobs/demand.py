"""How much model files are asked for, and what loading one costs, as far as the queue knows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass

from broker.queue.queue import Answer, Queue

MAX_AGE_S = 10.0
MOST_CLASSES, LATEST = 40, 100
"""Classes that are looked at: those that wait, and those of the jobs that ended last."""


@dataclass(slots=True)
class Wanted:
    """One file: waiting jobs that need it, and how much longer a run takes that has to load it, in ms."""

    waiting: int = 0
    load_ms: float | None = None


class Demand:
    """Reads it, at most every ten seconds."""

    def __init__(self) -> None:
        self._known: dict[str, Wanted] = {}
        self._read_at = float("-inf")

    async def by_model(self, queue: Queue) -> dict[str, Wanted]:
        """Files by name; of many classes those whose turn comes next, and those that ran last."""
        if time.monotonic() - self._read_at > MAX_AGE_S:
            metrics, ended = await asyncio.gather(queue.metrics(), queue.ended(limit=LATEST))
            waits = {row.text("class"): row for row in metrics.rows}
            kinds = {name: row.lines("kind") for name, row in waits.items()}
            for row in ended.rows:
                kinds.setdefault(row.text("class"), row.lines("models"))
            names = [name for name in list(kinds)[:MOST_CLASSES] if kinds[name]]
            classes = await asyncio.gather(*(queue.call("class", [("class", name)]) for name in names))
            self._known = _by_model(waits, kinds, zip(names, classes, strict=True))
            self._read_at = time.monotonic()
        return self._known


def _by_model(
    waits: dict[str, Answer], kinds: dict[str, list[str]], classes: Iterable[tuple[str, Answer]]
) -> dict[str, Wanted]:
    found: dict[str, Wanted] = {}
    for name, row in waits.items():
        waiting = sum(int(line.split()[1]) for line in row.lines("levels"))
        for model in kinds[name]:
            found.setdefault(model, Wanted()).waiting += waiting
    for name, known in classes:
        cold, run = known.text("cold_ms"), known.text("run_ms")
        if cold and run:
            wanted = found.setdefault(kinds[name][0], Wanted())
            wanted.load_ms = max(wanted.load_ms or 0.0, float(cold) - float(run))
    return found
