"""A reading that all share who ask in the same moment."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from broker.errors import EmqError

T = TypeVar("T")


class SharedReading(Generic[T]):
    """Something that is read when somebody wants it newer than it is known; nobody may change what is read."""

    def __init__(self, read: Callable[[], Awaitable[T]]) -> None:
        self._read = read
        self._known: list[T] = []
        self._failed: EmqError | None = None
        self._began = float("-inf")
        self._turn = asyncio.Lock()

    async def read(self, max_age_s: float) -> T:
        """As it was ``max_age_s`` ago at most. A reading that fails fails for all that waited for it."""
        wanted = time.monotonic() - max_age_s
        async with self._turn:
            if self._began < wanted:
                await self._again()
            if self._failed is not None:
                raise self._failed.with_traceback(None)
            return self._known[0]

    async def _again(self) -> None:
        began, self._failed = time.monotonic(), None
        try:
            self._known = [await self._read()]
        except EmqError as error:
            self._failed = error
        self._began = began
