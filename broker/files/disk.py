"""Objects on a local disk.

The library would take a thread of its own for every step of each, and with it memory that the C library keeps apart for
threads; a job's files are small, and most steps of one are one call here.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ParamSpec, TypeVar

from broker.errors import EmqError, NotFound, StorageFull, Unavailable
from broker.files import folder, objects
from broker.files.objects import CHUNK, Decide, Head, Method

P = ParamSpec("P")
T = TypeVar("T")
PIECE = CHUNK // 4
THREADS = 16
"""For calls that wait for the disk, which may be one of the network."""
_BATCH = 1000


def _meaning(error: Exception) -> EmqError | None:
    if isinstance(error, folder.Swept):
        return Unavailable("What had come of the file was cleaned away; send it again.", reason="swept")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("The broker's disk is full; its operator has to make room.", reason="storage_full")
    return None


translated = partial(objects.translated, (OSError,), _meaning)


class DiskObjects:
    """Objects below the folder ``root``."""

    is_local = True

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._threads = ThreadPoolExecutor(THREADS, "files")

    async def check(self) -> None:
        """Its folder was made when it was opened."""

    async def write(self, key: str, chunks: AsyncIterator[bytes], headers: Callable[[], Mapping[str, str]]) -> None:
        """Stream into a new object, which appears when the stream has ended well."""
        writing = folder.Writing(self._path(key))
        try:
            async for chunk in chunks:
                with translated(writing=True):
                    await self._do(writing.add, chunk)
            with translated(writing=True):
                await self._do(writing.end)
        except BaseException:
            await self._do(writing.give_up)
            raise

    async def name(self, key: str, data: str, decide: Decide) -> bytes | None:
        """Write what names an object that has come."""
        with translated(writing=True):
            return await self._do(folder.name, self._root, key, data, decide)

    async def put(
        self, key: str, data: str, content: bytes, headers: Mapping[str, str], decide: Decide
    ) -> bytes | None:
        """Write a small object and what names it."""
        with translated(writing=True):
            return await self._do(folder.name, self._root, key, data, decide, content)

    async def write_small(self, key: str, content: bytes) -> None:
        """Write an object in one step."""
        with translated(writing=True):
            await self._do(folder.write, self._path(key), content)

    async def read_small(self, key: str, limit: int) -> bytes:
        """A whole object; ``NotFound`` also for one over ``limit`` bytes, and for a link."""
        with translated():
            content = await self._do(folder.read, self._path(key))
        if content is None or len(content) > limit:
            raise NotFound("There is no such file.")
        return content

    async def read(self, key: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Stream bytes ``start`` to ``end`` (exclusive)."""
        reading = folder.Reading(self._path(key))
        try:
            with translated():
                while start < end and (piece := await self._do(reading.part, start, min(PIECE, end - start))):
                    start += len(piece)
                    yield piece
        finally:
            reading.close()

    async def head(self, key: str, length: int) -> Head:
        """The first bytes, and the size of the whole."""
        async with aclosing(self.read(key, 0, length)) as pieces:
            start = b"".join([piece async for piece in pieces])
        with translated():
            return Head(start, await self._do(folder.Reading(self._path(key)).size), None)

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        if keys:
            with translated():
                await self._do(folder.delete, self._root, keys)

    async def remove(self, parent: str) -> int:
        """Remove everything below a folder; answers how many objects there were."""
        with translated():
            return await self._do(folder.remove, self._root, parent)

    async def sweep(self, below: str, before: datetime) -> None:
        """Remove what was half written before then: a broker that was killed leaves it, and no listing has it."""
        await self._do(folder.sweep, self._root, below, before.timestamp())

    async def below(self, parent: str) -> AsyncGenerator[list[tuple[str, datetime]], None]:
        """Keys of everything below a folder, each with the time of its last change, in batches."""
        found = folder.below(self._root, parent)
        with translated():
            while batch := await self._do(lambda: list(islice(found, _BATCH))):
                yield batch

    async def folders(self, parent: str, after: str, most: int) -> list[str]:
        """The keys of the folders directly below ``parent`` (empty: the root), in order: the first behind ``after``."""
        found = (key for key in folder.folders(self._root, parent) if key > after)
        with translated():
            return await self._do(heapq.nsmallest, most, found)

    @property
    def signs(self) -> frozenset[str]:
        """No URLs of its own."""
        return frozenset()

    async def signed_url(self, method: Method, key: str, age_s: int) -> str | None:
        """None, as :attr:`signs` says."""

    def _path(self, key: str) -> str:
        return f"{self._root}/{key}"

    async def _do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it in a thread; who is cancelled waits for its end, so that nothing goes on behind what comes next."""
        doing = asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(doing)
        except asyncio.CancelledError:
            await asyncio.wait([doing])
            if not doing.cancelled():
                doing.exception()
            raise
