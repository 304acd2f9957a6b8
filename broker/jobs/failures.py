"""Failures that are the same one: grouped by what is left of an error when numbers, ids and paths are taken out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from blake3 import blake3

_SHAPES = (
    (re.compile(r"(?:[A-Za-z]:)?(?:[\\/][\w.\-+@ ]+){2,}"), "<path>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<address>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{12,}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\d+(?:\.\d+)*"), "<n>"),
    (re.compile(r"\s+"), " "),
)
LENGTH = 300


@dataclass(slots=True)
class FailureGroup:
    """Jobs that failed in the same way. Times are epoch ms."""

    signature: str
    code: str
    node_type: str
    message: str
    """One of the messages, as it was."""
    first: int
    last: int
    jobs: list[str] = field(default_factory=list)
    """The latest first."""
    workers: dict[str, int] = field(default_factory=dict)


def shape(message: str) -> str:
    """A message without what differs from one time to the next."""
    for pattern, word in _SHAPES:
        message = pattern.sub(word, message)
    return message.strip()[:LENGTH]


@lru_cache(1024)
def signature(code: str, node_type: str, message: str) -> str:
    """A short name of a kind of failure."""
    return blake3(f"{code}\n{node_type}\n{shape(message)}".encode()).hexdigest()[:16]


def grouped(jobs: Iterable[dict[str, Any]]) -> list[FailureGroup]:
    """Ended jobs (``broker.jobs.history``), the latest first, in groups; the largest first."""
    groups: dict[str, FailureGroup] = {}
    for job in jobs:
        error = job["error"] if isinstance(job["error"], dict) else {}
        code, node_type = job["error_code"] or "node_error", str(error.get("node_type") or "")
        message, at = str(error.get("message") or ""), job["finished_at"] or 0
        name = signature(code, node_type, message)
        group = groups.setdefault(name, FailureGroup(name, code, node_type, message[:1000], at, at))
        group.first, group.last = min(group.first, at), max(group.last, at)
        group.jobs.append(job["job_id"])
        if job["worker_id"]:
            group.workers[job["worker_id"]] = group.workers.get(job["worker_id"], 0) + 1
    return sorted(groups.values(), key=lambda group: (-len(group.jobs), -group.last))
