"""Figures for who watches them: read once for everybody, at most once a second, sent only when they changed."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from broker.errors import EmqError

log = logging.getLogger(__name__)

EVERY_S = 1.0


class StatsFeed:
    """One reading loop a tenant, running only while somebody watches."""

    def __init__(self, read: Callable[[str], Awaitable[dict[str, Any]]], every_s: float = EVERY_S) -> None:
        self._read = read
        self._every = every_s
        self._latest: dict[str, tuple[int, dict[str, Any]]] = {}
        self._watchers: dict[str, int] = {}
        self._loops: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Condition()

    async def watch(self, tenant: str) -> AsyncGenerator[dict[str, Any], None]:
        """The figures now, and again whenever they have changed."""
        self._watchers[tenant] = self._watchers.get(tenant, 0) + 1
        if tenant not in self._loops:
            self._loops[tenant] = asyncio.create_task(self._loop(tenant), name="stats-feed")
        seen = 0
        try:
            while True:
                async with self._changed:
                    while self._latest.get(tenant, (0, {}))[0] <= seen:
                        await self._changed.wait()
                    seen, stats = self._latest[tenant]
                yield stats
        finally:
            self._leave(tenant)

    def close(self) -> None:
        """Stop reading."""
        for task in self._loops.values():
            task.cancel()

    def _leave(self, tenant: str) -> None:
        self._watchers[tenant] -= 1
        if not self._watchers[tenant]:
            del self._watchers[tenant]
            self._latest.pop(tenant, None)
            self._loops.pop(tenant).cancel()

    async def _loop(self, tenant: str) -> None:
        before, version = "", 0
        while True:
            try:
                stats = await self._read(tenant)
                shown = json.dumps({**stats, "oldest_wait_ms": None}, sort_keys=True)
                if shown != before:
                    before, version = shown, version + 1
                    async with self._changed:
                        self._latest[tenant] = (version, stats)
                        self._changed.notify_all()
            except EmqError as error:
                log.debug("No figures: %s", error.message)
            await asyncio.sleep(self._every)
