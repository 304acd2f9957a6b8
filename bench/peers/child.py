"""``python -m bench.peers.child ADAPTER produce WAY COUNT`` or ``… work IN_FLIGHT``: one role of one peer.

Runs in the peer's own environment. ``BENCH_REDIS_URL`` names the server, ``BENCH_STAMPS`` a file to which every
handler appends two doubles: when its job was made and when it started.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import inspect
import os
import random
import string
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

PAYLOAD = 2048
CHUNKS = {"bulk": 1000, "bulk100": 100}
"""Jobs of one bulk call, by the way to enqueue: the same for everybody."""
HEAD = 20
STAMP = struct.Struct("dd")


def payloads(count: int) -> list[str]:
    """Payloads of 2 KiB that hardly compress; the first 20 characters are left for the time."""
    pool = "".join(random.Random(7).choices(string.ascii_letters + string.digits, k=PAYLOAD * 64))
    size = PAYLOAD - HEAD
    offsets = random.Random(count).choices(range(len(pool) - size), k=count)
    return [pool[offset : offset + size] for offset in offsets]


def stamped(payload: str) -> str:
    """The payload with the time in front."""
    return f"{time.time():<{HEAD}.6f}{payload}"


def url() -> str:
    """The server everybody uses."""
    return os.environ["BENCH_REDIS_URL"]


def recorder() -> Callable[[str], None]:
    """What a handler calls: notes that a job with this payload starts."""
    file = os.open(os.environ["BENCH_STAMPS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(payload: str) -> None:
        os.write(file, STAMP.pack(float(payload[:HEAD]), time.time()))

    return note


async def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call an adapter's function, which may be a coroutine."""
    answer = function(*args)
    return await answer if inspect.isawaitable(answer) else answer


async def singles(enqueue: Callable[[str], Any], work: list[str]) -> None:
    """One job after another, each accepted before the next."""
    if inspect.iscoroutinefunction(enqueue):
        for payload in work:
            await enqueue(stamped(payload))
    else:
        for payload in work:
            enqueue(stamped(payload))


async def bulks(enqueue_many: Callable[[list[str]], Any], work: list[str], size: int) -> None:
    """Calls of so many jobs, one after another."""
    for start in range(0, len(work), size):
        await call(enqueue_many, [stamped(payload) for payload in work[start : start + size]])


async def paced(enqueue: Callable[[str], Any], work: list[str]) -> None:
    """50 jobs a second."""
    start = time.perf_counter()
    for number, payload in enumerate(work):
        await asyncio.sleep(max(0.0, start + number / 50 - time.perf_counter()))
        await call(enqueue, stamped(payload))


async def produce(adapter: Any, way: str, count: int) -> None:
    """Enqueue and print how many jobs a second were accepted."""
    work = payloads(count)
    producer = await call(adapter.producer, url())
    gc.collect()
    begin = time.perf_counter()
    if way in CHUNKS:
        await bulks(producer.enqueue_many, work, CHUNKS[way])
    elif way == "paced":
        await paced(producer.enqueue, work)
    else:
        await singles(producer.enqueue, work)
    print(count / (time.perf_counter() - begin), flush=True)
    await call(producer.close)


def main(argv: list[str]) -> int:
    """Run the role."""
    adapter = importlib.import_module(f"bench.peers.{argv[0]}")
    if argv[1] == "work":
        adapter.work(url(), int(argv[2]), recorder())
    else:
        asyncio.run(produce(adapter, argv[2], int(argv[3])))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
