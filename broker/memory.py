"""Gives memory back: what only other rubbish holds is thrown away, and what is free goes to the system.

Connections that end leave objects that hold each other; left to itself Python throws such rings away once they are a
quarter of all it looks at, which for a quiet broker is many minutes and megabytes later.
And as pages and messages are long strings that come and go beside small ones that stay, glibc keeps what it once had.
Measured (``tests.chaos.soak``): without either a broker of 100 MB grew by 30 MB in an hour without one object more.
Each thread, too, would have a heap of its own, and what is free in one is of no use to another: with one heap for all
a broker is 1 MB smaller after ten minutes, and has nothing that grows with the number of threads it ever had.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
from collections.abc import AsyncIterator, Collection
from typing import Protocol

EVERY_S = 10.0
"""Between trims, each of a millisecond. Side by side for an hour (``tests.chaos.soak``), brokers with one a minute had
96.8 MB and grew by 0.5 and 1.2 MB, with one every ten seconds 95.6 MB and grew by 0.1 and 0.8."""
FORGET_S = 60.0
_M_ARENA_MAX = -8
SHARE = 1 / 2000
"""Of the time, at most, may go into looking for rubbish: all of Python waits for it. It is 5 to 20 ms of work in a
broker, more the more sockets there are."""


def share_heap() -> bool:
    """Have all threads that are started from now on use one heap; whether it is so. Only glibc can (``mallopt``).

    They hardly wait for each other, as the interpreter lets one of them run at a time.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1))
    return False


def collect() -> float:
    """Throw rings of rubbish away; how many seconds of work it was, on a busy machine too."""
    began = time.thread_time()
    gc.collect()
    return time.thread_time() - began


def trim() -> bool:
    """Return what the C library holds free to the system; whether there was any. Only glibc can (``malloc_trim``)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return bool(ctypes.CDLL(None).malloc_trim(0))
    return False


class Cache(Protocol):
    """What ``functools.lru_cache`` makes of a function."""

    def cache_clear(self) -> None:
        """Forget all results."""


async def _give_back(every_s: float, caches: Collection[Cache]) -> None:
    forget = due = time.monotonic()
    while True:
        await asyncio.sleep(every_s)
        if time.monotonic() >= forget:
            forget = time.monotonic() + FORGET_S
            for cache in caches:
                cache.cache_clear()
        if time.monotonic() >= due:
            due = time.monotonic() + collect() / SHARE
        await asyncio.to_thread(trim)  # the interpreter is free meanwhile


@contextlib.asynccontextmanager
async def tidied(every_s: float = EVERY_S, caches: Collection[Cache] = ()) -> AsyncIterator[None]:
    """Give memory back every ten seconds.

    ``caches`` are emptied every minute: those whose keys name jobs and moments, of which there are always others.
    With a bound on their number alone they are what a broker grows by until they are full, after a quarter of an hour
    or more.
    """
    task = asyncio.create_task(_give_back(every_s, caches), name="memory")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
