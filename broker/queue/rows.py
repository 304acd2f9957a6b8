"""Answers that are read again and again: a row that came as it was is the same object, and is not parsed anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from broker.queue.queue import Answer


@dataclass(slots=True)
class _Row:
    raw: list[Any]
    answer: Answer
    inside: dict[bytes, _Row]


class Rows:
    """Parses answers whose rows, those in rows too, begin with the pair that names them."""

    def __init__(self) -> None:
        self._before: dict[bytes, _Row] = {}
        self._now: dict[bytes, _Row] = {}

    def turn(self) -> None:
        """Begin a new reading: rows that the last one did not have are forgotten."""
        self._before, self._now = self._now, {}

    def parse(self, raw: list[Any]) -> Answer:
        """The same as ``broker.queue.queue.parse`` gives."""
        answer = Answer(raw[0].decode())
        for name, value in zip(raw[1::2], raw[2::2], strict=True):
            if isinstance(value, list):
                row = self._now[value[2]] = _row(value, self._before)
                answer.rows.append(row.answer)
            else:
                answer.pairs[name.decode()] = value
        return answer


def _row(raw: list[Any], before: Mapping[bytes, _Row]) -> _Row:
    """A row, the one of before if nothing in it has changed; else what of it has not."""
    known = before.get(raw[2])
    if known is None:
        return _new(raw, {})
    if len(raw) != len(known.raw):
        return _new(raw, known.inside)
    if raw == known.raw:
        return known
    changed = [len(raw) - 1]  # most often it is the last pair alone
    if raw[:-1] != known.raw[:-1]:
        changed = [at for at, (now, old) in enumerate(zip(raw, known.raw, strict=True)) if now != old]
    if any(at % 2 or not at for at in changed):  # a name, or the outcome
        return _new(raw, known.inside)
    told = {raw[at - 1].decode(): raw[at] for at in changed if not isinstance(raw[at], list)}
    inside = _inside(raw, known.inside)
    pairs = {**known.answer.pairs, **told} if told else known.answer.pairs
    return _Row(raw, Answer(known.answer.outcome, pairs, [row.answer for row in inside.values()]), inside)


def _new(raw: list[Any], before: Mapping[bytes, _Row]) -> _Row:
    inside = _inside(raw, before)
    pairs = zip(raw[1::2], raw[2::2], strict=True)
    told = {name.decode(): value for name, value in pairs if not isinstance(value, list)}
    return _Row(raw, Answer(raw[0].decode(), told, [row.answer for row in inside.values()]), inside)


def _inside(raw: list[Any], before: Mapping[bytes, _Row]) -> dict[bytes, _Row]:
    return {value[2]: _row(value, before) for value in raw[2::2] if isinstance(value, list)}
