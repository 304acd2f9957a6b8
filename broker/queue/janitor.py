"""What a broker does for its pool at intervals: sweeping, seeing that the functions are there, saying where it is.

Nothing depends on one janitor: every replica has one, claims and heartbeats take back lapsed leases too, and two at
once do no harm.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from broker.errors import Unavailable
from broker.queue.new_job import Value
from broker.queue.queue import Queue

log = logging.getLogger(__name__)

LIBRARY_S = 10.0
PRESENT_S = 5.0
"""A broker's address lives 15 s in the pool."""


class Loader(Protocol):
    """Loads the function library; ``broker.queue.connection.Connection`` is the real one."""

    async def load(self, prefix: str, *, force: bool = False) -> None:
        """See that every primary has the library."""


class Janitor:
    """The replica's janitor. ``config`` goes to ``Queue.configure`` again and again, ``broker_url`` with it."""

    def __init__(self, queue: Queue, loader: Loader, config: Mapping[str, Value | None], *, reap_s: float) -> None:
        self._queue = queue
        self._loader = loader
        self._config = dict(config)
        self._reap_s = reap_s
        self._tasks: list[asyncio.Task[None]] = []
        self.hooks_due: Callable[[], None] = lambda: None
        """Called when webhook deliveries are due."""

    def start(self) -> None:
        """Begin."""
        jobs = (("sweep", self._sweep, self._reap_s), ("library", self._library, LIBRARY_S))
        for name, job, every_s in (*jobs, ("presence", self._presence, PRESENT_S)):
            self._tasks.append(asyncio.create_task(repeat(name, job, every_s), name=f"janitor-{name}"))

    async def stop(self) -> None:
        """End; what is under way is given up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()

    async def _sweep(self) -> None:
        more = True
        while more:
            answer = await self._queue.sweep()
            more = answer.flag("more")
            if answer.flag("hooks"):
                self.hooks_due()

    async def _library(self) -> None:
        await self._loader.load(self._queue.prefix)

    async def _presence(self) -> None:
        await self._queue.configure(**self._config)


async def repeat(name: str, job: Callable[[], Awaitable[None]], every_s: float) -> None:
    """Do a job for ever, with pauses of about ``every_s``; a failed round is logged and the next one comes."""
    while True:
        try:
            await job()
        except Unavailable:
            # The connection has logged that Redis is away.
            log.debug("%s waits for Redis", name)
        except Exception:
            log.exception("%s failed", name)
        # Replicas that started together must not stay in step.
        await asyncio.sleep(every_s * random.uniform(0.9, 1.0))  # noqa: S311
