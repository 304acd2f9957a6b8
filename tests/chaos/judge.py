"""What became of every job: the words of a total queue."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from broker.client import Client
from broker.client.events import ends
from broker.protocol.events import JobProgress

TERMINAL = ("completed", "failed", "cancelled")
WAITING = ("scheduled", "blocked", "pending")
REAL = "comfyui-"
"""What the names of real ComfyUIs begin with."""


@dataclass
class Promise:
    """A job that a client submitted, and what it was told."""

    number: int
    job_id: str | None = None
    """``None`` while no broker has said that it took it."""
    events: list[Any] | None = None
    """What a follower heard, if there was one."""
    trouble: str = ""
    """What ended it too early."""


@dataclass
class Verdict:
    """How a drill went. What must be 0 is ``lost``, ``duplicated``, ``twice``, ``gaps`` and ``findings``."""

    seconds: float = 0
    submitted: int = 0
    acknowledged: int = 0
    completed: int = 0
    failed: int = 0
    lost: list[str] = field(default_factory=list)
    """Acknowledged jobs that are not there, or have not ended."""
    recovered: int = 0
    """Jobs that are there though nobody was told so."""
    duplicated: list[str] = field(default_factory=list)
    """Submits that made two jobs."""
    twice: list[str] = field(default_factory=list)
    """Jobs of which two attempts were told that they had completed it."""
    gaps: list[str] = field(default_factory=list)
    """Followers that missed an event, heard one twice, or heard no end."""
    attempts: int = 0
    crashes: int = 0
    """Workers that were lost while a job ran, as its record counts them."""
    real_crashes: int = 0
    """Those of them that were real ComfyUIs."""
    by_real: int = 0
    """Jobs that a real ComfyUI completed."""
    faults: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    """What ``fsck`` found at the end."""

    def count(self, fault: str) -> None:
        """Note that there was one."""
        self.faults[fault] = self.faults.get(fault, 0) + 1

    @property
    def good(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.duplicated or self.twice or self.gaps or self.findings)

    def text(self) -> str:
        """The verdict in a few lines."""
        counts = {name: len(value) if isinstance(value, list) else value for name, value in asdict(self).items()}
        faults = ", ".join(f"{name} {number}" for name, number in sorted(self.faults.items()))
        counts["faults"] = sum(self.faults.values())
        head = ", ".join(f"{name} {value:g}" for name, value in counts.items())
        bad = [f"{name}: {value[:5]}" for name, value in asdict(self).items() if isinstance(value, list) and value]
        return "\n".join([head, f"faults: {faults}", *bad])


async def judge(client: Client, promises: list[Promise], ledger: Path, verdict: Verdict) -> None:
    """Compare what was promised with what is there."""
    jobs = [job async for job in client.jobs(limit=1000)]
    by_number: dict[int, list[Any]] = defaultdict(list)
    for job in jobs:
        by_number[job.metadata["number"]].append(job)
    verdict.submitted = len(promises)
    verdict.acknowledged = sum(promise.job_id is not None for promise in promises)
    verdict.completed = sum(job.status == "completed" for job in jobs)
    verdict.failed = sum(job.status == "failed" for job in jobs)
    verdict.attempts = sum(job.attempt for job in jobs)
    verdict.crashes = sum(job.crashes for job in jobs)
    verdict.real_crashes = sum(_is_real(crash.worker_id) for job in jobs for crash in job.crash_log)
    verdict.by_real = sum(job.status == "completed" and _is_real(job.worker_id) for job in jobs)
    for promise in promises:
        found = by_number.get(promise.number, [])
        if len(found) > 1:
            verdict.duplicated.append(f"{promise.number}: {[job.job_id for job in found]}")
        if promise.job_id is None:
            verdict.recovered += bool(found)
        elif not any(job.job_id == promise.job_id and job.status in TERMINAL for job in found):
            verdict.lost.append(f"{promise.job_id}: {[job.status for job in found]}")
        if promise.events is not None:
            verdict.gaps += gaps(promise)
    verdict.twice += _twice(ledger)


def _is_real(worker: str | None) -> bool:
    return worker is not None and worker.startswith(REAL)


def _twice(ledger: Path) -> list[str]:
    done: dict[str, set[str]] = defaultdict(set)
    for line in ledger.read_text().splitlines() if ledger.exists() else ():
        entry = json.loads(line)
        if entry["answer"] == "ok":
            done[entry["job"]].add(entry["token"])
    return [job for job, tokens in done.items() if len(tokens) > 1]


def gaps(promise: Promise) -> list[str]:
    events = promise.events or []
    ids = [event.event_id for event in events]
    whole = [event for event in events if not isinstance(event, JobProgress)]
    wrong = []
    if len(ids) != len(set(ids)):
        wrong.append("an event twice")
    if not events or not ends(events[-1]):
        wrong.append(f"no end {promise.trouble}")
    if whole and (getattr(whole[0], "status", None) not in WAITING and whole[0].type != "reset"):
        wrong.append(f"the first is {whole[0]}")
    numbers = [int(event.event_id.rpartition(".")[2].partition("-")[0]) for event in whole if event.type != "reset"]
    if whole and not any(event.type == "reset" for event in whole) and _holes(numbers):
        wrong.append(f"holes in {numbers}")
    return [f"{promise.job_id}: {text}" for text in wrong]


def _holes(numbers: list[int]) -> bool:
    """Events of a log are numbered without holes; those of progress in between carry numbers too."""
    return numbers != sorted(set(numbers))
