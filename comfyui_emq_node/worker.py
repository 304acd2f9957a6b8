"""The worker: one thread with a loop of its own that keeps the lease, claims jobs, runs them and delivers them.

ComfyUI's loop is asked for nothing that the worker would have to wait for. Losing the queue, whatever the reason, is
waited out: the running prompt goes on, and the first heartbeat that gets through tells which jobs are still ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from . import errors
from .closing import PATIENCE_S, Closing, persist, quietly
from .comfy import Comfy
from .download import in_thread
from .files import Courier
from .fleet import Membership
from .hints import Hints
from .input_cache import InputCache
from .inputs import Inputs
from .queue import Claim, Claimed, Failure, QueueAway, Refused, StaleLease, Superseded, Tokens, Unregistered, WorkQueue
from .relay import Durations
from .run import Run
from .settings import Settings
from .side import SideProcess

log = logging.getLogger("emq")

AHEAD_S = 2.0
"""The next job is claimed when the running one is expected to end within this time and that which inputs take."""
AHEAD_KEPT_S = 10.0
POLITE_S = 0.05
"""Others that are idle get this long to take a job before a busy worker claims it ahead."""
IDLE_POLL_S = 30.0


class Worker:
    """Serves the queues of one or more pools with this ComfyUI."""

    def __init__(self, settings: Settings, comfy: Comfy, queues: Sequence[WorkQueue], worker_id: str) -> None:
        self._comfy, self._queues, self.worker_id = comfy, list(queues), worker_id
        self._runs: dict[str, Run] = {}
        self._current: Run | None = None
        self._brisk = False
        """The job of last is over within moments."""
        self._ahead: Run | None = None
        self._claiming: asyncio.Future[Any] | None = None
        """A claim ahead that is on its way."""
        self._too_long: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self._released = asyncio.Event()
        self._durations = Durations()
        self._tokens = Tokens()
        self.membership = Membership(settings, comfy, self, worker_id)
        self._hints = Hints(self)
        self.side = SideProcess()
        self._courier = Courier(self.membership.brokers, self.side.put)
        self._cache = InputCache(comfy.input_folder, round(settings.input_cache_gb * 1e9))
        self._inputs = Inputs(self.membership.brokers, self._cache, comfy.inventory.file_kind)
        self._closing = Closing(comfy, self._courier, self._hold, self._let_go)
        self._closing.treat_files(settings)
        self._closing.is_brisk = lambda: self._brisk and (self._claiming or self._current) is not None
        self._closing.on_end, self._closing.on_superseded = self.wake, self._be_superseded
        self._tasks: list[asyncio.Task[Any]] = []
        self.is_stopping = False
        self.is_stuck = False
        """A prompt that was given up still runs."""

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until stopped."""
        self.side.start()
        await self.membership.read_capabilities()
        self._closing.later(in_thread(self._cache.tidy))
        self._tasks = [asyncio.ensure_future(self._survive(self.membership.keep, queue)) for queue in self._queues]
        self._tasks += [asyncio.ensure_future(self._survive(self._hints.listen, queue)) for queue in self._queues]
        self._tasks.append(asyncio.ensure_future(self._survive(self.membership.refresh)))
        self._tasks.append(asyncio.ensure_future(self._survive(self._work)))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _survive(self, part: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run a part of the worker for ever; a fault in it is logged, and it starts again."""
        while True:
            try:
                await part(*args)
                return
            except Superseded:
                self._be_superseded()
                return
            except Exception:
                log.exception("a fault in the worker; it goes on")
                await asyncio.sleep(1 + random.random())  # noqa: S311

    def _be_superseded(self) -> None:
        if not self.is_stopping:
            log.error(
                "another process has taken over the worker name %s; this one takes no more jobs "
                "(give each ComfyUI a WORKER_ID of its own, and restart it)",
                self.worker_id,
            )
        self.is_stopping = True
        for run in list(self._runs.values()):
            run.lose()
        self.wake()

    async def stop(self, drain_s: float) -> None:
        """Take no more; give back what has not started; wait for the rest, at most ``drain_s``; say goodbye."""
        self.is_stopping = True
        self.wake()
        self.membership.beat_now()
        self._closing.is_stopping = True
        await self._give_back_ahead("shutdown")
        current = self._current
        if current is not None and not current.is_started:
            current.stop(Failure("interrupted", "The worker is shutting down."))
        if self._runs:
            log.info("finishing %s job(s) for at most %g s; a second signal ends at once", len(self._runs), drain_s)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._emptied(), drain_s)
        for task in self._tasks:
            task.cancel()
        self._closing.cancel()
        for run in list(self._runs.values()):
            log.warning("job %s goes back to the queue unfinished", run.job.job_id)
            await quietly(run.queue.release(run.job, "shutdown"))
        for queue in self._queues:
            await quietly(queue.bye())
        await self.close()

    async def _emptied(self) -> None:
        while self._runs:
            self._released.clear()
            await self._released.wait()

    async def close(self) -> None:
        """Close every connection, and end the side process."""
        for closing in (self.side.close(), self._inputs.close(), *(queue.close() for queue in self._queues)):
            await quietly(closing)

    def set_input_policy(self, policy: str) -> None:
        """Where input files may be fetched from (``EMQ_INPUT_URLS`` of the broker)."""
        self._inputs.policy = policy

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    # -- what the queue says --------------------------------------------------------------------------------------

    def told(self, job_id: str, word: str) -> None:
        """The queue's word on a job that is held: ``cancel`` or ``lost``."""
        run = self._runs.get(job_id)
        if run is None or run.is_settled:
            return
        if word == "cancel":
            run.stop(errors.CANCELLED)
        elif word == "lost":
            run.lose()

    def run_of(self, job_id: str) -> Run | None:
        """The job, where this worker has it."""
        return self._runs.get(job_id)

    def held(self, queue: WorkQueue) -> list[Run]:
        """The jobs of a queue that this worker holds."""
        return [run for run in self._runs.values() if run.queue is queue and not run.lost]

    @property
    def status(self) -> str:
        """``unhealthy``, ``draining``, ``busy`` or ``idle``."""
        if self.is_stuck or not self._comfy.is_prompt_thread_alive():
            return "unhealthy"
        if self.is_stopping or self.membership.is_draining:
            return "draining"
        return "busy" if self._current is not None or self._comfy.foreign() != (0, 0) else "idle"

    async def steer(self, word: str) -> None:
        """Have every queue ``pause``, ``resume`` or ``drain`` this worker."""
        for queue in self._queues:
            await queue.steer(word)
        await asyncio.gather(*(self.membership.beat(queue) for queue in self._queues))

    def describe(self) -> dict[str, Any]:
        """What ComfyUI's page shows of this worker; may be read on any thread."""
        runs = list(self._runs.values())
        return {
            "worker_id": self.worker_id,
            "state": self.status,
            "connected": self.membership.connected(),
            "paused": self.membership.is_paused,
            "draining": self.membership.is_draining or self.is_stopping,
            "jobs": [run.describe(run is self._current) for run in runs],
            "inputs": {"fetched_bytes": self._inputs.fetched_bytes},
            "previews": asdict(self._comfy.tally),
        }

    # -- working --------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Run one job after the other; the next is at hand, if there is one, when the last has ended."""
        run: Run | None = None
        while True:
            run = run or await self._take_ahead() or await self._next()
            if run is None:
                await self._wait_for_work()
                continue
            run = await self._do(run)

    def _may_claim(self, queue: WorkQueue) -> bool:
        if self.is_stopping or self.is_stuck or self._closing.delivering >= self.membership.terms.max_finishing:
            return False
        return self.membership.may_work(queue) and self._comfy.is_prompt_thread_alive()

    async def _wait_for_work(self) -> None:
        timer = asyncio.get_running_loop().call_later(IDLE_POLL_S, self.wake)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()
        self._wake.clear()

    async def _next(self) -> Run | None:
        """Claim a job, unless a prompt of this ComfyUI's page runs and none waits: then it is our turn soon."""
        running, waiting = self._comfy.foreign()
        if self._hints.given:
            return await self._accept(*self._hints.given.popleft(), bool(running and not waiting))
        if running and not waiting:
            return None
        self._wake.clear()
        first = random.randrange(len(self._queues))  # noqa: S311
        for queue in self._queues[first:] + self._queues[:first]:
            if not self._may_claim(queue):
                continue
            try:
                claimed = await persist(partial(queue.claim, self._claim()))
            except (StaleLease, Refused) as error:
                log.warning("the queue gives no job: %s", error)
                continue
            if claimed is not None:
                return self._hold(claimed, queue)
        return None

    async def _accept(self, claimed: Claimed, queue: WorkQueue, has_prompt: bool) -> Run | None:
        """Take a job that came in a hint, unless this ComfyUI has begun something else meanwhile."""
        if self._may_claim(queue) and not has_prompt:
            return self._hold(claimed, queue)
        await quietly(queue.release(claimed, "released"))
        return None

    def _claim(self, ahead: bool = False) -> Claim:
        """A claim. With several pools none is to stay: the one that another answers would have no slot."""
        standing = not ahead and len(self._queues) == 1
        return Claim(self._tokens.draw().hex(), self._comfy.inventory.loaded_models(), ahead, standing)

    def _hold(self, claimed: Claimed, queue: WorkQueue) -> Run:
        prompt_id = str(uuid.UUID(bytes=self._tokens.draw(), version=4))
        run = Run(claimed, queue, self._comfy, self._durations, worker=self.worker_id, prompt_id=prompt_id)
        self._runs[claimed.job_id] = run
        run.prepare(self._inputs, self.membership.model_inputs)
        if self.is_stopping:
            run.stop(Failure("interrupted", "The worker is shutting down."))
        return run

    def _let_go(self, run: Run) -> None:
        if self._runs.get(run.job.job_id) is run:
            del self._runs[run.job.job_id]
            self._inputs.release(run.job.job_id)
            self._released.set()

    async def _do(self, run: Run) -> Run | None:
        """Execute a job and see to its end; gives the next job, if it is there."""
        self._current, self._brisk = run, run.is_short(PATIENCE_S)
        log.debug("job %s: attempt %s starts", run.job.job_id, run.job.attempt)
        looking = asyncio.get_running_loop().call_later(self._politeness(run), self._start_looking, run)
        try:
            await run.execute(self.membership.model_inputs, self.membership.terms.stall_s)
        except Exception as error:
            log.exception("job %s: a fault in the worker", run.job.job_id)
            run.stop(Failure("node_error", f"A fault in the worker: {error}"))
        finally:
            looking.cancel()
            self._current = None
        if run.was_given_up:
            self._closing.later(self._closing.settle(run, None))
            await self._outlast(run)
            return None
        ahead = await self._take_ahead()
        if ahead is None:
            return await self._closing.settle(run, self._fused_claim(run.queue))
        self._claiming = self._closing.later(self._settle_and_adopt(run, ahead))
        return ahead

    async def _outlast(self, run: Run) -> None:
        """Take nothing while a prompt that was given up still runs."""
        assert run.relay is not None
        self.is_stuck = True
        self.membership.beat_now()
        if self._comfy.is_prompt_thread_alive():
            log.error("job %s was given up, but its prompt still runs; no job is taken until it ends", run.job.job_id)
        await run.relay.ended.wait()
        self.is_stuck = False
        self.membership.beat_now()

    def _fused_claim(self, queue: WorkQueue) -> Claim | None:
        """A claim to go with the end of a job. With several pools each claim is its own, so that all get their turn."""
        running, waiting = self._comfy.foreign()
        if len(self._queues) > 1 or (running and not waiting) or not self._may_claim(queue):
            return None
        return self._claim()

    # -- the next job -------------------------------------------------------------------------------------------------

    def _politeness(self, run: Run) -> float:
        """Seconds for which others may take the next job first: none where jobs are shorter than that."""
        return 0.0 if self._claiming is None and run.is_short(POLITE_S) else POLITE_S

    def _start_looking(self, run: Run) -> None:
        self._closing.later(self._look_ahead(run))

    async def _look_ahead(self, run: Run) -> None:
        """Claim the next job while this one runs, when its end is near."""
        while (remaining := run.remaining_s()) is None or remaining > AHEAD_S + self._inputs.typical_s:
            if run.is_over:
                return
            await asyncio.sleep(POLITE_S)
        if self._may_look_ahead(run):
            self._claiming = self._closing.later(self._claim_ahead(run))

    def _may_look_ahead(self, run: Run) -> bool:
        unclaimed = self._ahead is None and self._claiming is None and not run.is_over
        alone = len(self._queues) == 1 and self._comfy.foreign() == (0, 0)
        return unclaimed and alone and self._may_claim(run.queue)

    async def _claim_ahead(self, run: Run) -> None:
        try:
            claimed = await run.queue.claim(self._claim(ahead=True), run.unconfirmed())
        except (QueueAway, Unregistered, StaleLease, Refused):
            return
        finally:
            self._claiming = None
        run.confirm()
        if claimed is not None:
            await self._adopt(self._hold(claimed, run.queue), run)

    async def _settle_and_adopt(self, run: Run, following: Run) -> None:
        """End a job while the next one starts; where jobs are short, the one after that comes with the answer."""
        short = following.is_short(POLITE_S)
        claim = self._claim(ahead=True) if short and self._may_claim(run.queue) else None
        try:
            claimed = await self._closing.settle(run, claim, following)
        finally:
            self._claiming = None
        if claimed is not None:
            await self._adopt(claimed, following)

    async def _adopt(self, ahead: Run, current: Run) -> None:
        """Have the next job at hand: validated already, and queued by ComfyUI's own thread when this one ends.

        Not so one whose start has to be reported first, as :meth:`Run.execute` does.
        """
        self._ahead = ahead
        self._too_long = asyncio.get_running_loop().call_later(AHEAD_KEPT_S, self._keep_no_longer, ahead)
        if (
            ahead.job.attempt == 1
            and (ahead.queue.keeps_unstarted or ahead.is_short(AHEAD_S))
            and await ahead.stage(self.membership.model_inputs)
        ):
            self._comfy.follow(current.prompt_id, ahead.prompt_id)
            has_ended = current.ending is not None
            if has_ended and ahead.is_wanted() and self._comfy.foreign()[1] == 0:
                self._comfy.push(ahead.prompt_id)

    def _keep_no_longer(self, ahead: Run) -> None:
        if self._ahead is ahead:
            self._closing.later(self._give_back_ahead("the running job takes longer than expected"))

    async def _take_ahead(self) -> Run | None:
        """The next job, if it is at hand or on its way."""
        if self._ahead is None and self._claiming is not None:
            await asyncio.wait([self._claiming])
        ahead, self._ahead = self._ahead, None
        if self._too_long is not None:
            self._too_long.cancel()
        return ahead

    async def _give_back_ahead(self, reason: str) -> None:
        run, self._ahead = self._ahead, None
        if run is not None:
            await self._closing.give_back(run, reason)
