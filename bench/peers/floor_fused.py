"""The floor, completing a job and claiming the next in one call."""

from __future__ import annotations

from collections.abc import Callable

from bench.peers import floor

producer = floor.producer


def work(url: str, in_flight: int, note: Callable[[str], None]) -> None:
    floor.work(url, in_flight, note, fused=True)
