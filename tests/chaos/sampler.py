"""What processes use over time, and the straight line through it."""

from __future__ import annotations

import os
import statistics
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.processes import state

MB = 1024 * 1024
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")
COURSE_S = 300
FLAT = 5
"""Open files and tasks may be so many more at the end than at the beginning."""
MORE_BLOCKS = 0.02
"""So much more of a process' blocks of memory may be in use then: as many come and go with a page that is drawn."""


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """How much ``y`` grows in one unit of ``x``: least squares."""
    return statistics.linear_regression(x, y).slope if len(x) > 1 and max(x) > min(x) else 0.0


def resident_mb(pid: int) -> float:
    """A process' resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / MB


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def cpu_s(pid: int) -> float:
    """Processor time of a process since its start."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def _column() -> array[float]:
    return array("d")


@dataclass
class Track:
    """One process over time; arrays, so that the watcher itself does not grow much."""

    pid: int
    at_s: array[float] = field(default_factory=_column)
    rss_mb: array[float] = field(default_factory=_column)
    fds: array[float] = field(default_factory=_column)
    tasks: array[float] = field(default_factory=_column)
    """Tasks of its event loop, where it tells them."""
    blocks: array[float] = field(default_factory=_column)
    """Blocks of memory that its objects have, where it tells them: no mark of its busiest moment is in them."""
    cpu: array[float] = field(default_factory=_column)

    def sample(self, at_s: float, told: tuple[float, float] | None = None) -> None:
        """Look at it now. Raises ``OSError`` when it has ended."""
        if state(self.pid)[0] in ("", "Z"):
            raise ProcessLookupError(f"process {self.pid} has ended")
        self.rss_mb.append(resident_mb(self.pid))
        self.fds.append(open_files(self.pid))
        self.cpu.append(cpu_s(self.pid))
        self.at_s.append(at_s)
        if told is not None:
            for column, value in zip((self.tasks, self.blocks), told, strict=True):
                column.append(value)

    def summary(self, warm_s: float) -> dict[str, Any]:
        """The figures after the warm-up."""
        first = sum(at < warm_s for at in self.at_s)
        at, rss = self.at_s[first:], self.rss_mb[first:]
        if len(at) < 2:
            return {}
        hours = [one / 3600 for one in at]
        return {
            "rss_mb": [round(rss[0], 1), round(rss[-1], 1)],
            "rss_mb_per_hour": round(slope(hours, rss), 2),
            "course_mb": self.course(),
            "fds": ends(self.fds[first:]),
            **({"tasks": ends(self.tasks[-len(at) :]), "blocks": ends(self.blocks[-len(at) :])} if self.tasks else {}),
            "cpu_share": round((self.cpu[-1] - self.cpu[first]) / (at[-1] - at[0]), 3),
        }

    def course(self) -> list[float]:
        """The average resident memory of every five minutes, the warm-up too: a leak is straight, a cache bends."""
        parts: dict[int, list[float]] = {}
        for at, mb in zip(self.at_s, self.rss_mb, strict=True):
            parts.setdefault(int(at // COURSE_S), []).append(mb)
        return [round(statistics.fmean(part), 1) for part in parts.values()]


def ends(values: Sequence[float]) -> list[float]:
    """The median of the first quarter of some values and that of the last."""
    quarter = max(1, len(values) // 4)
    return [statistics.median(values[:quarter]), statistics.median(values[-quarter:])]


def broken(name: str, summary: dict[str, Any], most_mb_per_hour: float) -> list[str]:
    """What a process' summary does not keep."""
    wrong = []
    if summary.get("rss_mb_per_hour", 0) >= most_mb_per_hour:
        wrong.append(f"{name}: memory grows by {summary['rss_mb_per_hour']} MB an hour")
    for what in ("fds", "tasks"):
        first, last = summary.get(what, (0, 0))
        if last - first > FLAT:
            wrong.append(f"{name}: {what} went from {first:g} to {last:g}")
    first, last = summary.get("blocks", (1, 1))
    if last > first * (1 + MORE_BLOCKS):
        wrong.append(f"{name}: its objects' blocks of memory went from {first:g} to {last:g}")
    return wrong
