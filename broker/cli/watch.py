"""Follows a job in the terminal and saves what it makes."""

from __future__ import annotations

import shutil
import sys
from contextlib import aclosing
from typing import TextIO

from broker.client import Event, JobHandle, Preview
from broker.client.events import ends
from broker.client.job import result_of
from broker.protocol.base import ACTIVE, TERMINAL
from broker.protocol.events import JobFailed, JobProgress, JobUpdate, Reset
from broker.protocol.messages import JobAccepted
from broker.protocol.records import Job, Output, WaitingFor

BAR = 30


class Screen:
    """A progress bar on one line of a terminal; elsewhere a plain line for each change of state, node or tenth."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._bar = False
        self._step: object = None

    def say(self, line: str) -> None:
        """A line that stays."""
        self.close()
        print(line, file=self._out, flush=True)

    def progress(self, percent: float, text: str) -> None:
        """How far the job is."""
        if not self._live:
            step = (int(percent // 10), text.split(" ", 1)[0])
            if step != self._step:
                self._step = step
                print(f"{percent:3.0f} %  {text}".rstrip(), file=self._out, flush=True)
            return
        done = int(percent / 100 * BAR)
        line = f"{'█' * done}{'░' * (BAR - done)} {percent:3.0f} %  {text}"
        self._out.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        self._out.flush()
        self._bar = True

    def close(self) -> None:
        """Leave the bar where it is and go on below it."""
        if self._bar:
            self._out.write("\n")
            self._bar = False


async def follow(job: JobHandle, screen: Screen) -> list[Output]:
    """Show a job's events until it ends and answer its outputs. Raises ``JobFailed`` or ``JobCancelled``."""
    outputs: list[Output] = []
    async with aclosing(job.events()) as events:
        async for event in events:
            if isinstance(event, Preview):
                continue
            _show(event, screen)
            try:
                result = result_of(job.id, event)
            finally:
                if ends(event):
                    screen.close()
            outputs = result.outputs if result is not None else outputs
    return outputs


def _show(event: Event, screen: Screen) -> None:
    if isinstance(event, JobProgress):
        screen.progress(event.progress, _doing(event))
    elif isinstance(event, JobFailed) and event.will_retry:
        screen.say(f"Failed ({event.error.code}: {event.error.message}); it will be tried again.")
    elif isinstance(event, JobUpdate):
        _moved(event, screen)
    elif isinstance(event, Reset):
        _moved(event.record, screen)


def _moved(to: JobUpdate | Job, screen: Screen) -> None:
    if to.status in TERMINAL:
        return
    where = f" by {to.worker_id}" if to.worker_id and to.status in ACTIVE else ""
    place = f", position {to.position}" if to.position else ""
    screen.say(f"{to.status}{where}{place}")


def _doing(progress: JobProgress) -> str:
    node = progress.node
    if node is None:
        return progress.message or ""
    steps = f" {node.value or 0:g}/{node.max:g}" if (node.max or 0) > 1 else ""
    return f"{node.class_type or node.id}{steps}"


def describe(accepted: JobAccepted) -> list[str]:
    """What an accepted job's answer says, line by line."""
    head = "known already as" if accepted.duplicate else "accepted as"
    lines = [f"{head} {accepted.job_id} ({accepted.status})"]
    return lines + [f"waits: {_reason(reason)}" for reason in accepted.waiting_for]


def _reason(reason: WaitingFor) -> str:
    return reason.message or f"{reason.code} {reason.detail or ''}".strip()
