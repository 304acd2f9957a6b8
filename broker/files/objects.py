"""Objects, whatever keeps them: a local folder, S3, Google Cloud Storage or Azure (the one module that knows obstore).

Bytes stream both ways. An object appears when all of it has come, also on a local disk; a big one goes to a cloud in
parts, which are taken back when its stream fails.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, LocalStore, ObjectStore, S3Store, from_url

from broker.errors import ConfigurationError, NotFound, StorageFull, Unavailable
from broker.files import folder

CHUNK = 1 << 20
PART = 5 << 20
"""Size of one part of a multipart upload; S3 takes no smaller ones, and at most 10,000."""
CHECK_S = 15.0
GIVE_UP_S = 10.0
"""How long a store may take to put away what has come of an upload that was given up."""
_FULL = ("os error 28", "os error 122", "[Errno 28]", "[Errno 122]", "StorageFull", "QuotaExceeded")
Method = Literal["GET", "PUT"]
_REFUSED = "status code: 4"
_OPTIONS = frozenset({"endpoint", "region"})
_CLIENT = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "12h"}
_RETRY: Mapping[str, Any] = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an object, its whole size, and the content type it was stored with."""

    start: bytes
    size: int
    content_type: str | None


class Objects:
    """Objects under keys. ``root`` is the folder of those on a local disk. Errors: ``NotFound``, ``Unavailable``."""

    def __init__(self, backend: ObjectStore, root: Path | None = None) -> None:
        self._backend = backend
        self._root = root

    @property
    def is_local(self) -> bool:
        """Whether the objects lie on a local disk."""
        return self._root is not None

    async def check(self) -> None:
        """See that a cloud lets us in; raises ``ConfigurationError``, ``Unavailable`` when it does not answer."""
        if self.is_local:
            return
        try:
            async with asyncio.timeout(CHECK_S):
                await obstore.list_with_delimiter_async(self._backend)
        except (BaseError, OSError, TimeoutError) as error:
            if _REFUSED in str(error):
                reason = str(error).splitlines()[0][:300]
                raise ConfigurationError(f"The store of EMQ_STORE_URL cannot be used: {reason}") from error
            raise Unavailable("The object store does not answer.") from error

    async def write(self, key: str, chunks: AsyncIterator[bytes], headers: Callable[[], Mapping[str, str]]) -> None:
        """Stream into a new object, which appears when the stream has ended well; one piece goes without parts.

        ``headers``, asked for once the first bytes are known, go with the object where a store keeps such. Errors: what
        ``chunks`` raises; ``StorageFull``.
        """
        first = await anext(chunks, b"")
        second = await anext(chunks, None)
        attributes = None if self.is_local else dict(headers())
        with _translated(writing=True):
            if second is None:
                await obstore.put_async(self._backend, key, first, attributes=attributes)
            else:
                await self._stream(key, _Feed(first, second, chunks), attributes)

    async def _stream(self, key: str, feed: _Feed, attributes: dict[str, str] | None) -> None:
        """Write in parts. A write that is dropped would leave its parts in a bucket, so it is ended and waited for."""
        writing = asyncio.ensure_future(
            obstore.put_async(self._backend, key, feed, attributes=attributes, chunk_size=PART, max_concurrency=2)
        )
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            feed.stop()
            await asyncio.wait([writing], timeout=GIVE_UP_S)
            if writing.done() and not writing.cancelled():
                writing.exception()
            raise

    def takes_whole(self, size: int | None) -> bool:
        """Whether an object of so many bytes is put in one go, by :meth:`replace`."""
        return self._root is not None and size is not None and size <= folder.LIMIT

    async def replace(
        self, key: str, data: str, content: bytes, decide: Callable[[bytes | None], bytes | None]
    ) -> None:
        """On a local disk, put a small object and what names it (see :func:`broker.files.folder.replace`)."""
        assert self._root is not None
        with _translated(writing=True):
            await asyncio.to_thread(folder.replace, str(self._root), key, data, content, decide)

    async def write_small(self, key: str, content: bytes) -> None:
        """Write an object in one step."""
        with _translated(writing=True):
            await obstore.put_async(self._backend, key, content)

    async def read_small(self, key: str, limit: int) -> bytes:
        """A whole object; ``NotFound`` also for one over ``limit`` bytes."""
        self._no_links(key)
        with _translated():
            found = await obstore.get_async(self._backend, key)
            if found.meta["size"] > limit:
                raise NotFound("There is no such file.")
            return bytes(await found.bytes_async())

    async def read(self, key: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Stream bytes ``start`` to ``end`` (exclusive)."""
        self._no_links(key)
        with _translated():
            found = await obstore.get_async(self._backend, key, options={"range": (start, end)})
            async for chunk in found.stream(min_chunk_size=CHUNK // 4):
                yield bytes(chunk)

    async def head(self, key: str, length: int) -> Head:
        """The first bytes, and what the store says of the rest."""
        self._no_links(key)
        with _translated():
            meta = await obstore.head_async(self._backend, key)
            size = meta["size"]
            if not size:
                return Head(b"", 0, None)
            found = await obstore.get_async(self._backend, key, options={"range": (0, min(length, size))})
            return Head(bytes(await found.bytes_async()), size, found.attributes.get("Content-Type"))

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        for key in keys:
            with suppress(NotFound), _translated():
                await obstore.delete_async(self._backend, key)

    async def sweep(self, below: str, before: datetime) -> None:
        """Remove what was half written before then: a broker that was killed leaves it, and no listing has it.

        (In a bucket those are parts of unfinished uploads, which its own rules end.)
        """
        if self._root is not None:
            await asyncio.to_thread(_sweep, self._root / below, before.timestamp())

    async def below(self, parent: str) -> AsyncGenerator[list[tuple[str, datetime]], None]:
        """Keys of everything below a folder, each with the time of its last change, in batches."""
        with _translated():
            async for batch in obstore.list(self._backend, f"{parent}/"):
                yield [(str(entry["path"]), entry["last_modified"]) for entry in batch]

    async def folders(self, parent: str) -> list[str]:
        """The keys of the folders directly below ``parent`` (empty: the root), in order."""
        with _translated():
            listing = await obstore.list_with_delimiter_async(self._backend, parent or None)
            return sorted(str(name).rstrip("/") for name in listing["common_prefixes"])

    @property
    def signs(self) -> frozenset[str]:
        """The methods for which the store makes URLs. (Azure's PUT needs a header that uploads do not have.)"""
        if isinstance(self._backend, S3Store | GCSStore):
            return frozenset({"GET", "PUT"})
        return frozenset({"GET"}) if isinstance(self._backend, AzureStore) else frozenset()

    async def signed_url(self, method: Method, key: str, age_s: int) -> str:
        """A URL by which whoever has it may GET or PUT this one object for ``age_s`` seconds."""
        assert method in self.signs
        with _translated():
            backend = cast(S3Store, self._backend)
            return str(await obstore.sign_async(backend, method, key, timedelta(seconds=age_s)))

    def _no_links(self, key: str) -> None:
        """On a local disk a symbolic link is no file of ours."""
        if self._root is not None:
            path = self._root / key
            if path.resolve() != path:
                raise NotFound("There is no such file.")


class _Feed(AsyncIterator[bytes]):
    """A stream whose reader can be told that nothing more will come."""

    def __init__(self, first: bytes, second: bytes, rest: AsyncIterator[bytes]) -> None:
        self._ready = [second, first]
        self._rest = rest
        self._next: asyncio.Future[bytes] | None = None
        self._stopped = False

    def stop(self) -> None:
        """End the stream with an error."""
        self._stopped = True
        if self._next is not None:
            self._next.cancel()

    async def __anext__(self) -> bytes:
        if self._stopped:
            raise OSError("the upload was given up")
        if self._ready:
            return self._ready.pop()
        self._next = asyncio.ensure_future(anext(self._rest, b""))
        try:
            chunk = await self._next
        except asyncio.CancelledError:
            raise OSError("the upload was given up") from None
        if not chunk:
            raise StopAsyncIteration
        return chunk


def _sweep(folder: Path, before: float) -> None:
    """Remove half-written files, which the library numbers with a ``#``, and folders that are empty then."""
    for parent, _, names in os.walk(folder, topdown=False):
        for path in (Path(parent, name) for name in names if "#" in name):
            with suppress(OSError):
                if path.lstat().st_mtime < before:
                    path.unlink()
        with suppress(OSError):
            Path(parent).rmdir()


@contextmanager
def _translated(*, writing: bool = False) -> Iterator[None]:
    """Turns the library's errors into the project's; what is not found while ``writing`` is the bucket."""
    try:
        yield
    except FileNotFoundError as error:
        if writing:
            raise Unavailable("The object store is not there; its operator has to look at it.") from error
        raise NotFound("There is no such file.") from error
    except (BaseError, OSError) as error:
        if any(sign in str(error) for sign in _FULL):
            raise StorageFull(
                "The broker's disk is full; its operator has to make room.", reason="storage_full"
            ) from error
        raise Unavailable("The object store does not answer; try again.") from error


def open_objects(data: Path, area: str, url: str | None = None) -> Objects:
    """The objects of one ``area`` (a path of plain segments) below the data folder's ``objects``, or below ``url``.

    ``url``: ``file:///folder``, ``s3://bucket/prefix?endpoint=…&region=…``, ``gs://…`` or ``az://…``; credentials come
    from the environment, as each cloud's own tools read them. Raises ``ConfigurationError``.
    """
    parts = urlsplit(url or "")
    if url and parts.scheme != "file":
        return Objects(_cloud(url, area))
    if parts.netloc not in ("", "localhost"):
        raise ConfigurationError("EMQ_STORE_URL: a folder is named as file:///path, with three slashes.")
    base = Path(unquote(parts.path)) if url else data / "objects"
    root = (base / area).resolve()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"Cannot make the folder of stored files {root}: {error}.") from error
    return Objects(LocalStore(root, automatic_cleanup=True), root)


def _cloud(url: str, area: str) -> ObjectStore:
    parts = urlsplit(url)
    if parts.scheme not in ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss"):
        raise ConfigurationError("EMQ_STORE_URL starts with file://, s3://, gs:// or az://.")
    options = dict(parse_qsl(parts.query))
    if parts.username or not options.keys() <= _OPTIONS:
        raise ConfigurationError(
            "EMQ_STORE_URL takes ?endpoint= and ?region= only; credentials come from the environment."
        )
    plain = urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{area}", "", ""))
    client = {**_CLIENT, "allow_http": options.get("endpoint", "").startswith("http://")}
    try:
        return from_url(
            plain, config=cast(Any, options), client_options=cast(Any, client), retry_config=cast(Any, _RETRY)
        )
    except (BaseError, ValueError, OSError) as error:
        raise ConfigurationError(f"EMQ_STORE_URL cannot be used: {str(error).splitlines()[0][:300]}") from error
