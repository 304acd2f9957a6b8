"""The search language of the jobs page: ``status:failed worker:gpu-3 model:flux* age:<1h order:17``.

What an index knows (``docs/queue.md``: Finding jobs) is asked of the queue; ``*`` and what else it cannot do is checked
on the records that it gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from pydantic import ValidationError

from broker.protocol.base import ACTIVE, TERMINAL, WAITING, JobStatus
from broker.protocol.messages import ListJobs

_TOKEN = re.compile(r'([^\s:"]+):(?:"([^"]*)"|(\S*))|"([^"]*)"|(\S+)')
_AGE = re.compile(r"([<>]?)(\d{1,6}(?:\.\d+)?)(s|m|min|h|d)")
_UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_GROUPS = {"waiting": WAITING, "running": ACTIVE, "ended": TERMINAL}
_INDEXED = ("worker", "model", "error", "group")
MOST = 500
"""Characters of a search."""

Fits = Callable[[dict[str, Any]], bool]


@dataclass(slots=True)
class Search:
    """A search that was read. ``problem`` says what in it means nothing; the rest of it still counts."""

    text: str = ""
    wanted: ListJobs = field(default_factory=ListJobs)
    fits: Fits | None = None
    job_id: str = ""
    tenant: str = ""
    problem: str = ""


def _pattern(name: str, pattern: str) -> Fits:
    def fits(job: dict[str, Any]) -> bool:
        found = {
            "worker": [job["worker_id"]], "error": [(job["error"] or {}).get("code")], "group": [job["group"]],
            "model": job["models"],
        }[name]  # fmt: skip
        return any(isinstance(value, str) and fnmatchcase(value.lower(), pattern.lower()) for value in found)

    return fits


def _statuses(value: str) -> list[JobStatus]:
    """States by name or group; raises ``ValueError``."""
    found: list[JobStatus] = []
    for word in value.lower().split(","):
        found += sorted(_GROUPS[word]) if word in _GROUPS else [JobStatus(word)]
    return found


def read(text: str, now_ms: int) -> Search:
    """What a search asks for."""
    search = Search(text=text[:MOST])
    fields: dict[str, Any] = {}
    patterns: list[Fits] = []
    for match in _TOKEN.finditer(search.text):
        name, value = (match[1] or "").lower(), match[2] if match[2] is not None else match[3] or ""
        try:
            if not name:
                search.job_id = match[4] or match[5] or ""
            elif name in _INDEXED and "*" in value:
                patterns.append(_pattern(name, value))
            else:
                _take(search, fields, name, value, now_ms)
        except ValueError:
            search.problem = f"{match[0]!r} means nothing here; the help below shows what does."
    try:
        search.wanted = ListJobs.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        search.problem = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}."
    if patterns:
        search.fits = lambda job: all(fits(job) for fits in patterns)
    return search


def _take(search: Search, fields: dict[str, Any], name: str, value: str, now_ms: int) -> None:
    """One ``name:value``; raises ``ValueError`` for what means nothing."""
    if not value:
        raise ValueError(name)
    if name == "status":
        fields["status"] = _statuses(value)
    elif name in _INDEXED:
        fields[name] = value
    elif name == "tenant":
        search.tenant = value
    elif name == "id":
        search.job_id = value
    elif name == "dead":
        fields["dead"] = value.lower() in ("yes", "1", "true")
    elif name == "age":
        match = _AGE.fullmatch(value)
        if match is None:
            raise ValueError(value)
        seconds = float(match[2]) * _UNITS[match[3]]
        if match[1] == ">":
            fields["until"] = now_ms - round(seconds * 1000)
        else:
            fields["age_s"] = seconds
    else:
        fields.setdefault("metadata", {})[name] = value
