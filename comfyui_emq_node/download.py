"""One file on its way to this machine: goes on where a broken connection left off, and leaves nothing half done."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from . import media
from .input_cache import Held, InputCache, Part
from .queue import QueueAway

T = TypeVar("T")

CHUNK = 1 << 20
MAX_BYTES = 4 << 30
TRIES = 3
"""Failures in a row, without a byte between them, that are put up with."""
PATIENCE_S = 60.0
"""A broker that is away comes back: it is asked again for this long."""
WITHIN_S = 900.0
"""A server that dribbles must not keep a worker busy for ever."""
AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
ENDS = re.compile(r"bytes (\d+)-\d+/(\d+|\*)\Z")

Ask = Callable[[dict[str, str]], AbstractAsyncContextManager[aiohttp.ClientResponse]]
"""Sends the request with more headers."""


class Gone(Exception):
    """The file will not be had by asking again; the message says why."""


class _Later(Exception):
    """The server cannot answer now."""


TRANSIENT = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError, QueueAway, _Later)
"""What asking again may cure."""


@dataclass
class Answer:
    """A file that is here; ``validators`` are what the server knows it by, ``received`` the bytes it took."""

    held: Held
    validators: dict[str, str] = field(default_factory=dict)
    received: int = 0


@dataclass(frozen=True)
class Asked:
    """What is wanted: with ``known``, which is here, only if it is not what these ``headers`` say any more.

    A broker is ``trusted``: to name what it would send by its hash, and to say why it does not.
    """

    ask: Ask
    headers: dict[str, str]
    known: Held | None
    label: str
    trusted: bool = False


class _Download:
    """The state of a download between its connections."""

    def __init__(self, cache: InputCache, asked: Asked) -> None:
        self._cache, self._asked, self._label = cache, asked, asked.label
        self.part: Part | None = None
        self.received = 0
        self._head = b""
        self._tag = ""
        """By what the server must know the file again when the rest of it is asked for."""

    def headers(self) -> dict[str, str]:
        """What to ask for: all of it, if it has changed, or the rest."""
        if self.part is None or not self.part.size or not self._tag:
            return self._asked.headers
        return {"Range": f"bytes={self.part.size}-", "If-Range": self._tag}

    async def take(self, response: aiohttp.ClientResponse) -> Answer:
        """Take what a response brings; the file, when it is complete."""
        if response.status == 304 and self._asked.known is not None:
            return Answer(self._asked.known, self._headers_of(response) or self._asked.headers)
        await self._judge(response)
        here = _hash_in(response) if self._asked.trusted else ""
        if here and (held := await in_thread(self._cache.find, here, media.ending_of(self._label, b""))):
            response.close()
            return Answer(held)
        await self._write(response)
        assert self.part is not None
        ending = media.ending_of(self._label, self._head)
        held = await in_thread(self._cache.keep, self.part, ending)
        return Answer(held, self._headers_of(response), self.received)

    async def _judge(self, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status in AGAIN:
            raise _Later(f"HTTP {status}")
        if 300 <= status < 400:
            raise Gone("the server sends us on to another address; name the final one")
        if status not in (200, 206):
            reason = await _reason(response) if self._asked.trusted else None
            raise Gone(reason or f"the server answers HTTP {status}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Gone("the server sends it compressed although that was not asked for")
        if (response.content_length or 0) > MAX_BYTES:
            raise Gone(f"the file has {response.content_length} bytes; at most {MAX_BYTES} are taken")

    async def _write(self, response: aiohttp.ClientResponse) -> None:
        if self.part is None:
            self.part = await in_thread(self._cache.part)
        found = ENDS.match(response.headers.get("Content-Range", "")) if response.status == 206 else None
        if not found or int(found[1]) != self.part.size:
            if response.status == 206:
                self._tag = ""
                raise _Later("the server gave another part than the one asked for")
            await in_thread(self.part.restart)
            self._head = b""
        tag = response.headers.get("ETag", "")
        self._tag = tag if tag.startswith('"') else ""
        async for piece in response.content.iter_chunked(CHUNK):
            self._head = self._head or piece[:16]
            self.received += len(piece)
            if self.part.size + len(piece) > MAX_BYTES:
                raise Gone(f"the file has more than {MAX_BYTES} bytes")
            await in_thread(self.part.write, piece)

    @staticmethod
    def _headers_of(response: aiohttp.ClientResponse) -> dict[str, str]:
        """How to ask next time whether the file has changed."""
        names = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
        return {names[name]: response.headers[name] for name in names if name in response.headers}


async def download(cache: InputCache, asked: Asked) -> Answer:
    """Fetch a file, trying again where that may help.

    Raises:
        Gone: it cannot be had.
        OSError: it cannot be written here.
        One of :data:`TRANSIENT`: it could not be had now, for all the trying.
    """
    state = _Download(cache, asked)
    try:
        return await asyncio.wait_for(_persist(state, asked), WITHIN_S)
    finally:
        if state.part is not None:
            await in_thread(state.part.discard)


async def _persist(state: _Download, asked: Asked) -> Answer:
    loop = asyncio.get_running_loop()
    failures, until = 0, loop.time() + (PATIENCE_S if asked.trusted else 0)
    while True:
        before = state.received
        try:
            async with asked.ask(state.headers()) as response:
                return await state.take(response)
        except TRANSIENT:
            failures = 1 if state.received > before else failures + 1
            if failures >= TRIES and loop.time() >= until:
                raise
        await asyncio.sleep(min(5.0, 0.15 * 2**failures) * (0.5 + random.random()))  # noqa: S311


def _hash_in(response: aiohttp.ClientResponse) -> str:
    """The hash by which a broker names the whole file in its entity tag, if that is what this is."""
    tag = response.headers.get("ETag", "").strip('"')
    return tag if response.status == 200 and re.fullmatch("[0-9a-f]{64}", tag) else ""


async def _reason(response: aiohttp.ClientResponse) -> str | None:
    """Why a broker refuses, in its own words."""
    if response.content_type != "application/json":
        return None
    try:
        told: Any = await response.json()
    except ValueError:
        return None
    return str(told["error"])[:300].rstrip(".") if isinstance(told, dict) and "error" in told else None


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """Do something that waits for a disk beside the loop."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *args)
