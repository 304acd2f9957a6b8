"""What a listing of jobs asks for, as the queue's function takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from broker.jobs import labels
from broker.protocol.base import now_ms
from broker.protocol.messages import ListJobs
from broker.queue.new_job import Value

_NUMBERS = ("limit", "since", "until")
_TEXTS = ("status", "cursor", "worker", "error", "model", "group", "tenant")
_METADATA = re.compile(r"metadata\[(.{1,256})\]", re.DOTALL)


def metadata(wanted: ListJobs) -> dict[str, str]:
    """The labels that are asked for, values as text."""
    named = ((name, labels.text(value)) for name, value in (wanted.metadata or {}).items())
    return {name: value for name, value in named if value is not None}


def filters(wanted: ListJobs) -> dict[str, Value | None]:
    """The filters of ``emq_list``; ``None`` where nothing is asked for."""
    digests = [labels.digest(name, value) for name, value in metadata(wanted).items()]
    since = [wanted.since] if wanted.since is not None else []
    if wanted.age_s is not None:
        since.append(now_ms() - round(wanted.age_s * 1000))
    return {
        "worker": wanted.worker,
        "error": wanted.error,
        "model": wanted.model,
        "group": wanted.group,
        "labels": "\n".join(digests) or None,
        "dead": wanted.dead or None,
        "since": max(since, default=None),
        "until": wanted.until,
    }


def from_query(query: Mapping[str, str]) -> dict[str, Any]:
    """A query string as the fields of ``list_jobs``; what is no number stays text, for the model to refuse."""
    found: dict[str, Any] = {name: query[name] for name in _TEXTS if query.get(name)}
    found |= {name: _number(query[name]) for name in _NUMBERS if name in query}
    if "age_s" in query:
        found["age_s"] = _float(query["age_s"])
    if "dead" in query:
        found["dead"] = {"1": True, "true": True, "0": False, "false": False}.get(query["dead"], query["dead"])
    named = {match[1]: value for name, value in query.items() if (match := _METADATA.fullmatch(name))}
    return {**found, "metadata": named} if named else found


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 17 else text


def _float(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
