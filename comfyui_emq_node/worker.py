"""The worker: one thread with a loop of its own that keeps the lease, claims jobs, runs them and delivers them.

ComfyUI's loop is only asked to take a prompt, with a time limit. Losing the queue, whatever the reason, is waited out:
the running prompt goes on, and the first heartbeat that gets through tells which jobs are still ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from . import errors
from .comfy import Comfy
from .files import Courier, Gathered, UploadFailed, gather
from .fleet import Membership
from .inputs import Inputs
from .queue import Claim, Claimed, Failure, QueueAway, Refused, StaleLease, Superseded, Unregistered, WorkQueue
from .relay import Durations
from .run import Run
from .settings import Settings

log = logging.getLogger("emq")

T = TypeVar("T")
AHEAD_S = 2.0
"""The next job is claimed when the running one is expected to end within this time."""
AHEAD_KEPT_S = 10.0
POLITE_S = 0.05
"""Others that are idle get this long to take a job before a busy worker claims it ahead."""
IDLE_POLL_S = 30.0


class Worker:
    """Serves the queues of one or more pools with this ComfyUI."""

    def __init__(self, settings: Settings, comfy: Comfy, queues: Sequence[WorkQueue], worker_id: str) -> None:
        self._settings, self._comfy, self._queues, self.worker_id = settings, comfy, list(queues), worker_id
        self._runs: dict[str, Run] = {}
        self._ahead: Run | None = None
        self._current: Run | None = None
        self._finishing: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._released = asyncio.Event()
        self._durations = Durations()
        self.membership = Membership(settings, comfy, self, worker_id)
        self._courier = Courier(self.membership.brokers)
        self._inputs = Inputs(self.membership.brokers, comfy.input_folder)
        self._tasks: list[asyncio.Task[Any]] = []
        self.is_stopping = False
        self.is_stuck = False
        """A prompt that was given up still runs."""

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until stopped."""
        await self.membership.read_capabilities()
        self._tasks = [asyncio.ensure_future(self._survive(self.membership.keep, queue)) for queue in self._queues]
        self._tasks += [asyncio.ensure_future(self._survive(self._listen, queue)) for queue in self._queues]
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
        await self._give_back_ahead("shutdown")
        current = self._current
        if current is not None and not current.is_started:
            current.stop(Failure("interrupted", "The worker is shutting down."))
        if self._runs:
            log.info("finishing %s job(s) for at most %g s; a second signal ends at once", len(self._runs), drain_s)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._emptied(), drain_s)
        for run in self._runs.values():
            log.warning("job %s goes back to the queue unfinished", run.job.job_id)
        for task in [*self._tasks, *self._finishing]:
            task.cancel()
        for queue in self._queues:
            await self._quietly(queue.bye())
        await self.close()

    async def _emptied(self) -> None:
        while self._runs:
            self._released.clear()
            await self._released.wait()

    async def close(self) -> None:
        """Close every connection."""
        for closing in (self._courier.close(), self._inputs.close(), *(queue.close() for queue in self._queues)):
            await self._quietly(closing)

    @staticmethod
    async def _quietly(call: Awaitable[Any]) -> None:
        try:
            await asyncio.wait_for(call, 2)
        except Exception as error:
            log.debug("while leaving: %s", error)

    def set_input_policy(self, policy: str) -> None:
        """Where input files may be fetched from (``EMQ_INPUT_URLS`` of the broker)."""
        self._inputs.policy = policy

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    # -- what the queue says --------------------------------------------------------------------------------------

    async def _listen(self, queue: WorkQueue) -> None:
        """Take hints; what they say is repeated by heartbeats, so a lost one costs a few seconds."""
        while True:
            try:
                hints = await queue.hints()
            except (QueueAway, Unregistered) as error:
                log.debug("no hints: %s", error)
                await asyncio.sleep(0.5 + random.random())  # noqa: S311
                continue
            for hint in hints:
                self._take_hint(hint)

    def _take_hint(self, hint: str) -> None:
        word, _, rest = hint.partition(" ")
        job_id, _, _ = rest.partition(" ")
        if word == "cancel" and job_id in self._runs:
            self.told(job_id, "cancel")
        elif word == "lost":
            self.told(job_id, "lost")
        elif word == "watch" and job_id in self._runs:
            self._runs[job_id].watch(True)
        elif word == "work":
            self.wake()
        elif word in ("pause", "drain", "superseded", "resume"):
            self.membership.beat_now()

    def told(self, job_id: str, word: str) -> None:
        """The queue's word on a job that is held: ``cancel`` or ``lost``."""
        run = self._runs.get(job_id)
        if run is None or run.is_settled:
            return
        if word == "cancel":
            run.stop(errors.CANCELLED)
        elif word == "lost":
            run.lose()

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

    # -- working --------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Run one job after the other; the next is at hand, if there is one, when the last has ended."""
        run: Run | None = None
        while True:
            run = run or self._take_ahead() or await self._next()
            if run is None:
                await self._wait_for_work()
                continue
            run = await self._do(run)

    def _may_claim(self) -> bool:
        if self.is_stopping or self.is_stuck or len(self._finishing) >= self.membership.terms.max_finishing:
            return False
        return self.membership.may_work and self._comfy.is_prompt_thread_alive()

    async def _wait_for_work(self) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wake.wait(), IDLE_POLL_S)
        self._wake.clear()

    async def _next(self) -> Run | None:
        """Claim a job, unless a prompt of this ComfyUI's page runs and none waits: then it is our turn soon."""
        running, waiting = self._comfy.foreign()
        if not self._may_claim() or (running and not waiting):
            return None
        self._wake.clear()
        first = random.randrange(len(self._queues))  # noqa: S311
        for queue in self._queues[first:] + self._queues[:first]:
            claim = self._claim()
            try:
                claimed = await self._persist(partial(queue.claim, claim))
            except (StaleLease, Refused) as error:
                log.warning("the queue gives no job: %s", error)
                continue
            if claimed is not None:
                return self._hold(claimed, queue)
        return None

    def _claim(self, ahead: bool = False) -> Claim:
        return Claim(self._comfy.inventory.loaded_models(), ahead)

    def _hold(self, claimed: Claimed, queue: WorkQueue) -> Run:
        run = Run(claimed, queue, self._comfy, self._durations, self.worker_id)
        self._runs[claimed.job_id] = run
        run.prepare(self._inputs, self.membership.model_inputs)
        if self.is_stopping:
            run.stop(Failure("interrupted", "The worker is shutting down."))
        return run

    async def _do(self, run: Run) -> Run | None:
        """Execute a job and see to its end; gives the next job, if it came along."""
        self._current = run
        log.info("job %s: attempt %s starts", run.job.job_id, run.job.attempt)
        staging = asyncio.ensure_future(self._stage(run))
        try:
            await run.execute(self.membership.model_inputs, self.membership.terms.stall_s)
        except Exception as error:
            log.exception("job %s: a fault in the worker", run.job.job_id)
            run.stop(Failure("node_error", f"A fault in the worker: {error}"))
        finally:
            staging.cancel()
            self._current = None
        if run.gave_up.is_set() and run.relay is not None:
            self._finish_later(self._settle(run, None))
            await self._outlast(run)
            return None
        await asyncio.gather(staging, return_exceptions=True)
        ahead = self._take_ahead()
        if ahead is not None:
            self._finish_later(self._settle(run, None))
            return ahead
        return await self._settle(run, self._fused_claim())

    async def _outlast(self, run: Run) -> None:
        """Take nothing while a prompt that was given up still runs."""
        assert run.relay is not None
        self.is_stuck = True
        self.membership.beat_now()
        if self._comfy.is_prompt_thread_alive():
            log.error("job %s was given up, but its prompt still runs; no job is taken until it ends", run.job.job_id)
        else:
            log.error("ComfyUI's prompt thread has ended; it runs nothing more, and no job is taken: restart ComfyUI")
        await asyncio.wait([run.relay.ended])
        self.is_stuck = False
        self.membership.beat_now()

    def _fused_claim(self) -> Claim | None:
        """A claim to go with the end of a job. With several pools each claim is its own, so that all get their turn."""
        running, waiting = self._comfy.foreign()
        alone = len(self._queues) == 1 and not (running and not waiting)
        return self._claim() if alone and self._may_claim() else None

    # -- claiming ahead -------------------------------------------------------------------------------------------

    async def _stage(self, run: Run) -> None:
        """Claim the next job while this one runs, when its end is near."""
        if len(self._queues) > 1:
            return
        await run.started.wait()
        waited = 0.0
        while (remaining := run.remaining_s()) is None or remaining > AHEAD_S or (waited < POLITE_S < remaining):
            await asyncio.sleep(POLITE_S)
            waited += POLITE_S
            if not run.is_running:
                return
        if self._ahead is not None or not self._may_claim() or self._comfy.foreign() != (0, 0):
            return
        claimed = await asyncio.shield(asyncio.ensure_future(self._claim_ahead(run.queue)))
        if claimed and self._ahead is not None:
            await asyncio.sleep(AHEAD_KEPT_S)
            await self._give_back_ahead("the running job takes longer than expected")

    async def _claim_ahead(self, queue: WorkQueue) -> bool:
        try:
            claimed = await queue.claim(self._claim(ahead=True))
        except (QueueAway, Unregistered, StaleLease, Superseded, Refused):
            return False
        if claimed is not None:
            self._ahead = self._hold(claimed, queue)
        return claimed is not None

    def _take_ahead(self) -> Run | None:
        ahead, self._ahead = self._ahead, None
        return ahead

    async def _give_back_ahead(self, reason: str) -> None:
        run = self._take_ahead()
        if run is not None:
            await self._end(run, partial(self._release, run, reason))

    # -- ending a job ---------------------------------------------------------------------------------------------

    def _finish_later(self, work: Awaitable[Any]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(self._finished(work))
        self._finishing.add(task)
        task.add_done_callback(self._is_finished)

    async def _finished(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except Superseded:
            self._be_superseded()
        except Exception:
            log.exception("a fault while a job was finished")

    def _is_finished(self, task: asyncio.Task[None]) -> None:
        self._finishing.discard(task)
        self.wake()

    async def _settle(self, run: Run, claim: Claim | None) -> Run | None:
        """Say how a job has ended; its files go out beside the next job, which may come with the answer."""
        await run.reported()
        if run.failure is not None or run.lost:
            return await self._fail(run, claim)
        assert run.ending is not None
        assert run.relay is not None
        loop = asyncio.get_running_loop()
        outputs = dict((run.ending.entry or {}).get("outputs") or {})
        images, temp = run.relay.final_images, self._settings.deliver_temp
        gathered = await loop.run_in_executor(None, gather, outputs, images, self._comfy, temp)
        if not gathered.outputs:
            result = {"outputs": [], "timings": {**run.timings(), "output_ms": 0}}
            return await self._end(run, lambda: run.queue.finish(run.job, result, run.cold, None, claim))
        call = await self._call(run, lambda: run.queue.executed(run.job, run.timings(), run.cold, None, claim))
        self._finish_later(self._deliver(run, gathered))
        return None if call is None else self._hold(call, run.queue)

    async def _fail(self, run: Run, claim: Claim | None) -> Run | None:
        failure = run.failure
        if run.lost or failure is None:
            self._let_go(run)
            return None
        log.info("job %s: %s: %s", run.job.job_id, failure.code, failure.message)
        if self.is_stopping and not run.is_started and failure.code == "interrupted":
            return await self._end(run, partial(self._release, run, "shutdown"))
        return await self._end(run, lambda: run.queue.fail(run.job, failure, claim))

    @staticmethod
    async def _release(run: Run, reason: str) -> None:
        await run.queue.release(run.job, reason)

    async def _deliver(self, run: Run, gathered: Gathered) -> None:
        """Upload a job's files and complete it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            outputs = await self._courier.deliver(run.job, gathered, lambda: not run.lost and run.failure is None)
        except StaleLease:
            if run.failure is None:
                run.lose()
        except UploadFailed as error:
            run.failure = run.failure or error.failure
        finally:
            gathered.discard()
        if run.failure is not None or run.lost:
            await self._fail(run, None)
            return
        result = {
            "outputs": outputs,
            "timings": {**run.timings(), "output_ms": round((loop.time() - began) * 1000)},
        }
        await self._end(run, lambda: run.queue.finish(run.job, result, run.cold, None, None))

    async def _end(self, run: Run, call: Callable[[], Awaitable[Claimed | None]]) -> Run | None:
        """Say the last word on a job."""
        run.is_settled = True
        try:
            claimed = await self._call(run, call)
        finally:
            self._let_go(run)
        return None if claimed is None else self._hold(claimed, run.queue)

    async def _call(self, run: Run, call: Callable[[], Awaitable[Claimed | None]]) -> Claimed | None:
        try:
            return await self._persist(call, lambda: run.lost)
        except StaleLease:
            run.lose()
        except Refused as error:
            log.error("job %s: the queue refuses its report: %s", run.job.job_id, error)
            await self._quietly(run.queue.fail(run.job, Failure("output_upload_failed", str(error)), None))
        return None

    def _let_go(self, run: Run) -> None:
        if self._runs.get(run.job.job_id) is run:
            del self._runs[run.job.job_id]
            self._released.set()

    async def _persist(self, call: Callable[[], Awaitable[T]], until: Callable[[], bool] = lambda: False) -> T | None:
        """Repeat a call until the queue has answered it (or until it does not matter any more)."""
        pause = 0.1
        while not until():
            try:
                return await call()
            except (QueueAway, Unregistered) as error:
                log.debug("the queue is away (%s); trying again", error)
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311
            pause = min(pause * 2, 5.0)
        return None


def new_instance() -> str:
    """An id that no other process has."""
    return secrets.token_hex(16)
