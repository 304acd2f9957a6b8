"""Ends of jobs that come at the same time go to Redis as one call, which costs it a third less."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

FUNCTIONS = frozenset({"finish", "executed"})
MOST = 16
"""Ends of one call: half of what the function takes, so that while Redis works on some, others are read and sent."""

Args = Sequence[bytes | str]


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
        for start in range(0, len(waiting), MOST):
            task = asyncio.ensure_future(self._run(waiting[start : start + MOST]))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

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
        if len(turns) == 1:
            [(function, args, _)] = turns
            return [await self._fcall(f"emq_{function}", self._prefix, args)]
        all_args = [part for function, args, _ in turns for part in ("turn", function, *args)]
        answers: list[Any] = await self._fcall("emq_turns", self._prefix, all_args)
        return answers
