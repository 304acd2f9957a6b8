"""The end of a job: its files go out, the last word is said, and the call that says it may bring the next job."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from .comfy import Comfy
from .files import Courier, Gathered, UploadFailed, gather, remove_files
from .queue import Claim, Claimed, Failure, QueueAway, Refused, StaleLease, Superseded, Unregistered, WorkQueue
from .run import Run
from .settings import Settings

log = logging.getLogger("emq")

PATIENCE_S = 0.005
"""Where one job follows another within moments, what is not urgent waits so long for the next call to the queue."""

T = TypeVar("T")
Hold = Callable[[Claimed, WorkQueue], Run]


async def quietly(call: Awaitable[Any]) -> None:
    """Await what may fail without anybody being the worse for it, for at most 2 s."""
    try:
        await asyncio.wait_for(call, 2)
    except Exception as error:
        log.debug("it went wrong, and does not matter: %s", error)


async def persist(call: Callable[[], Awaitable[T]], until: Callable[[], bool] = lambda: False) -> T | None:
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


def cannot_keep(error: OSError) -> Failure:
    """The outputs cannot be read, or what is no file yet cannot be written."""
    code = "worker_disk_full" if error.errno == errno.ENOSPC else "output_upload_failed"
    return Failure(code, f"The worker cannot keep the outputs: {error}.")


class Closing:
    """Ends jobs. ``hold`` takes a job that came with an answer, ``let_go`` forgets one that has ended."""

    def __init__(self, comfy: Comfy, courier: Courier, hold: Hold, let_go: Callable[[Run], None]) -> None:
        self._comfy, self._courier, self._hold, self._let_go = comfy, courier, hold, let_go
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: list[tuple[Run, Gathered]] = []
        """Jobs whose files go out when the next one's end has been told."""
        self.delivering = 0
        """Jobs whose files are going out, or are to."""
        self.deliver_temp = self.strip = self.clean = False
        """Of files: temporary ones go out too; PNGs go without texts; all are removed once they are delivered."""
        self.is_stopping = False
        self.on_end: Callable[[], None] = lambda: None
        """Called when something that went on beside the work has ended."""
        self.is_brisk: Callable[[], bool] = lambda: False
        """Whether another call to the queue follows within a few milliseconds."""
        self.on_superseded: Callable[[], None] = lambda: None

    def treat_files(self, settings: Settings) -> None:
        """Do with files as the settings say."""
        self.deliver_temp, self.strip = settings.deliver_temp, settings.strip_metadata
        self.clean = self._comfy.fresh_outputs = settings.clean_outputs

    def cancel(self) -> None:
        """Drop everything that goes on beside the work."""
        for task in self._tasks:
            task.cancel()

    def later(self, work: Awaitable[Any]) -> asyncio.Task[Any]:
        """Do something beside the work; what goes wrong is logged."""
        task = asyncio.ensure_future(self._guarded(work))
        self._tasks.add(task)
        task.add_done_callback(self._is_done)
        return task

    async def _guarded(self, work: Awaitable[Any]) -> None:
        try:
            await work
        except Superseded:
            self.on_superseded()
        except Exception:
            log.exception("a fault while a job was ended")

    def _is_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self.on_end()

    # -- one job ------------------------------------------------------------------------------------------------------

    async def settle(self, run: Run, claim: Claim | None, following: Run | None = None) -> Run | None:
        """Say how a job has ended; its files go out beside the next job, which may come with the answer.

        The start of ``following``, which runs by now, is reported in the same trip and before: a worker has one slot.
        """
        asyncio.get_running_loop().call_soon(self._deliver_waiting)  # as soon as this has been sent
        if run.failure is not None or run.lost:
            return await self._fail(run, claim)
        try:
            gathered = await self._gather(run)
        except OSError as error:
            run.failure = cannot_keep(error)
            return await self._fail(run, claim)
        reports = [*run.unconfirmed(), *(following.unconfirmed() if following is not None else ())]
        if not gathered.outputs:
            result = {"outputs": [], "timings": {**run.timings(), "output_ms": 0}}
            return await self._end(
                run, lambda: run.queue.finish(run.job, result, run.cold, reports, claim, steps=run.steps())
            )
        claimed = await self._call(run, lambda: run.queue.executed(run.job, run.timings(), run.cold, reports, claim))
        for each in (run, following):
            if each is not None:
                each.confirm()
        self.delivering += 1
        if following is not None and following.is_over:
            self._waiting.append((run, gathered))
            asyncio.get_running_loop().call_later(PATIENCE_S, self._deliver_waiting)
        else:
            self.later(self._deliver(run, gathered))
        return None if claimed is None else self._hold(claimed, run.queue)

    def _deliver_waiting(self) -> None:
        """Have the files go out that gave way to the next job: the device waits for that one's call, not for them."""
        waiting, self._waiting = self._waiting, []
        for run, gathered in waiting:
            self.later(self._deliver(run, gathered))

    async def _gather(self, run: Run) -> Gathered:
        """The job's outputs; a thread is worth its cost only where pictures have to be encoded."""
        assert run.ending is not None
        assert run.relay is not None
        outputs = dict((run.ending.entry or {}).get("outputs") or {})
        collect = partial(self._collect, outputs, run.relay.final_images)
        if run.relay.final_images or self.strip:
            return await asyncio.get_running_loop().run_in_executor(None, collect)
        return collect()

    def _collect(self, outputs: dict[str, Any], images: Sequence[tuple[str | None, Any]]) -> Gathered:
        gathered = gather(outputs, images, self._comfy, self.deliver_temp)
        try:
            if self.strip:
                gathered.strip()
        except OSError:
            gathered.discard()
            raise
        return gathered

    def _clean_up(self, run: Run) -> None:
        """Remove the job's files, where that is wanted; those that could not be delivered are left to a person."""
        kept = run.failure is not None and run.failure.code == "output_upload_failed"
        if self.clean and run.ending is not None and not kept:
            remove_files(dict((run.ending.entry or {}).get("outputs") or {}), self._comfy)

    async def _fail(self, run: Run, claim: Claim | None) -> Run | None:
        failure = run.failure
        self._clean_up(run)
        if run.lost or failure is None:
            self._let_go(run)
            return None
        if self.is_stopping and not run.is_started and failure.code == "interrupted":
            await self.give_back(run, "shutdown")
            return None
        log.info("job %s: %s: %s", run.job.job_id, failure.code, failure.message)
        return await self._end(run, lambda: run.queue.fail(run.job, failure, claim, steps=run.steps()))

    async def give_back(self, run: Run, reason: str) -> None:
        """Give a job back to the queue; no attempt is counted."""
        run.withdraw()
        await self._end(run, partial(self._release, run, reason))

    @staticmethod
    async def _release(run: Run, reason: str) -> None:
        await run.queue.release(run.job, reason)

    async def _deliver(self, run: Run, gathered: Gathered) -> None:
        """Upload a job's files and complete it."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        outputs: list[dict[str, Any]] = []
        try:
            outputs = await self._courier.deliver(run.job, gathered, run.is_wanted)
        except StaleLease:
            if run.failure is None:
                run.lose()
        except UploadFailed as error:
            run.failure = run.failure or error.failure
        finally:
            gathered.discard()
            self.delivering -= 1
            run.upload = (began, loop.time())
        if run.failure is not None or run.lost:
            await self._fail(run, None)
            return
        timings = {**run.timings(), "output_ms": round((loop.time() - began) * 1000)}
        result = {"outputs": outputs, "timings": timings}
        patience_s = PATIENCE_S if self.is_brisk() else 0.0
        await self._end(
            run,
            lambda: run.queue.finish(run.job, result, run.cold, (), None, steps=run.steps(), patience_s=patience_s),
        )
        self._clean_up(run)

    async def _end(self, run: Run, call: Callable[[], Awaitable[Claimed | None]]) -> Run | None:
        """Say the last word on a job."""
        run.is_settled = True
        try:
            claimed = await self._call(run, call)
        finally:
            self._let_go(run)
        return None if claimed is None else self._hold(claimed, run.queue)

    async def _call(self, run: Run, call: Callable[[], Awaitable[Claimed | None]]) -> Claimed | None:
        with contextlib.suppress(StaleLease):
            try:
                return await persist(call, lambda: run.lost)
            except Refused as error:
                log.error("job %s: the queue refuses its report: %s", run.job.job_id, error)
                failure = Failure("output_upload_failed", f"The queue refuses the job's result: {error}")
                return await persist(lambda: run.queue.fail(run.job, failure, None), lambda: run.lost)
        run.lose()
        return None
