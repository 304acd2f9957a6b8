"""The object store: files that jobs need and leave, behind one module (the only one that imports obstore).

A file is two objects: its bytes under a random name and, in the same folder, a small JSON document under the file's key
that names them with size, hash, content type and label. Writing the document is the one step that makes a file appear
or replaces it, so nobody ever sees half a file, on a local disk as in a bucket. Bytes stream both ways; nothing is held
whole in memory.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import obstore
from blake3 import blake3
from obstore.exceptions import BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from broker.errors import Conflict, NotFound, PayloadTooLarge, StorageFull, Unavailable
from broker.files import types
from broker.files.names import display_name

CHUNK = 1 << 20
PART = 5 << 20
"""Size of one part of a multipart upload; S3 takes no smaller ones."""
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_DOCUMENT_LIMIT = 8192
_FULL = ("os error 28", "os error 122", "StorageFull", "QuotaExceeded")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What the store knows of a file. ``hash`` is ``blake3:<hex>``, ``size`` in bytes, ``label`` only for people."""

    key: str
    data: str
    size: int
    hash: str
    content_type: str
    label: str

    @property
    def etag(self) -> str:
        """A strong entity tag: equal bytes, equal tag."""
        return f'"{self.hash.removeprefix("blake3:")}"'


@dataclass(frozen=True, slots=True)
class Expected:
    """What the sender says of a file; ``None`` where it says nothing. ``limit`` is the most bytes that are taken."""

    limit: int
    size: int | None = None
    hash: str | None = None


class FileStore:
    """Files under keys of plain segments (``[A-Za-z0-9_.-]``, no leading dot)."""

    def __init__(self, backend: ObjectStore, root: Path | None = None) -> None:
        self._backend = backend
        self._root = root

    async def put(
        self,
        folder: str,
        name: str | None,
        chunks: AsyncIterator[bytes],
        *,
        label: str,
        expected: Expected,
        before_commit: Callable[[], Awaitable[object]] | None = None,
    ) -> tuple[StoredFile, bool]:
        """Store a stream as ``folder/name`` (``None``: named by its hash), replacing what is there in one step.

        Answers the file and whether it is new; equal bytes already there stay. ``before_commit`` runs when all bytes
        have come; what it raises throws them away. Errors: ``PayloadTooLarge``, ``Conflict`` (``reason``
        ``hash_mismatch`` or ``size_mismatch``), ``StorageFull``, ``Unavailable``.
        """
        data = f"{_checked(folder)}/~{secrets.token_hex(12)}"
        meter = _Meter(chunks, expected)
        await self._write(data, meter)
        unused = [data]
        try:
            if before_commit is not None:
                await before_commit()
            key = _checked(f"{folder}/{name or meter.hash.removeprefix('blake3:')}")
            old = await self._document(key)
            if old is not None and old.hash == meter.hash:
                return old, False
            file = StoredFile(key, data, meter.size, meter.hash, types.sniff(meter.head), display_name(label))
            await self._write_document(file)
            unused = [old.data] if old else []
            return file, True
        finally:
            await self._delete(unused)

    async def stat(self, key: str) -> StoredFile:
        """What is known of a file; raises ``NotFound``."""
        file = await self._document(_checked(key)) if is_key(key) else None
        if file is None:
            raise NotFound("There is no such file.")
        return file

    async def read(self, file: StoredFile, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Stream bytes ``start`` to ``end`` (exclusive); raises ``NotFound`` when they were deleted meanwhile."""
        stop = file.size if end is None else min(end, file.size)
        if start >= stop:
            return
        self._no_links(file.data)
        with _translated():
            found = await obstore.get_async(self._backend, file.data, options={"range": (start, stop)})
            async for chunk in found.stream(min_chunk_size=CHUNK // 4):
                yield bytes(chunk)

    async def delete(self, key: str) -> None:
        """Remove a file; one that is not there is no error."""
        file = await self._document(_checked(key))
        if file is not None:
            await self._delete([key, file.data])

    async def delete_folder(self, folder: str) -> int:
        """Remove everything below ``folder``; answers how many objects there were."""
        removed = 0
        with _translated():
            async for batch in obstore.list(self._backend, f"{_checked(folder)}/"):
                keys = [str(entry["path"]) for entry in batch]
                await self._delete(keys)
                removed += len(keys)
        return removed

    async def folders(self, parent: str = "") -> list[str]:
        """The keys of the folders directly below ``parent`` (empty: the root), in order."""
        with _translated():
            listing = await obstore.list_with_delimiter_async(self._backend, parent or None)
            return sorted(str(name).rstrip("/") for name in listing["common_prefixes"])

    async def last_modified(self, folder: str) -> datetime | None:
        """When something below ``folder`` was last written; ``None`` when it is empty."""
        newest: datetime | None = None
        with _translated():
            async for batch in obstore.list(self._backend, f"{_checked(folder)}/"):
                times = [entry["last_modified"] for entry in batch]
                newest = max([*times, *([newest] if newest else [])], default=None)
        return newest

    async def _write(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Stream into a new object, which appears when the stream has ended well; one piece goes without parts."""
        first = await anext(chunks, b"")
        second = await anext(chunks, None)
        content = first if second is None else _chain(first, second, chunks)
        with _translated():
            await obstore.put_async(self._backend, key, content, chunk_size=PART, max_concurrency=2)

    async def _write_document(self, file: StoredFile) -> None:
        text = json.dumps({k: v for k, v in asdict(file).items() if k != "key"})
        with _translated():
            await obstore.put_async(self._backend, file.key, text.encode())

    async def _document(self, key: str) -> StoredFile | None:
        """Read a file's document; what is not one counts as missing (the folder may be anybody's)."""
        try:
            self._no_links(key)
            with _translated():
                found = await obstore.get_async(self._backend, key)
                raw = bytes(await found.bytes_async()) if found.meta["size"] <= _DOCUMENT_LIMIT else b""
            fields = json.loads(raw)
            file = StoredFile(key=key, **fields)
        except (NotFound, ValueError, TypeError):
            return None
        return (
            file
            if file.data.startswith(f"{key.rpartition('/')[0]}/~") and is_key(file.data.replace("~", "-"))
            else None
        )

    async def _delete(self, keys: list[str]) -> None:
        for key in keys:
            with suppress(NotFound), _translated():
                await obstore.delete_async(self._backend, key)

    def _no_links(self, key: str) -> None:
        """On a local disk a symbolic link is no file of ours."""
        if self._root is not None:
            path = self._root / key
            if path.resolve() != path:
                raise NotFound("There is no such file.")


class _Meter(AsyncIterator[bytes]):
    """Passes a stream through while it counts, hashes, keeps the first bytes, and checks at the end."""

    def __init__(self, chunks: AsyncIterator[bytes], expected: Expected) -> None:
        self._chunks = chunks
        self._expected = expected
        self._hasher = blake3()
        self.size = 0
        self.head = b""

    @property
    def hash(self) -> str:
        """``blake3:<hex>`` of what passed."""
        return f"blake3:{self._hasher.hexdigest()}"

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self._check()
            raise
        self.size += len(chunk)
        if self.size > self._expected.limit:
            raise too_large(self._expected.limit)
        self._hasher.update(chunk)
        if len(self.head) < types.HEAD_BYTES:
            self.head += chunk[: types.HEAD_BYTES - len(self.head)]
        return chunk

    def _check(self) -> None:
        expected = self._expected
        if expected.size is not None and expected.size != self.size:
            raise Conflict(
                f"{self.size} bytes arrived, {expected.size} were announced; send the file again.",
                reason="size_mismatch",
            )
        if expected.hash is not None and expected.hash != self.hash:
            raise Conflict(
                "The content has another hash than announced; send the file again.",
                reason="hash_mismatch",
                hash=self.hash,
            )


async def _chain(first: bytes, second: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    yield second
    async for chunk in rest:
        yield chunk


@contextmanager
def _translated() -> Iterator[None]:
    """Turns the library's errors into the project's."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound("There is no such file.") from error
    except (BaseError, OSError) as error:
        if any(sign in str(error) for sign in _FULL):
            raise StorageFull(
                "The broker's disk is full; its operator has to make room.", reason="storage_full"
            ) from error
        raise Unavailable("The object store does not answer; try again.") from error


def too_large(limit: int) -> PayloadTooLarge:
    """The refusal of a file over ``limit`` bytes."""
    return PayloadTooLarge(f"The file is larger than the limit of {limit} bytes.", max_bytes=limit)


def is_key(key: str) -> bool:
    """Whether every segment of ``key`` is plain."""
    return all(_SEGMENT.fullmatch(segment) for segment in key.split("/"))


def _checked(key: str) -> str:
    if not is_key(key):
        raise NotFound("There is no such file.")
    return key


def open_store(data: Path, area: str, url: str | None = None) -> FileStore:
    """The store for one ``area`` (a path of plain segments) below the data folder's ``objects``, or below ``url``.

    ``url`` is one that obstore takes (``s3://bucket/prefix``, ``gs://…``, ``az://…``; credentials: environment).
    """
    if url:
        return FileStore(from_url(f"{url.rstrip('/')}/{_checked(area)}"))
    root = (data / "objects" / _checked(area)).resolve()
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return FileStore(LocalStore(root, automatic_cleanup=True), root)
