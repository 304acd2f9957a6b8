"""What the queues say unasked. Heartbeats repeat it, so a hint that is lost costs a few seconds."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from typing import TYPE_CHECKING

from .queue import Claimed, QueueAway, Refused, Unregistered, WorkQueue

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("emq")


class Hints:
    """Takes hints for a worker."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.given: deque[tuple[Claimed, WorkQueue]] = deque()
        """Jobs that came so, as the answer to a claim that stood."""

    async def listen(self, queue: WorkQueue) -> None:
        """Take a queue's hints for ever."""
        while True:
            try:
                hints = await queue.hints()
            except (QueueAway, Unregistered, Refused) as error:
                log.debug("no hints: %s", error)
                await asyncio.sleep(0.5 + random.random())  # noqa: S311
                continue
            for hint in hints:
                if isinstance(hint, str):
                    self._take(hint)
                else:
                    self.given.append((hint, queue))
                    self._worker.wake()

    def _take(self, hint: str) -> None:
        word, _, rest = hint.partition(" ")
        job_id, _, more = rest.partition(" ")
        if word in ("cancel", "lost"):
            self._worker.told(job_id, word)
        elif word == "watch":
            run = self._worker.run_of(job_id)
            if run is not None:
                run.watch(True, int(more) if more.isdecimal() else None, new=True)
        elif word == "work":
            self._worker.wake()
        elif word in ("pause", "drain", "superseded", "resume"):
            self._worker.membership.beat_now()
