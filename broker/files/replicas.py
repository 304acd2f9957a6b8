"""Files of replicas that have no store in common: what is not on this disk is read from the replica that has it.

A replica asks the others with a URL that both sides' secret signs, for a minute and for one file.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import aiohttp
from aiohttp import hdrs

from broker.errors import NotFound, Unavailable
from broker.files.objects import CHUNK, Objects
from broker.files.store import FileStore, StoredFile, described
from broker.files.urls import UrlSigner

log = logging.getLogger(__name__)

FILE_HEADER = "X-EMQ-File"
"""Carries a file's description between replicas."""
ASK_S = 10.0
SIGNED_S = 60


class Replicas:
    """The other replicas. ``urls`` gives those that live, ``own_url`` is this one's; ``close`` at the end."""

    def __init__(self, urls: Callable[[], Awaitable[Sequence[str]]], own_url: str | None, signer: UrlSigner) -> None:
        self._urls = urls
        self.own_url = own_url
        self._signer = signer
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    async def others(self) -> list[str]:
        """Where the others are."""
        return [url for url in await self._urls() if url != self.own_url]

    def ask(self, replica: str, method: str, path: str, **options: Any) -> Any:
        """A request to another replica, as a context manager."""
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=3, sock_read=30)
            # As many as are wanted: a file takes as long as its reader does, and a few slow ones must not stop all.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(timeout=timeout, connector=connector)
        signed = self._signer.sign(path, "", SIGNED_S, method=method)
        return self._session.request(method, f"{replica.rstrip('/')}{signed}", allow_redirects=False, **options)


class ReplicatedStore(FileStore):
    """The store on this replica's disk, and behind it those of the others. ``area`` names it between replicas."""

    def __init__(self, objects: Objects, replicas: Replicas, area: str, keep_unused_s: float = 0) -> None:
        super().__init__(objects, keep_unused_s=keep_unused_s)
        self._replicas = replicas
        self._area = area

    @property
    def replica(self) -> str | None:
        """Where other replicas find what is stored here."""
        return self._replicas.own_url

    async def is_away(self, replica: str) -> bool:
        """Whether the replica that stored a file is gone, for now or for ever."""
        return replica != self.replica and replica not in await self._replicas.others()

    async def stat_here(self, key: str) -> StoredFile:
        """What is known of a file on this replica's own disk; raises ``NotFound``."""
        return await super().stat(key)

    async def stat(self, key: str) -> StoredFile:
        """What is known of a file, here or elsewhere. Raises ``NotFound``, ``Unavailable`` when one does not answer."""
        try:
            return await super().stat(key)
        except NotFound:
            file = await self._elsewhere(key)
            if file is None:
                raise
            return file

    async def _elsewhere(self, key: str) -> StoredFile | None:
        others = await self._replicas.others()
        answers = await asyncio.gather(*(self._stat_at(replica, key) for replica in others), return_exceptions=True)
        silent = False
        for answer in answers:
            if isinstance(answer, StoredFile):
                return answer
            if isinstance(answer, Exception):
                log.warning("another replica does not answer: %s", answer or type(answer).__name__)
                silent = True
        if silent:
            raise Unavailable("A replica that may hold this file does not answer; try again.")
        return None

    async def _stat_at(self, replica: str, key: str) -> StoredFile | None:
        async with asyncio.timeout(ASK_S), self._replicas.ask(replica, "HEAD", self._path(key)) as answer:
            if answer.status == 404:
                return None
            answer.raise_for_status()
            file = described(key, json.loads(answer.headers[FILE_HEADER]))
            return replace(file, replica=replica) if file is not None else None

    async def read(self, file: StoredFile, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        """Stream bytes ``start`` to ``end`` (exclusive), from wherever they are; goes on after a broken connection."""
        if file.replica is None:
            async for chunk in super().read(file, start, end):
                yield chunk
            return
        at, stop = start, file.size if end is None else min(end, file.size)
        tries = 0
        while at < stop:
            try:
                async for chunk in self._read_at(file, at, stop):
                    at, tries = at + len(chunk), 0
                    yield chunk
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                tries += 1
                if tries > 2:
                    raise Unavailable("The replica that holds this file does not answer; try again.") from error

    async def _read_at(self, file: StoredFile, start: int, stop: int) -> AsyncGenerator[bytes, None]:
        assert file.replica is not None
        headers = {hdrs.RANGE: f"bytes={start}-{stop - 1}", hdrs.IF_RANGE: file.etag}
        async with self._replicas.ask(file.replica, "GET", self._path(file.key), headers=headers) as answer:
            if answer.status != 206:
                raise NotFound("There is no such file (any more).")
            async for chunk in answer.content.iter_chunked(CHUNK // 4):
                yield chunk

    async def delete_everywhere(self, folder: str) -> None:
        """Remove a folder on every replica that answers; the others' own cleaning comes later."""
        await self.delete_folder(folder)
        for replica in await self._replicas.others():
            with suppress(aiohttp.ClientError, TimeoutError, ConnectionError):
                async with asyncio.timeout(ASK_S), self._replicas.ask(replica, "DELETE", self._path(folder)):
                    pass

    def _path(self, key: str) -> str:
        return f"/internal/files/{self._area}/{key}"
