"""The object store: files that jobs need and leave, behind one module.

A file is two objects: its bytes under a random name and, in the same folder, a small JSON document under the file's key
that names them with size, hash, content type and label. Writing the document is the one step that makes a file appear
or replaces it, so nobody ever sees half a file, on a local disk as in a bucket. Bytes stream both ways; nothing is held
whole in memory.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import MISSING, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from broker.errors import EmqError, NotFound
from broker.files import types
from broker.files.meter import Expected, Meter
from broker.files.names import content_disposition, display_name
from broker.files.objects import SMALL, Objects

log = logging.getLogger(__name__)

_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_DOCUMENT_LIMIT = 8192
_NOTED = 100_000
DIRECT_FROM, DIRECT_TO = 8 << 20, 5_000_000_000
"""Sizes that are sent to a cloud directly: smaller ones are faster through the broker, larger ones need parts."""
URL_AGE_S = 3600
"""How long a URL of the store itself is good for."""
USED = ".used"
"""Ending of the empty object beside a file's document that tells when the file was last asked for."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """What the store knows of a file. ``hash`` is ``blake3:<hex>``, ``size`` in bytes, ``label`` only for people.

    ``promised``: its sender was told to bring it to the store itself, and nobody has looked at it since. ``direct``: a
    cloud serves it with the right type, so a reader may be sent there. ``replica``: the URL of the one that has it, if
    it is not here.
    """

    key: str
    data: str
    size: int
    hash: str
    content_type: str
    label: str
    promised: bool = False
    direct: bool = False
    replica: str | None = None

    @property
    def etag(self) -> str:
        """A strong entity tag: equal bytes, equal tag."""
        return f'"{self.hash.removeprefix("blake3:")}"'

    @property
    def headers(self) -> dict[str, str]:
        """What a browser has to know of it: only safe types are shown, everything else is a download."""
        disposition = types.disposition(self.content_type)
        return {
            "Content-Type": types.served_type(self.content_type),
            "Content-Disposition": content_disposition(disposition, self.label),
        }

    def document(self) -> bytes:
        """The JSON that lies under its key."""
        kept = {f.name: getattr(self, f.name) for f in fields(self) if f.name in _FIELDS}
        return json.dumps({name: value for name, value in kept.items() if value is not False}).encode()


_FIELDS = {f.name: f.default is MISSING for f in fields(StoredFile) if f.name not in ("key", "replica")}
"""What a document has; whether it must."""


class FileStore:
    """Files under keys of plain segments (``[A-Za-z0-9_.-]``, no leading dot).

    ``presign`` has ``GET`` and ``PUT`` where files may go straight between a cloud and who reads or sends them.
    ``keep_unused_s``: what was neither stored nor asked for in this time may go (0: the use of files is not noted).
    """

    def __init__(self, objects: Objects, presign: Iterable[str] = (), keep_unused_s: float = 0) -> None:
        self._objects = objects
        self._presign = frozenset(presign) & objects.signs
        self.keep_unused_s = keep_unused_s
        self._noted: dict[str, float] = {}
        """When this process last noted a file's use."""

    @property
    def replica(self) -> str | None:
        """Where other replicas find what is stored here; ``None`` where all have the same store."""
        return None

    async def is_away(self, replica: str) -> bool:
        """Whether the replica that stored a file is gone, for now or for ever."""
        return False

    async def check(self) -> None:
        """See that the store may be used; raises ``ConfigurationError``, ``Unavailable``."""
        await self._objects.check()

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
        data = _new_data(folder)
        meter = Meter(chunks, expected)
        shown = display_name(label)

        def described() -> StoredFile:
            key = checked(f"{folder}/{name or meter.hash.removeprefix('blake3:')}")
            direct = not self._objects.is_local
            return StoredFile(key, data, meter.size, meter.hash, types.sniff(meter.head), shown, direct=direct)

        content: bytes | None = None
        try:
            if expected.size is not None and expected.size <= SMALL:
                content = b"".join([chunk async for chunk in meter])
            else:
                await self._objects.write(data, meter, lambda: described().headers)
            if before_commit is not None:
                await before_commit()
            file = described()
        except BaseException:
            await self._objects.delete([data])
            raise
        return await self._placed(file, content)

    async def _placed(self, file: StoredFile, content: bytes | None) -> tuple[StoredFile, bool]:
        """Have a file appear whose bytes have come (``content``: are at hand); answers as :meth:`put` does."""

        def decide(document: bytes | None) -> bytes | None:
            return None if _stays(_read_document(file.key, document), file) else file.document()

        if content is None:
            before = await self._objects.name(file.key, file.data, decide)
        else:
            before = await self._objects.put(file.key, file.data, content, file.headers, decide)
        old = _read_document(file.key, before)
        if old is not None and _stays(old, file):
            await self._note_use(old.key)
            return old, False
        await self._objects.delete([old.data] if old else [])
        return file, True

    def takes_directly(self, expected: Expected) -> bool:
        """Whether a file so announced may be sent to the store itself."""
        known = expected.hash is not None and expected.size is not None
        return "PUT" in self._presign and known and DIRECT_FROM <= (expected.size or 0) <= DIRECT_TO

    async def promise(self, folder: str, name: str, *, label: str, expected: Expected) -> tuple[StoredFile, str | None]:
        """Have a file sent to the store itself: what will be there, and the URL to PUT it to.

        No URL when it is there already. Its type is guessed from the label until somebody reads it; the hash is the
        sender's word.
        """
        assert expected.hash is not None
        assert expected.size is not None
        data, shown = _new_data(folder), display_name(label)
        key = checked(f"{folder}/{name}")
        old = await self._document(key)
        if old is not None and old.hash == expected.hash and not old.promised:
            return old, None
        guess = types.guess(shown)
        file = StoredFile(key, data, expected.size, expected.hash, guess, shown, promised=True)
        url = await self._objects.signed_url("PUT", data, URL_AGE_S)
        await self._objects.write_small(key, file.document())
        await self._objects.delete([old.data] if old else [])
        return file, url

    async def stat(self, key: str) -> StoredFile:
        """What is known of a file; raises ``NotFound``."""
        file = await self._document(checked(key)) if is_key(key) else None
        if file is None:
            raise NotFound("There is no such file.")
        await self._note_use(key)
        return await self._seen(file) if file.promised else file

    async def _note_use(self, key: str) -> None:
        """Remember that a file was asked for; written down ten times in the time that it would be kept for it."""
        now, pause = time.monotonic(), self.keep_unused_s / 10
        if not pause or now - self._noted.get(key, -pause) < pause:
            return
        if len(self._noted) >= _NOTED:
            self._noted.clear()
        self._noted[key] = now
        try:
            await self._objects.write_small(key + USED, b"")
        except EmqError as error:  # it is no reason not to give the file
            log.warning("cannot note that a file is used: %s", error.message)

    async def _seen(self, file: StoredFile) -> StoredFile:
        """A promised file that has come, its type judged by its bytes; raises ``NotFound`` for one that has not."""
        head = await self._objects.head(file.data, types.HEAD_BYTES)
        if head.size != file.size:
            raise NotFound("There is no such file.")
        content_type = types.sniff(head.start)
        seen = replace(file, content_type=content_type, promised=False)
        plain = types.served_type(content_type) == types.OCTET_STREAM == head.content_type
        seen = replace(seen, direct=plain)
        await self._objects.write_small(seen.key, seen.document())
        return seen

    async def direct_url(self, file: StoredFile) -> str | None:
        """A URL of the store itself, where readers may be sent there."""
        if not (file.direct and "GET" in self._presign):
            return None
        return await self._objects.signed_url("GET", file.data, URL_AGE_S)

    async def read(self, file: StoredFile, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Stream bytes ``start`` to ``end`` (exclusive); raises ``NotFound`` when they were deleted meanwhile."""
        stop = file.size if end is None else min(end, file.size)
        if start < stop:
            async with aclosing(self._objects.read(file.data, start, stop)) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def delete(self, key: str) -> None:
        """Remove a file; one that is not there is no error."""
        file = await self._document(checked(key))
        if file is not None:
            await self._objects.delete([key, file.data])

    async def delete_unused(self, folder: str) -> int:
        """Remove the files of a folder that nobody has stored or asked for in ``keep_unused_s``; says how many.

        What has been there for so long and belongs to no file goes too: the rest of uploads whose broker was killed.
        """
        wanted: dict[str, datetime] = {}
        data: dict[str, datetime] = {}
        async for batch in self._objects.below(checked(folder)):
            for key, at in batch:
                name = key.removesuffix(USED)
                times = wanted if is_key(name) else data
                times[name] = max(at, times.get(name, at))
        limit = datetime.now(UTC) - timedelta(seconds=self.keep_unused_s)
        old = sorted(key for key, at in wanted.items() if at < limit)
        gone = [file for key in old if (file := await self._document(key))]
        await self._objects.delete([*old, *(file.data for file in gone), *(key + USED for key in old)])
        for file in gone:
            data.pop(file.data, None)
        if len(data) > len(wanted) - len(old):
            known = {file.data for key in wanted.keys() - set(old) if (file := await self._document(key))}
            await self._objects.delete([key for key, at in data.items() if at < limit and key not in known])
        await self._objects.sweep(folder, limit)
        return len(gone)

    async def delete_folder(self, folder: str) -> int:
        """Remove everything below ``folder``; answers how many objects there were."""
        return await self._objects.remove(checked(folder))

    async def delete_everywhere(self, folder: str) -> None:
        """Remove a folder wherever its files lie."""
        await self.delete_folder(folder)

    async def folders(self, parent: str = "", after: str = "", most: int = sys.maxsize) -> list[str]:
        """The keys of the folders directly below ``parent`` (empty: the root), in order: so many behind ``after``."""
        return [key for key in await self._objects.folders(parent, after, most) if is_key(key)]

    async def last_modified(self, folder: str) -> datetime | None:
        """When something below ``folder`` was last written; ``None`` when it is empty."""
        newest: datetime | None = None
        async for batch in self._objects.below(checked(folder)):
            newest = max([*(time for _, time in batch), *([newest] if newest else [])], default=None)
        return newest

    async def _document(self, key: str) -> StoredFile | None:
        """Read a file's document."""
        try:
            return _read_document(key, await self._objects.read_small(key, _DOCUMENT_LIMIT))
        except NotFound:
            return None


def _stays(old: StoredFile | None, file: StoredFile) -> bool:
    """Whether what is there needs no replacing."""
    return old is not None and old.hash == file.hash and not old.promised


def _read_document(key: str, document: bytes | None) -> StoredFile | None:
    """The file of a document; what is not one counts as missing (the folder may be anybody's)."""
    try:
        return described(key, json.loads(document)) if document and len(document) <= _DOCUMENT_LIMIT else None
    except ValueError:
        return None


def described(key: str, document: Any) -> StoredFile | None:
    """The file that a document describes; ``None`` for what is no document."""
    try:
        known = {name: document[name] for name, must in _FIELDS.items() if must or name in document}
        file = StoredFile(key=key, **known)
        mine = file.data.startswith(f"{key.rpartition('/')[0]}/~") and is_key(file.data.replace("~", "-"))
    except (TypeError, KeyError, AttributeError):
        return None
    return file if mine else None


def is_key(key: str) -> bool:
    """Whether every segment of ``key`` is plain."""
    return all(_SEGMENT.fullmatch(segment) for segment in key.split("/"))


def checked(key: str) -> str:
    """The key itself; raises ``NotFound`` for one that is not plain."""
    if not is_key(key):
        raise NotFound("There is no such file.")
    return key


def _new_data(folder: str) -> str:
    return f"{checked(folder)}/~{secrets.token_hex(12)}"
