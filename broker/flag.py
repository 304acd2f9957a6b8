"""A small ``asyncio.Event``."""

from __future__ import annotations

import asyncio


class Flag:
    """Something to wait for. Every connection and every subscription has some, and asyncio's are 0.7 KiB each."""

    __slots__ = ("_on", "_waiting")

    def __init__(self, on: bool = False) -> None:
        self._on = on
        self._waiting: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        """Whether nobody has to wait."""
        return self._on

    def set(self) -> None:
        """Let everybody go on who waits."""
        self._on = True
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)

    def clear(self) -> None:
        """From now on it is waited for."""
        self._on = False

    async def wait(self) -> None:
        """Wait until it is set."""
        if self._on:
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        try:
            await waiting
        finally:
            self._waiting.remove(waiting)
