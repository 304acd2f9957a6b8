"""Addresses of files on open pages: a record has new signatures each time it is read."""

from __future__ import annotations

import time
from collections.abc import Callable

SAME_S = 1200.0
"""How long an address stays; it is good for an hour."""
MOST = 5000


class Addresses:
    """The address that a file has on the pages: another one would load its picture, and begin its video, again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, str]] = {}

    def steady(self, url: str) -> str:
        """The address as it was shown before, unless that is long ago."""
        path, now = url.partition("?")[0], self._clock()
        since, known = self._known.get(path, (float("-inf"), ""))
        if now - since < SAME_S:
            return known
        if len(self._known) >= MOST:
            self._known.clear()
        self._known[path] = (now, url)
        return url
