"""Raw answers of Redis, as a check reads them: names and values as text, scores as numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
BATCH = 100


def batches(items: Sequence[T]) -> Iterator[list[T]]:
    """The items, some at a time."""
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch


def text(raw: bytes) -> str:
    """Bytes as text; what is not UTF-8 survives."""
    return raw.decode("utf-8", "surrogateescape")


def raw(text: str) -> bytes:
    """The way back of :func:`text`."""
    return text.encode("utf-8", "surrogateescape")


def pairs(flat: Any) -> list[tuple[bytes, bytes]]:
    """Names and values, as the client gives them (a dictionary, or flat)."""
    return list(flat.items()) if isinstance(flat, dict) else list(zip(flat[::2], flat[1::2], strict=True))


def record_of(raw: Any) -> dict[str, str]:
    """A hash."""
    return {text(name): text(value) for name, value in pairs(raw)}


def number(raw: Any) -> float | None:
    """A score; ``None`` stays."""
    return None if raw is None else float(raw)


def first_score(raw: Any) -> float | None:
    """The score of a one-entry ``ZRANGE … WITHSCORES``, flat or in pairs."""
    if not raw:
        return None
    return float(raw[0][1]) if isinstance(raw[0], list | tuple) else float(raw[1])


def scored(raw: Any) -> list[tuple[str, float]]:
    """Members and scores, flat or in pairs."""
    both = raw if raw and isinstance(raw[0], list | tuple) else pairs(raw)
    return [(text(member), float(score)) for member, score in both]


def is_number(raw: bytes) -> bool:
    """Whether a value is a whole number."""
    return raw.lstrip(b"-").isdigit()
