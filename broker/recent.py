"""What was made of a key, kept for as long as somebody asks for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

UNUSED_S = 60.0


class Recent(Generic[K, V]):
    """Values by their keys; what nobody has asked for in a minute goes, within two.

    With a bound on their number alone a broker would grow until it is reached: many keys name a job, of which there are
    always others. ``most`` are kept of a minute all the same, and as many of the one before.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._known: dict[K, V] = {}
        self._before: dict[K, V] = {}
        self._since = clock()

    def __len__(self) -> int:
        return len(self._known | self._before)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value, made unless it is known."""
        now = self._clock()
        if now - self._since > UNUSED_S or len(self._known) >= self._most:
            self._known, self._before, self._since = {}, self._known, now
        value = self._known.get(key)
        if value is None:
            value = self._known[key] = self._before.get(key) or make()
        return value
