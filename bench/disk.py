"""Disk: what a broker's CPU spends on each file in a store on its own disk, without HTTP."""

from __future__ import annotations

import argparse
import asyncio
import resource
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from broker.files.meter import Expected
from broker.files.opening import open_store
from broker.files.store import FileStore

PNG = b"\x89PNG\r\n\x1a\n" + bytes(2000)
MB = 1 << 20
LARGE_MB = 64


def cpu_s() -> float:
    """Processor time of this process, all its threads."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def pieces(piece: bytes, count: int) -> AsyncIterator[bytes]:
    """A stream."""
    for _ in range(count):
        yield piece


class Disk:
    """A store with the outputs of some jobs."""

    def __init__(self, store: FileStore, jobs: int) -> None:
        self._store = store
        self._jobs = [f"tenant/job-{number:06}" for number in range(jobs)]

    async def put(self) -> None:
        """Store a small file a job."""
        for job in self._jobs:
            await self._store.put(f"{job}/1", "0", pieces(PNG, 1), label="x.png", expected=Expected(MB, size=len(PNG)))

    async def get(self) -> None:
        """Read each."""
        for job in self._jobs:
            await self._read(f"{job}/1/0")

    async def look(self) -> None:
        """Ask for the age of each, as cleaning does."""
        for job in self._jobs:
            await self._store.last_modified(job)

    async def remove(self) -> None:
        """Remove each job's folder."""
        for job in self._jobs:
            await self._store.delete_folder(job)

    async def put_large(self) -> None:
        """Store a large one."""
        stream = pieces(bytes(MB), LARGE_MB)
        await self._store.put("tenant/large/1", "0", stream, label="x", expected=Expected(MB * LARGE_MB))

    async def get_large(self) -> None:
        """Read it."""
        await self._read("tenant/large/1/0")

    async def _read(self, key: str) -> None:
        async for _ in self._store.read(await self._store.stat(key)):
            pass


async def _timed(what: str, work: Callable[[], Awaitable[None]], count: int) -> None:
    cpu, wall = cpu_s(), time.perf_counter()
    await work()
    cpu, wall = (cpu_s() - cpu) / count * 1e6, (time.perf_counter() - wall) / count * 1e6
    print(f"  {what:36} {cpu:8.0f} µs of CPU  {wall:8.0f} µs")


async def _run(below: Path, jobs: int) -> None:
    disk = Disk(open_store(below, "outputs"), jobs)
    await _timed("a small file is stored", disk.put, jobs)
    await _timed("a small file is found and read", disk.get, jobs)
    await _timed("a job's files are looked at", disk.look, jobs)
    await _timed("a job's files are removed", disk.remove, jobs)
    await _timed("a MB of a large file is stored", disk.put_large, LARGE_MB)
    await _timed("a MB of a large file is read", disk.get_large, LARGE_MB)


def main(argv: list[str]) -> int:
    """Print what each step costs."""
    parser = argparse.ArgumentParser(prog="python -m bench disk", description=__doc__)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--folder", type=Path, help="on which disk (default: that of temporary files)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        asyncio.run(_run(Path(folder), args.jobs))
    return 0
