"""The jobs that a worker holds beside the one that runs: claimed ahead, so that the device never waits for the queue.

Usually that is one. Of jobs that end before a claim is answered there are two, or the device would wait for each answer
(``docs/decisions/0013-two-ahead-where-jobs-are-brisk.md``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from .closing import Closing
from .comfy import Comfy
from .queue import QueueAway, Refused, StaleLease, Unregistered
from .run import Run

if TYPE_CHECKING:
    from .worker import Worker

AHEAD_S = 2.0
"""The next job is claimed when the running one is expected to end within this time and that which inputs take."""
AHEAD_KEPT_S = 10.0
POLITE_S = 0.05
"""Others that are idle get this long to take a job before a busy worker claims it ahead."""
BRISK_S = 0.02
"""Jobs that take no longer end before a claim is answered: of those, two are held ahead."""
SHALLOW_S = 0.05
"""After a second job was not to be had, it is asked for again no sooner."""


class Ahead:
    """Claims jobs ahead, has them made ready, and gives them when their turn has come."""

    def __init__(self, worker: Worker, comfy: Comfy, closing: Closing, typical_input_s: Callable[[], float]) -> None:
        self._worker, self._comfy, self._closing = worker, comfy, closing
        self._typical_input_s = typical_input_s
        self._runs: deque[Run] = deque()
        """In the order in which they are to run."""
        self._asking = 0
        """Calls under way that may bring one."""
        self._answered = asyncio.Event()
        self._telling = asyncio.Lock()
        """Ends are told in order: a job's start is told with the end of the one before it."""
        self._shallow_until = 0.0
        self._too_long: asyncio.TimerHandle | None = None

    def politeness(self, run: Run) -> float:
        """Seconds for which others may take the next job first: none where jobs are shorter than that."""
        return 0.0 if not self._asking and run.is_short(POLITE_S) else POLITE_S

    def look(self, run: Run) -> None:
        """Have the next job claimed when the end of ``run`` is near."""
        if not (self._runs and run.is_short(POLITE_S)):
            self._closing.later(self._look(run))

    def _ask(self, call: Coroutine[Any, Any, None]) -> None:
        """Make a call that may bring a job ahead, beside the work."""

        async def asked() -> None:
            try:
                await call
            finally:
                self._asking -= 1
                self._answered.set()

        self._asking += 1
        self._closing.later(asked())

    async def _look(self, run: Run) -> None:
        """Claim the next job while this one runs, when its end is near."""
        while (remaining := run.remaining_s()) is None or remaining > AHEAD_S + self._typical_input_s():
            if run.is_over:
                return
            await asyncio.sleep(POLITE_S)
        if self._may_look(run):
            self._ask(self._claim_next(run))

    def _may_look(self, run: Run) -> bool:
        unclaimed = not self._runs and not self._asking and not run.is_over
        return unclaimed and self._worker.is_alone and self._worker.may_claim(run.queue)

    async def _claim_next(self, run: Run, level: int = 1) -> None:
        """Claim a job while ``run`` runs, so that ``level`` of them are at hand."""
        async with self._telling:
            if run.is_over or not self._worker.may_claim(run.queue):
                return
            try:
                claimed = await run.queue.claim(self._worker.claim(level), run.unconfirmed())
            except (QueueAway, Unregistered, StaleLease, Refused):
                return
        run.confirm()
        if claimed is not None:
            await self._adopt(self._worker.hold(claimed, run.queue), run)
        elif level > 1:
            self._shallow_until = time.monotonic() + SHALLOW_S

    def settle(self, run: Run, following: Run) -> None:
        """End a job while the next one starts."""
        self._ask(self._settle(run, following))

    async def _settle(self, run: Run, following: Run) -> None:
        """Where jobs are short, the one after the next comes with the answer."""
        async with self._telling:
            level = self._level(following)
            claim = self._worker.claim(level) if level and self._worker.may_claim(run.queue) else None
            claimed = await self._closing.settle(run, claim, following)
        if claimed is not None:
            await self._adopt(claimed, following)

    def _level(self, current: Run) -> int:
        """How many jobs may be held ahead once another is claimed now; 0: none may be."""
        level = len(self._runs) + 1
        if level == 1:
            return 1 if current.is_short(POLITE_S) else 0
        brisk = all(each.is_short(BRISK_S) for each in (current, *self._runs))
        deep = brisk and self._worker.is_alone and time.monotonic() > self._shallow_until
        return level if deep and level <= current.queue.most_ahead else 0

    async def _adopt(self, ahead: Run, current: Run) -> None:
        """Have the next job at hand: validated already, and queued by ComfyUI's own thread when the one before it ends.

        Not so one whose start has to be reported first, as :meth:`Run.execute` does.
        """
        before = self._runs[-1] if self._runs else self._worker.current or current
        self._runs.append(ahead)
        if self._too_long is None:
            self._keep_for_now()
        if before is current and not current.is_over and self._level(current) > 1:
            self._ask(self._claim_next(current, 2))
        if (
            ahead.job.attempt == 1
            and (ahead.queue.keeps_unstarted or ahead.is_short(AHEAD_S))
            and await ahead.stage(self._worker.membership.model_inputs)
        ):
            self._comfy.follow(before.prompt_id, ahead.prompt_id)

    def _keep_for_now(self) -> None:
        """Keep what is at hand for a while: others may have it where the running job takes longer than expected."""
        if self._too_long is not None:
            self._too_long.cancel()
            self._too_long = None
        if self._runs:
            self._too_long = asyncio.get_running_loop().call_later(AHEAD_KEPT_S, self._keep_no_longer)

    def _keep_no_longer(self) -> None:
        self._closing.later(self.give_back("the running job takes longer than expected"))

    async def take(self) -> Run | None:
        """The next job, if it is at hand or on its way."""
        while not self._runs and self._asking:
            self._answered.clear()
            await self._answered.wait()
        ahead = self._runs.popleft() if self._runs else None
        self._keep_for_now()
        return ahead

    async def give_back(self, reason: str) -> None:
        """Give back all that is at hand, the last first: it is to run after the others elsewhere, too."""
        runs = list(reversed(self._runs))
        self._runs.clear()
        self._keep_for_now()
        for run in runs:
            await self._closing.give_back(run, reason)
