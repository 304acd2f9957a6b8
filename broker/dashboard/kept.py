"""Pieces of pages that are kept from one drawing to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

MOST, UNUSED_S = 2500, 60.0


class Kept:
    """Pieces of pages by all that they depend on: ``{% call keep("buttons", name, paused) %}…{% endcall %}``.

    For what is long to render, often shown, and the same for a while. Nothing with an age in it: it would stand still.
    Pieces that nobody has asked for in a minute go: many depend on a job, of which there are always others, and with
    a bound on their number alone a broker grew by 6 MB before the first of them went.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[tuple[Hashable, ...], str] = {}
        self._before: dict[tuple[Hashable, ...], str] = {}
        self._since = clock()

    def __len__(self) -> int:
        return len(self._known | self._before)

    def __call__(self, *key: Hashable, caller: Callable[[], str]) -> str:
        """The piece, rendered unless it is known."""
        now = self._clock()
        if now - self._since > UNUSED_S or len(self._known) >= MOST:
            self._known, self._before, self._since = {}, self._known, now
        piece = self._known.get(key)
        if piece is None:
            piece = self._known[key] = self._before.get(key) or caller()
        return piece
