"""Objects in S3, Google Cloud Storage or Azure (the one module that knows obstore).

Bytes stream both ways. A big object goes in parts, which are taken back when its stream fails.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store, from_url

from broker.errors import ConfigurationError, EmqError, NotFound, StorageFull, Unavailable
from broker.files import objects
from broker.files.objects import CHUNK, SMALL, Decide, Head, Method

PART = 5 << 20
"""Size of one part of a multipart upload; S3 takes no smaller ones, and at most 10,000."""
CHECK_S = 15.0
GIVE_UP_S = 10.0
"""How long a store may take to put away what has come of an upload that was given up."""
_FULL = ("os error 28", "os error 122", "StorageFull", "QuotaExceeded")
_REFUSED = "status code: 4"
_OPTIONS = frozenset({"endpoint", "region"})
_CLIENT = {"connect_timeout": "5s", "read_timeout": "30s", "timeout": "12h"}
_RETRY: Mapping[str, Any] = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}


def _meaning(error: Exception) -> EmqError | None:
    if any(sign in str(error) for sign in _FULL):
        return StorageFull("The object store is full; its operator has to make room.", reason="storage_full")
    return None


translated = partial(objects.translated, (BaseError, OSError), _meaning)


class CloudObjects:
    """Objects below a prefix of a bucket."""

    is_local = False

    def __init__(self, backend: ObjectStore) -> None:
        self._backend = backend

    async def check(self) -> None:
        """See that a cloud lets us in; raises ``ConfigurationError``, ``Unavailable`` when it does not answer."""
        try:
            async with asyncio.timeout(CHECK_S):
                await obstore.list_with_delimiter_async(self._backend)
        except (BaseError, OSError, TimeoutError) as error:
            if _REFUSED in str(error):
                reason = str(error).splitlines()[0][:300]
                raise ConfigurationError(f"The store of EMQ_STORE_URL cannot be used: {reason}") from error
            raise Unavailable("The object store does not answer.") from error

    async def write(self, key: str, chunks: AsyncIterator[bytes], headers: Callable[[], Mapping[str, str]]) -> None:
        """Stream into a new object, which appears when the stream has ended well; one piece goes without parts."""
        first = await anext(chunks, b"")
        second = await anext(chunks, None)
        attributes = dict(headers())
        with translated(writing=True):
            if second is None:
                await obstore.put_async(self._backend, key, first, attributes=attributes)
            else:
                await self._stream(key, _Feed(first, second, chunks), attributes)

    async def _stream(self, key: str, feed: _Feed, attributes: dict[str, str]) -> None:
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

    async def put(
        self, key: str, data: str, content: bytes, headers: Mapping[str, str], decide: Decide
    ) -> bytes | None:
        """Put a small object, and then what names it."""
        try:
            with translated(writing=True):
                await obstore.put_async(self._backend, data, content, attributes=dict(headers))
        except BaseException:
            await self.delete([data])
            raise
        return await self.name(key, data, decide)

    async def name(self, key: str, data: str, decide: Decide) -> bytes | None:
        """Put what names an object that has come."""
        before: bytes | None = None
        try:
            with suppress(NotFound):
                before = await self.read_small(key, SMALL)
            document = decide(before)
            if document is not None:
                await self.write_small(key, document)
        except BaseException:
            await self.delete([data])
            raise
        if document is None:
            await self.delete([data])
        return before

    async def write_small(self, key: str, content: bytes) -> None:
        """Write an object in one step."""
        with translated(writing=True):
            await obstore.put_async(self._backend, key, content)

    async def read_small(self, key: str, limit: int) -> bytes:
        """A whole object; ``NotFound`` also for one over ``limit`` bytes."""
        with translated():
            found = await obstore.get_async(self._backend, key)
            if found.meta["size"] > limit:
                raise NotFound("There is no such file.")
            return bytes(await found.bytes_async())

    async def read(self, key: str, start: int, end: int) -> AsyncGenerator[bytes, None]:
        """Stream bytes ``start`` to ``end`` (exclusive)."""
        with translated():
            found = await obstore.get_async(self._backend, key, options={"range": (start, end)})
            async for chunk in found.stream(min_chunk_size=CHUNK // 4):
                yield bytes(chunk)

    async def head(self, key: str, length: int) -> Head:
        """The first bytes, and what the store says of the rest."""
        with translated():
            meta = await obstore.head_async(self._backend, key)
            size = meta["size"]
            if not size:
                return Head(b"", 0, None)
            found = await obstore.get_async(self._backend, key, options={"range": (0, min(length, size))})
            return Head(bytes(await found.bytes_async()), size, found.attributes.get("Content-Type"))

    async def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error."""
        for key in keys:
            with suppress(NotFound), translated():
                await obstore.delete_async(self._backend, key)

    async def remove(self, parent: str) -> int:
        """Remove everything below a folder; answers how many objects there were."""
        removed = 0
        async for batch in self.below(parent):
            await self.delete([key for key, _ in batch])
            removed += len(batch)
        return removed

    async def sweep(self, below: str, before: datetime) -> None:
        """Nothing: what is half written are parts of unfinished uploads, which a bucket's own rules end."""

    async def below(self, parent: str) -> AsyncGenerator[list[tuple[str, datetime]], None]:
        """Keys of everything below a folder, each with the time of its last change, in batches."""
        with translated():
            async for batch in obstore.list(self._backend, f"{parent}/"):
                yield [(str(entry["path"]), entry["last_modified"]) for entry in batch]

    async def folders(self, parent: str, after: str, most: int) -> list[str]:
        """The keys of the folders directly below ``parent`` (empty: the root), in order: the first behind ``after``."""
        with translated():
            listing = await obstore.list_with_delimiter_async(self._backend, parent or None)
        names = (str(name).rstrip("/") for name in listing["common_prefixes"])
        return heapq.nsmallest(most, (name for name in names if name > after))

    @property
    def signs(self) -> frozenset[str]:
        """The methods for which the store makes URLs. (Azure's PUT needs a header that uploads do not have.)"""
        if isinstance(self._backend, S3Store | GCSStore):
            return frozenset({"GET", "PUT"})
        return frozenset({"GET"}) if isinstance(self._backend, AzureStore) else frozenset()

    async def signed_url(self, method: Method, key: str, age_s: int) -> str | None:
        """A URL by which whoever has it may GET or PUT this one object for ``age_s`` seconds."""
        if method not in self.signs:
            return None
        with translated():
            backend = cast(S3Store, self._backend)
            return str(await obstore.sign_async(backend, method, key, timedelta(seconds=age_s)))


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


def open_cloud(url: str, area: str) -> CloudObjects:
    """The objects of one ``area`` in a cloud; raises ``ConfigurationError``."""
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
        backend = from_url(
            plain, config=cast(Any, options), client_options=cast(Any, client), retry_config=cast(Any, _RETRY)
        )
    except (BaseError, ValueError, OSError) as error:
        raise ConfigurationError(f"EMQ_STORE_URL cannot be used: {str(error).splitlines()[0][:300]}") from error
    return CloudObjects(backend)
