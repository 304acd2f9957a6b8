"""The groups that one connection hears of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from broker.api.errors import unexpected
from broker.errors import EmqError, RateLimited
from broker.jobs.figures import group_summary
from broker.queue.group_events import GroupHub

MAX_GROUPS = 1000


class GroupFollower:
    """Sends ``group_done`` of the groups of one tenant."""

    def __init__(
        self, hub: GroupHub, tenant: str, send: Callable[[dict[str, Any]], None], fail: Callable[..., None]
    ) -> None:
        self._hub, self._tenant, self._send, self._fail = hub, tenant, send, fail
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._lasting: set[str] = set()

    def once(self, group: Any) -> None:
        """Tell the end of a group that a followed job belongs to (``None``: it has none)."""
        if isinstance(group, str) and group not in self._tasks and len(self._tasks) < MAX_GROUPS:
            self._start(group)

    def always(self, group: str, on: bool) -> None:
        """Tell every end of a group from now on, or none any more. Raises ``RateLimited``."""
        running = self._tasks.pop(group, None)
        self._lasting.discard(group)
        if running is not None:
            running.cancel()
        if on:
            if len(self._tasks) >= MAX_GROUPS:
                raise RateLimited(
                    f"This connection follows {MAX_GROUPS} groups; unsubscribe from some.", retry_after_s=1
                )
            self._lasting.add(group)
            self._start(group)

    def tasks(self) -> list[asyncio.Task[None]]:
        """What has to be cancelled when the connection ends."""
        return list(self._tasks.values())

    def _start(self, group: str) -> None:
        task = self._tasks[group] = asyncio.create_task(self._pump(group), name=f"group-{group[:32]}")
        task.add_done_callback(lambda done: self._ended(group, done))

    def _ended(self, group: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(group) is task:
            del self._tasks[group]
        if not task.cancelled() and (exc := task.exception()) is not None:
            error = exc if isinstance(exc, EmqError) else unexpected(exc, "a group's subscription")  # type: ignore[arg-type]
            self._fail(error, None, group=group)

    async def _pump(self, group: str) -> None:
        async with aclosing(self._hub.follow(self._tenant, group)) as ends:
            async for answer in ends:
                self._send(group_summary(group, answer).wire())
                if group not in self._lasting:
                    return
