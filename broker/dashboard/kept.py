"""Pieces of pages that are kept from one drawing to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

from broker.recent import Recent

MOST = 2500


class Kept:
    """Pieces of pages by all that they depend on: ``{% call keep("buttons", name, paused) %}…{% endcall %}``.

    For what is long to render, often shown, and the same for a while. Nothing with an age in it: it would stand still.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._pieces: Recent[tuple[Hashable, ...], str] = Recent(MOST, clock)

    def __len__(self) -> int:
        return len(self._pieces)

    def __call__(self, *key: Hashable, caller: Callable[[], str]) -> str:
        """The piece, rendered unless it is known."""
        return self._pieces.get(key, caller)
