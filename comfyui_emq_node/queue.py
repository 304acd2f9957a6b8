"""The worker's side of the queue: what it says and is told, whatever carries it.

``redis_queue.py`` calls the queue's functions in Redis, ``gateway_queue.py`` sends the same to a broker. Both raise
the errors below and give the same answers. Repeating a call after a lost reply is always safe.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


class Tokens:
    """Draws random ids of 128 bits, many at a time: each system call would give the interpreter to another thread."""

    def __init__(self) -> None:
        self._pool = b""

    def draw(self) -> bytes:
        """16 random bytes that nobody has had."""
        if not self._pool:
            self._pool = os.urandom(4096)
        token, self._pool = self._pool[:16], self._pool[16:]
        return token


class QueueAway(Exception):
    """The queue cannot be reached now; the call may be repeated."""


class Unregistered(Exception):
    """The queue does not know this worker (any more): register, then go on."""


class Superseded(Exception):
    """Another process has taken over this worker's name: stop for good."""


class StaleLease(Exception):
    """The job is no longer ours: stop it and throw its result away."""


class Refused(Exception):
    """The queue refuses what this worker says; the message says why. Repeating does not help."""


@dataclass(frozen=True)
class Uploads:
    """Where a job's files go: ``url_prefix`` + ``<n>/<name>`` with this ``Authorization``."""

    url_prefix: str
    authorization: str
    max_bytes: int | None = None


@dataclass(frozen=True)
class Claimed:
    """A job that is ours until its lease ends."""

    pool: str
    job_id: str
    attempt: int
    lease: str
    payload: bytes
    job_type: str = "comfyui"
    priority: int = 0
    timeout_s: float | None = None
    watched: bool = False
    input_urls: str = ""
    """The rule for URLs of input files (``EMQ_INPUT_URLS`` of the broker); empty: that of the registration."""
    preview_px: int | None = None
    """How large previews may be, where larger ones than usual are wished for."""
    queued_ms: int | None = None
    uploads: Uploads | None = None
    rules: str = ""
    """What the job's tenant may use (``rules.py``)."""
    traced: bool = False
    """Its steps are to be told at the end."""
    given: bool = False
    """It came in a hint: until something is said of it, the queue takes it that this process hangs."""


@dataclass(frozen=True)
class Claim:
    """A wish for the next job; a repeated one with the same token gives the same job."""

    token: str
    loaded: Sequence[str] = ()
    ahead: bool = False
    standing: bool = False
    """Where there is nothing, the queue may answer it later, in a hint."""


@dataclass(frozen=True)
class Registration:
    """What a worker says of itself."""

    machine: str
    profile: Mapping[str, Any]
    info: Mapping[str, Any]
    status: str = "idle"
    jobs: Sequence[Claimed] = ()
    """What this process still has from before the connection broke."""
    ranges: bytes = b""
    """What values inputs take (``ranges.py``), compressed; the profile has its digest."""


@dataclass(frozen=True)
class Terms:
    """What the queue answers to a registration; times in seconds."""

    lease_s: float = 30.0
    stall_s: float = 600.0
    max_finishing: int = 4
    input_urls: str = "public"
    brokers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Beat:
    """The answer to a heartbeat. ``jobs`` maps each named job to (``ok``, ``cancel`` or ``lost``, reason)."""

    jobs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    work: bool = False
    paused: bool = False
    drain: bool = False
    watched: frozenset[str] | None = None
    lease_s: float | None = None
    brokers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """One progress report: ``number`` counts within the claim, ``store`` keeps it in the record."""

    job: Claimed
    number: int
    data: Mapping[str, Any]
    store: bool


@dataclass(frozen=True)
class Reported:
    """The answer to a report; ``watched`` is None where it does not say."""

    cancel: str | None = None
    watched: bool | None = None
    preview_px: int | None = None


@dataclass(frozen=True)
class Step:
    """A step of a job: ``inputs``, ``execution``, ``node`` or ``upload``; ms, the start counted from the claim."""

    kind: str
    start_ms: int
    ms: int
    node_id: str | None = None
    class_type: str | None = None


def told(steps: Sequence[Step]) -> dict[str, Any]:
    """Steps as they are told at the end of a job."""
    return {"steps": [{name: value for name, value in asdict(step).items() if value is not None} for step in steps]}


@dataclass(frozen=True)
class Failure:
    """Why a job ended without a result; ``missing`` are requirement atoms this worker turned out not to have."""

    code: str
    message: str
    node_id: str | None = None
    node_type: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    hand_back: bool = False
    missing: Sequence[str] = ()
    retry: bool = True

    def as_error(self) -> dict[str, Any]:
        """The ``error`` object of the wire."""
        return {
            "code": self.code,
            "message": self.message,
            "node_id": self.node_id,
            "node_type": self.node_type,
            "details": dict(self.details),
        }


class WorkQueue(Protocol):
    """One pool's queue, as one worker instance sees it. Any call may raise the errors above."""

    pool: str
    keeps_unstarted: bool
    """Whether a claimed job stays ours while nothing can be said about it, though its start was never reported."""

    async def register(self, registration: Registration) -> Terms:
        """Say hello, the first time and after :class:`Unregistered`."""

    async def heartbeat(
        self, status: str, jobs: Iterable[Claimed], loaded: Sequence[str], gpus: Sequence[Mapping[str, Any]]
    ) -> Beat:
        """Keep the lease, naming every job still held."""

    async def hints(self) -> list[str | Claimed]:
        """Wait a few seconds for hints (``work``, ``cancel <job>`` …; a job: of a claim that stood).

        They may get lost and are repeated elsewhere.
        """

    async def claim(self, claim: Claim, reports: Sequence[Report] = ()) -> Claimed | None:
        """Take the best job for this worker, after ``reports``."""

    async def report(self, report: Report) -> Reported:
        """Report progress; a job's first report starts it."""

    async def preview(self, job: Claimed, frame: int, data: bytes) -> bool | None:
        """Send one preview frame; says whether somebody still watches, if it knows."""

    async def executed(
        self, job: Claimed, timings: Mapping[str, int], cold: bool, reports: Sequence[Report], claim: Claim | None
    ) -> Claimed | None:
        """The device is free, files are still going out. ``reports`` are made before; gives the next job, if any."""

    async def finish(
        self,
        job: Claimed,
        result: Mapping[str, Any],
        cold: bool,
        reports: Sequence[Report],
        claim: Claim | None,
        *,
        steps: Sequence[Step] = (),
        patience_s: float = 0.0,
    ) -> Claimed | None:
        """Complete the job, after ``reports``; gives the next one, if any. It may wait so long for another call."""

    async def fail(
        self, job: Claimed, failure: Failure, claim: Claim | None, *, steps: Sequence[Step] = ()
    ) -> Claimed | None:
        """End the job without a result; gives the next one, if any."""

    async def release(self, job: Claimed, reason: str) -> None:
        """Give back a job that was not started."""

    async def steer(self, word: str) -> None:
        """``pause``, ``resume`` or ``drain`` this worker; resuming ends a drain too."""

    async def bye(self) -> None:
        """Leave; whatever is still held goes back."""

    async def guard(self, lease_s: float) -> dict[str, Any]:
        """What the side process needs to keep the lease, or to tell of this process' death; see ``keeper.py``."""

    async def close(self) -> None:
        """Close connections; never raises."""
