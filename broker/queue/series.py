"""The pool's history: one sample a minute, a bounded number of them, in Redis, so that it survives every broker."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

KEPT = 1440
"""Samples that are kept: a day of minutes."""
LIFE_S = 172_800
TURN_S = 300


class Store(Protocol):
    """Reads and writes keys of a pool; ``broker.queue.connection.Connection`` is the real one."""

    async def read(self, key: str, *commands: Sequence[bytes | str | int]) -> list[Any]:
        """Answers of reading commands."""

    async def write(self, key: str, *commands: Sequence[bytes | str | int]) -> list[Any]:
        """The same for commands that write."""


class Series:
    """The samples of a pool, the oldest first. All methods raise ``Unavailable`` while Redis is away."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store = store
        self._prefix = prefix

    async def take_turn(self, minute: int) -> bool:
        """Whether this replica, and no other, is to sample this minute."""
        key = f"{self._prefix}history:{minute}"
        (taken,) = await self._store.write(self._prefix, ("SET", key, "1", "NX", "EX", TURN_S))
        return taken is not None

    async def add(self, sample: dict[str, Any]) -> None:
        """Append a sample."""
        key = f"{self._prefix}history"
        text = json.dumps(sample, ensure_ascii=False, separators=(",", ":"))
        await self._store.write(self._prefix, ("RPUSH", key, text), ("LTRIM", key, -KEPT, -1), ("EXPIRE", key, LIFE_S))

    async def last(self, count: int) -> list[dict[str, Any]]:
        """The newest ``count`` samples."""
        (lines,) = await self._store.read(self._prefix, ("LRANGE", f"{self._prefix}history", -count, -1))
        found: list[dict[str, Any]] = json.loads(b"[%b]" % b",".join(lines))  # as one, so that they share their names
        return found
