"""Ends of jobs that come at the same time go to Redis as one call, which costs it a third less."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from itertools import chain, groupby
from typing import Any

from broker.queue.in_order import Args

FUNCTIONS = frozenset({"finish", "executed"})
MOST = 16
"""Ends of one call: half of what the function takes, so that while Redis works on some, others are read and sent."""
GAP = 6
"""Turns of the event loop between two calls, a tenth or two of a millisecond: the first is written and read."""


def sections(turns: Sequence[tuple[str, Args]]) -> list[bytes | str]:
    """The arguments of ``emq_turns``: of ends with the same names these are said once, and so is what they share."""
    out: list[bytes | str] = []
    rows = [("turn", function, *args) for function, args in turns]
    for names, like in groupby(rows, key=lambda row: row[::2]):
        columns = list(zip(*(row[1::2] for row in like), strict=True))
        shared: list[bytes | str] = []
        own: list[bytes | str] = []
        values: list[tuple[bytes | str, ...]] = []
        for name, column in zip(names, columns, strict=True):
            if column.count(column[0]) == len(column):
                shared += (name, column[0])
            else:
                own.append(name)
                values.append(column)
        out += ("ends", str(len(columns[0])), str(len(shared) // 2), str(len(own)), *shared, *own)
        out += chain.from_iterable(zip(*values, strict=True))
    return out


def answers_of(raw: list[Any]) -> list[Any]:
    """The answer of ``emq_turns``, each of its answers as ``broker.queue.queue.parse`` takes it."""
    shared, names, *answers = raw
    words = [name.decode() for name in names]
    pairs = dict(zip([name.decode() for name in shared[::2]], shared[1::2], strict=True))
    return [_whole(answer, words, pairs) if answer[0] == b"job" else answer for answer in answers]


def _whole(row: list[Any], names: list[str], shared: dict[str, Any]) -> list[Any]:
    """What a row says: an end that is ``ok``, and the job that was claimed with it."""
    job = {**shared, **dict(zip(names, row[1:], strict=False))}
    status = job.pop("status", b"")  # of a finish
    said = [b"status", status] if status else []
    return [b"ok", *said, b"repeated", job.pop("repeated"), b"next", [b"job", job]]


class Turns:
    """Gathers what is asked for in one turn of the event loop, that of different workers too."""

    def __init__(self, fcall: Callable[[str, str, Args], Awaitable[Any]], prefix: str) -> None:
        """``fcall(function, prefix, args)`` runs a function of the queue (:class:`broker.queue.queue.Caller`)."""
        self._fcall = fcall
        self._prefix = prefix
        self._waiting: list[tuple[str, Args, asyncio.Future[Any]]] = []
        self._running: set[asyncio.Task[None]] = set()

    async def call(self, function: str, args: Args) -> Any:
        """The raw answer of one of ``FUNCTIONS``; raises what the call raises.

        A caller that is cancelled leaves its end in the call: it happens, or not, as if the answer had been lost.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((function, args, future))
        return await future

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        calls = math.ceil(len(waiting) / MOST)
        size = math.ceil(len(waiting) / calls)
        first, *more = (waiting[start : start + size] for start in range(0, len(waiting), size))
        self._start(self._run(first))
        if more:
            self._start(self._follow(more))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _follow(self, calls: Sequence[list[tuple[str, Args, asyncio.Future[Any]]]]) -> None:
        """Make more calls, each when the one before it is on its way.

        Redis answers at once what it reads at once: calls that came together would be answered together, and it would
        have nothing to do until both answers are read and the next ends are sent, together again.
        """
        for turns in calls:
            for _ in range(GAP):
                await asyncio.sleep(0)
            self._start(self._run(turns))

    async def _run(self, turns: list[tuple[str, Args, asyncio.Future[Any]]]) -> None:
        try:
            answered = list(zip(turns, await self._ask(turns), strict=True))
        except asyncio.CancelledError:
            for _, _, future in turns:
                future.cancel()
            raise
        except Exception as error:
            for _, _, future in turns:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, _, future), answer in answered:
            if not future.done():
                future.set_result(answer)

    async def _ask(self, turns: list[tuple[str, Args, asyncio.Future[Any]]]) -> list[Any]:
        ends = [(function, args) for function, args, _ in turns]
        if len(ends) > 1:
            raw = await self._fcall("emq_turns", self._prefix, sections(ends))
            if raw[0] != b"invalid":
                return answers_of(raw)
            # A library of before version 5, loaded by another broker after Redis had lost ours.
        return [await self._fcall(f"emq_{function}", self._prefix, args) for function, args in ends]
