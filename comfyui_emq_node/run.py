"""One claimed job on its way through this ComfyUI: prepared, submitted, watched, stopped, ended."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from . import errors
from .comfy import Comfy
from .inputs import Inputs, InputUnavailable
from .payload import BadPayload, ModelInputs, extra_of, graph_of, mark_outputs, model_files, read_payload, stray_name
from .previews import PAUSE_S, SIDE, Preview, encode
from .queue import Claimed, Failure, QueueAway, Report, StaleLease, Step, Superseded, Unregistered, WorkQueue
from .relay import (
    REPORT_PAUSE_S,
    STORE_PAUSE_S,
    Durations,
    Ending,
    Progress,
    Relay,
    needed_nodes,
)
from .rules import broken_rule

log = logging.getLogger("emq")

WATCH_S = 0.25
KNOWN_S = 5.0
START_PAUSE_S = 0.05
SETTLE_S = 0.01
"""The start of a job that follows another at once is reported by the call that ends the other, if that comes soon."""
GRACE_S = 30.0
"""A node that does not look at an interrupt gets this long before its job is reported without it."""


class Run:
    """A job that this worker holds, from the claim to the last word on it."""

    def __init__(
        self, job: Claimed, queue: WorkQueue, comfy: Comfy, durations: Durations, *, worker: str, prompt_id: str
    ) -> None:
        self.job, self.queue, self.prompt_id = job, queue, prompt_id
        self.claimed_at = time.monotonic()
        self.failure: Failure | None = None
        """Set when the job is to end without a result; whatever still happens is thrown away."""
        self.lost = False
        """The lease is gone: nothing more may be said about the job."""
        self.is_settled = False
        self.relay: Relay | None = None
        self.ending: Ending | None = None
        self.input_s = 0.0
        self.upload: tuple[float, float] | None = None
        """When its files began to go out, and when that was over."""
        self.cold = False
        self.model_files: list[str] = []
        self._comfy, self._durations, self._worker = comfy, durations, worker
        self._graph: dict[str, Any] = {}
        self._extra: dict[str, Any] = {}
        self._expected_s: float | None = None
        self._stopped_at: float | None = None
        self._reports = 0
        self._is_known = False
        """The queue knows that the job has started."""
        self._stored_at = 0.0
        self._frames = 0
        self._watched, self._side = job.watched, job.preview_px or SIDE
        self._shown_at = 0.0
        self._last_frame: bytes | None = None
        """For those who come to watch when the next may take long."""
        self._show_again = False
        self._fetching: asyncio.Task[None] | None = None
        self._staging: asyncio.Task[bool] | None = None
        self._parts: set[asyncio.Task[None]] = set()

    # -- before -------------------------------------------------------------------------------------------------------

    def prepare(self, inputs: Inputs, model_inputs: ModelInputs) -> None:
        """Read the payload, and begin to fetch its input files, if it has any, beside whatever runs now."""
        try:
            payload = read_payload(self.job.payload)
            self._graph, self._extra = graph_of(payload), extra_of(payload)
        except BadPayload as error:
            self.failure = Failure("validation_failed", str(error), retry=False)
            return
        self.model_files = model_files(self._graph, model_inputs)
        if (broken := broken_rule(self.job.rules, self._graph, self.model_files)) is not None:
            self.failure = errors.not_allowed(broken)
            return
        missing = errors.missing_classes(self._graph, self._comfy.inventory.has_class)
        if missing:
            self.failure = errors.lacks_classes(missing)
            return
        if (stray := stray_name(self._graph)) is not None:
            self.failure = errors.stray_file(*stray)
            return
        if self._comfy.fresh_outputs:
            mark_outputs(self._graph, self._comfy.inventory.is_output, self.prompt_id)
        wanted = payload.get("inputs")
        if isinstance(wanted, dict) and wanted and "class_type" not in wanted:
            self._fetching = asyncio.ensure_future(self._fetch(inputs, wanted))

    async def _fetch(self, inputs: Inputs, wanted: Mapping[str, Any]) -> None:
        try:
            await inputs.place(self.job, self._graph, wanted)
        except InputUnavailable as error:
            self.failure = self.failure or error.failure
        self.input_s = time.monotonic() - self.claimed_at

    # -- running ------------------------------------------------------------------------------------------------------

    async def stage(self, model_inputs: ModelInputs) -> bool:
        """Have ComfyUI validate the prompt while another one runs; says whether it may follow that one."""
        if self._staging is None:
            self._staging = asyncio.ensure_future(self._stage(model_inputs))
        return await self._staging

    async def _stage(self, model_inputs: ModelInputs) -> bool:
        if not await self._is_ready():
            return False
        return await self._submit(self._listen(), model_inputs, hold=True)

    async def execute(self, model_inputs: ModelInputs, stall_s: float) -> None:
        """Run the prompt to its end; afterwards :attr:`failure` and :attr:`ending` say what came of it."""
        relay = await self._start(model_inputs)
        if relay is None:
            return
        loop = asyncio.get_running_loop()
        # What a job of a millisecond does not need is not begun for it.
        watching = loop.call_later(WATCH_S, self._begin, lambda: self._watch(relay, stall_s))
        reporting = loop.call_later(SETTLE_S, self._begin, lambda: self._report_all(relay))
        try:
            ending = await relay.over
        finally:
            watching.cancel()
            reporting.cancel()
        if ending is not None:
            self._take_ending(ending)

    def _begin(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.ensure_future(part())
        self._parts.add(task)
        task.add_done_callback(self._parts.discard)

    async def _start(self, model_inputs: ModelInputs) -> Relay | None:
        if self._staging is not None:
            if not await self._staging or not self.is_wanted():
                return None
            self._comfy.push(self.prompt_id)
            return self.relay
        if not await self._is_ready():
            return None
        relay = self._listen()
        if self._comfy.foreign() == (0, 0):
            await self._report_start(relay)
        return relay if await self._submit(relay, model_inputs, hold=False) else None

    async def _report_start(self, relay: Relay) -> None:
        """Say that the job starts now. It has to be known where it may kill its ComfyUI (it was tried before), or may
        keep it from saying so until the job is another's."""
        reporting = asyncio.ensure_future(self._report_once(relay))
        if self.job.attempt > 1 or not self.queue.keeps_unstarted:
            await asyncio.wait([reporting], timeout=KNOWN_S)
        elif self.job.given:
            await asyncio.sleep(0)  # it is sent, so that the job is known to be noticed whatever the prompt does

    async def _is_ready(self) -> bool:
        if self._fetching is not None:
            await asyncio.wait([self._fetching])
            if not self._fetching.cancelled():
                self._fetching.result()
        return self.is_wanted()

    def _listen(self) -> Relay:
        """Begin to listen to the prompt."""
        nodes = needed_nodes(self._graph, self._comfy.inventory.is_output)
        progress = Progress(self._graph, nodes, self._durations)
        relay = self.relay = Relay(asyncio.get_running_loop(), progress, self._watched)
        self.cold = bool(set(self.model_files) - set(self._comfy.inventory.loaded_models()))
        return relay

    async def _submit(self, relay: Relay, model_inputs: ModelInputs, hold: bool) -> bool:
        """Give the prompt to ComfyUI. Before the waiting prompts of its page, if there are any: turn by turn."""
        front = not hold and self._comfy.foreign()[1] > 0
        try:
            answer = await self._comfy.submit(self.prompt_id, self._graph, self._extra, relay, front=front, hold=hold)
        except asyncio.TimeoutError:
            self.stop(Failure("stalled", "ComfyUI did not take the prompt within a minute."))
            relay.end(None)
            return False
        if answer.status == 200 and not answer.node_errors:
            if self.failure is not None or self.lost:
                self._comfy.cancel(self.prompt_id)
            return True
        self._comfy.cancel(self.prompt_id)
        if answer.status == 200:  # only a part of the prompt is valid; ComfyUI would run that part
            await asyncio.wait([relay.over], timeout=5.0)
        relay.end(None)
        self.failure = self.failure or errors.not_valid(answer.body, answer.node_errors, model_inputs)
        return False

    def _take_ending(self, ending: Ending) -> None:
        self.ending = ending
        if ending.succeeded:
            self._comfy.inventory.note_used(self.model_files)
        elif self.failure is None:
            self.failure = errors.not_finished(ending)
            if self.failure.code == "out_of_memory":
                self._comfy.free_memory()

    # -- stopping -----------------------------------------------------------------------------------------------------

    def stop(self, failure: Failure) -> None:
        """End the job without a result; its prompt is interrupted, and nobody else's."""
        if self.failure is None:
            self.failure = failure
            self._interrupt()

    def withdraw(self) -> None:
        """Take back a prompt that has not started: its job is not ours any more."""
        self._comfy.cancel(self.prompt_id)
        if self._fetching is not None:
            self._fetching.cancel()

    def lose(self) -> None:
        """The job is another's now: stop, and say nothing more."""
        if not self.lost:
            log.warning("job %s: the lease is lost; its prompt is stopped", self.job.job_id)
            self.lost = True
            self._interrupt()

    def _interrupt(self) -> None:
        self._stopped_at = time.monotonic()
        self.withdraw()

    def is_wanted(self) -> bool:
        """Whether the job's result is still of use."""
        return not self.lost and self.failure is None

    @property
    def is_over(self) -> bool:
        """Whether the prompt has ended, or was given up."""
        return self.relay is not None and self.relay.over.done()

    @property
    def was_given_up(self) -> bool:
        """Whether the prompt was given up before it had ended."""
        return self.relay is not None and self.relay.over.done() and self.relay.over.result() is None

    @property
    def is_started(self) -> bool:
        """Whether the prompt was ever started."""
        return self.relay is not None and self.relay.is_started

    async def _watch(self, relay: Relay, stall_s: float) -> None:
        """Notice what no event tells: time limits, silence, a removed prompt, a dead prompt thread."""
        unknown = 0
        while not relay.over.done():
            now = time.monotonic()
            if not self._comfy.is_prompt_thread_alive():
                self.failure = self.failure or errors.thread_died(relay.progress.node())
                self._comfy.forget(self.prompt_id)
                relay.give_up()
            elif self._stopped_at is not None and now - self._stopped_at > GRACE_S:
                relay.give_up()
            unknown = 0 if self._comfy.is_known(self.prompt_id) else unknown + 1
            if unknown >= 4 and self._comfy.forget(self.prompt_id) is not None:
                relay.end(None)
            if relay.is_started:
                self._check_time(relay, now, stall_s)
            await asyncio.wait([relay.over], timeout=WATCH_S)

    def _check_time(self, relay: Relay, now: float, stall_s: float) -> None:
        limit = self.job.timeout_s
        if limit is not None and now - relay.started_at > limit:
            self.stop(errors.timed_out(limit))
        elif now - relay.last_event > stall_s:
            self.stop(errors.stalled(stall_s, relay.progress.node()))

    # -- reporting ----------------------------------------------------------------------------------------------------

    def watch(self, watched: bool, side: int | None = None, *, new: bool = False) -> None:
        """Whether somebody watches the job's previews, how large they may be, and whether somebody has just come."""
        self._watched, self._side = watched, (side or self._side) if watched else SIDE
        self._show_again = watched and (self._show_again or new)
        if self.relay is not None:
            self.relay.watched = watched

    async def _report_all(self, relay: Relay) -> None:
        """Report the start when ComfyUI gets to it, and progress while there is any."""
        while not relay.is_started and not relay.over.done():
            await asyncio.wait([relay.over], timeout=START_PAUSE_S)
        while not relay.over.done() and not self.lost:
            await self._report_once(relay)
            await asyncio.wait([relay.over], timeout=REPORT_PAUSE_S)

    async def _report_once(self, relay: Relay) -> None:
        data = relay.take_changes()
        if data is not None or not self._is_known:
            await self._say(self._report(data or relay.progress.snapshot()))
        if self._watched and time.monotonic() - self._shown_at >= PAUSE_S:
            preview = relay.take_preview()
            if preview is not None or (self._show_again and self._last_frame is not None):
                await self._show(preview)

    def _report(self, data: Mapping[str, Any]) -> Report:
        now = time.monotonic()
        store = not self._reports or now - self._stored_at >= STORE_PAUSE_S
        self._stored_at = now if store else self._stored_at
        self._reports += 1
        full = {**data, "worker_id": self._worker, "attempt": self.job.attempt}
        return Report(self.job, self._reports, full, store)

    def unconfirmed(self) -> list[Report]:
        """A report to go ahead of whatever is said next, unless the queue is known to know that the job has started."""
        if self._is_known or self.relay is None:
            return []
        return [self._report(self.relay.progress.snapshot())]

    def confirm(self) -> None:
        """The queue knows that the job has started."""
        self._is_known = True

    async def _say(self, report: Report) -> None:
        try:
            answer = await self.queue.report(report)
        except StaleLease:
            if not self.is_settled:
                self.lose()
            return
        except (QueueAway, Unregistered, Superseded):
            return
        self.confirm()
        if answer.watched is not None:
            self.watch(answer.watched, answer.preview_px or SIDE)
        if answer.cancel:
            self.stop(errors.CANCELLED)

    async def _show(self, preview: Preview | None) -> None:
        """Send a preview; without one, the last again."""
        loop, tally = asyncio.get_running_loop(), self._comfy.tally
        self._frames += 1
        self._shown_at, self._show_again = time.monotonic(), False
        try:
            if preview is not None:
                tally.encoded += 1
                self._last_frame = await loop.run_in_executor(None, encode, preview, self.job.job_id, self._side)
            if self._last_frame is None:
                return
            tally.sent_bytes += len(self._last_frame)
            watched = await self.queue.preview(self.job, self._frames, self._last_frame)
            self.watch(watched is not False)
        except (QueueAway, StaleLease, Unregistered, Superseded, OSError) as error:
            log.debug("job %s: a preview was not sent: %s", self.job.job_id, error)

    # -- figures ------------------------------------------------------------------------------------------------------

    def remaining_s(self) -> float | None:
        """Seconds to the expected end of the prompt; None when nothing is known."""
        if self.relay is None or self.relay.over.done():
            return None
        return self.relay.progress.remaining()

    def is_short(self, seconds: float) -> bool:
        """Whether the whole prompt is known to take no longer than this."""
        if self._expected_s is None:
            self._expected_s = Progress(self._graph, self._graph, self._durations).expected()
        return self._expected_s is not None and self._expected_s <= seconds

    def describe(self, current: bool) -> dict[str, Any]:
        """What a person is shown of the job; ``current``: it is the one that has the device."""
        shown = self.relay.progress.snapshot() if self.relay is not None else {}
        phase = "finishing" if self.is_over else "next"
        if current:
            phase = "running" if self.is_started else "starting"
        return {"job_id": self.job.job_id, "attempt": self.job.attempt, "phase": phase, **shown}

    def timings(self) -> dict[str, int]:
        """Milliseconds of the steps so far."""
        seconds = self.relay.seconds() if self.relay is not None else 0.0
        queued = {} if self.job.queued_ms is None else {"queued_ms": self.job.queued_ms}
        return {**queued, "input_ms": round(self.input_s * 1000), "execution_ms": round(seconds * 1000)}

    def steps(self) -> list[Step]:
        """What its trace is to show; nothing where it has none."""
        if not self.job.traced:
            return []
        steps = [self._step("inputs", self.claimed_at, self.claimed_at + self.input_s)] if self.input_s else []
        if self.relay is not None and self.is_started:
            over = self.relay.ended_at or time.monotonic()
            steps.append(self._step("execution", self.relay.started_at, over))
            ran = self.relay.progress.ran(over)
            steps += [self._step("node", began, ended, node, kind) for node, kind, began, ended in ran]
        return [*steps, self._step("upload", *self.upload)] if self.upload else steps

    def _step(
        self, kind: str, began: float, ended: float, node_id: str | None = None, class_type: str | None = None
    ) -> Step:
        start = max(0, round((began - self.claimed_at) * 1000))
        return Step(kind, start, max(0, round((ended - began) * 1000)), node_id, class_type)
