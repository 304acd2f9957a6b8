"""Labels: the top-level values of a job's metadata that it can be found by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from broker.jobs.strict import dumps

MAX_LABELS = 8
MAX_TEXT = 256
_HEX = 8


def text(value: Any) -> str | None:
    """A scalar as a search names it (``17``, ``true``, ``eu``); ``None`` for what is no label."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else None
    return dumps(value) if isinstance(value, bool | int | float) else None


def digest(name: str, value: str) -> str:
    """What the queue knows a label by. It is short, so a match is checked against the record (:func:`matches`)."""
    return blake3(f"{name}\n{value}".encode()).hexdigest()[:_HEX]


def of(metadata: Any) -> list[str]:
    """Digests of the first eight labels in a job's metadata."""
    if not isinstance(metadata, dict):
        return []
    named = ((name, text(value)) for name, value in metadata.items() if isinstance(name, str) and len(name) <= MAX_TEXT)
    return [digest(name, value) for name, value in named if value is not None][:MAX_LABELS]


def matches(metadata: Any, wanted: Mapping[str, str]) -> bool:
    """Whether a record has all the labels that a search names."""
    return not wanted or (
        isinstance(metadata, dict) and all(text(metadata.get(name)) == value for name, value in wanted.items())
    )
