"""Gives memory back: what only other rubbish holds is thrown away, and what is free goes to the system.

Connections that end leave objects that hold each other; left to itself Python throws such rings away once they are a
quarter of all it looks at, which for a quiet broker is many minutes and megabytes later.
And as pages and messages are long strings that come and go beside small ones that stay, glibc keeps what it once had.
Measured (``tests.chaos.soak``): without either a broker of 100 MB grew by 30 MB in an hour without one object more.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
from collections.abc import AsyncIterator

EVERY_S = 60.0
SHARE = 1 / 2000
"""Of the time, at most, may go into looking for rubbish: all of Python waits for it. It takes 5 to 20 ms in a broker,
more the more sockets there are."""


def collect() -> float:
    """Throw rings of rubbish away; how many seconds it took."""
    began = time.monotonic()
    gc.collect()
    return time.monotonic() - began


def trim() -> bool:
    """Return what the C library holds free to the system; whether there was any. Only glibc can (``malloc_trim``)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        return bool(ctypes.CDLL(None).malloc_trim(0))
    return False


async def _give_back(every_s: float) -> None:
    pause_s = every_s
    while True:
        await asyncio.sleep(pause_s)
        pause_s = max(every_s, collect() / SHARE)
        await asyncio.to_thread(trim)  # it takes milliseconds, in which the interpreter is free


@contextlib.asynccontextmanager
async def tidied(every_s: float = EVERY_S) -> AsyncIterator[None]:
    """Give memory back every minute."""
    task = asyncio.create_task(_give_back(every_s), name="memory")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
