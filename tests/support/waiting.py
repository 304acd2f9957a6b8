"""Waiting for a condition, never for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from broker.errors import Unavailable

if TYPE_CHECKING:
    from broker.queue.queue import Queue

T = TypeVar("T")
PATIENCE_S = 30.0
"""How long a test waits for what nothing promises within a time. Only a broken program keeps it waiting so long."""


@overload
async def wait_until(predicate: Callable[[], Awaitable[T | None]], timeout: float = ..., what: str = ...) -> T: ...  # noqa: ASYNC109


@overload
async def wait_until(predicate: Callable[[], T | None], timeout: float = ..., what: str = ...) -> T: ...  # noqa: ASYNC109


async def wait_until(predicate: Callable[[], Any], timeout: float = PATIENCE_S, what: str = "") -> Any:  # noqa: ASYNC109
    """Ask ``predicate`` (plain or async) until it answers something true, and return that.

    Fails after ``timeout`` seconds, saying ``what`` did not happen and what the last answer was.
    """
    end = time.monotonic() + timeout
    pause = 0.001
    while True:
        answer = predicate()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"Not within {timeout:g} s: {what or predicate}; last answer: {answer!r}")
        await asyncio.sleep(pause)
        pause = min(pause * 2, 0.05)


async def until_it_answers(queue: Queue) -> None:
    """Wait for a server that was away: of the first calls each gives up after a second."""

    async def answers() -> bool:
        try:
            return await queue.library() > 0
        except Unavailable:
            return False

    await wait_until(answers, what="the queue answers")
