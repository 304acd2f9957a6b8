"""Request bodies that are files: read as a stream, with what the sender announces about them."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from aiohttp import ClientPayloadError, HttpVersion11, StreamReader, hdrs, web

from broker.errors import BadMessage
from broker.files.meter import Expected, too_large
from broker.files.objects import CHUNK

IDLE_S = 60.0
"""A sender that is silent for so long has left; and one of whom no more than drops come: each holds a file open."""
LEAST = 4096
"""Bytes that have to come while so long is waited for them."""
T = TypeVar("T")
_HASH = re.compile(r"(?:blake3:)?([0-9a-f]{64})", re.IGNORECASE)


async def ask_later(_: web.Request) -> None:
    """For a route whose handler calls :func:`go_on` itself: nothing is said to who asks before sending."""


async def go_on(request: web.Request) -> None:
    """Have a sender that asked first (``Expect: 100-continue``) send its file; others do so anyway."""
    if request.headers.get(hdrs.EXPECT, "").strip().lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # that was none of the answer's


def expected_file(request: web.Request, limit: int) -> Expected:
    """What the headers say of the body, refused here when it is over ``limit`` bytes, before anything is read."""
    if request.headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        raise BadMessage("Send the file as it is, without Content-Encoding.")
    size = request.content_length
    if size is not None and size > limit:
        raise too_large(limit)
    announced = request.headers.get("X-Content-Blake3")
    return Expected(limit=limit, size=size, hash=parse_hash(announced) if announced else None)


def parse_hash(text: str) -> str:
    """``blake3:<hex>`` of a hash with or without its prefix; raises ``BadMessage``."""
    found = _HASH.fullmatch(text.strip())
    if found is None:
        raise BadMessage("A blake3 hash has 64 hexadecimal digits.")
    return f"blake3:{found[1].lower()}"


class Pace:
    """Waits for what is sent, and not for ever. What the store takes its time for is not counted."""

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self._waited_s = 0.0
        self._had = content.total_bytes

    async def next(self, step: Awaitable[T]) -> T:
        """What a reading brings; raises ``BadMessage`` when too little has come for too long."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(IDLE_S - self._waited_s):
                return await step
        except TimeoutError as error:
            raise BadMessage(f"Nearly nothing arrived for {IDLE_S:g} seconds; send the file again.") from error
        finally:
            self._waited_s += time.monotonic() - began
            if self._content.total_bytes - self._had >= LEAST:
                self._waited_s, self._had = 0.0, self._content.total_bytes


async def body(content: StreamReader) -> AsyncIterator[bytes]:
    """The body in pieces of about a megabyte; raises ``BadMessage`` when the sender stops or leaves."""
    pieces: list[bytes] = []
    held, pace = 0, Pace(content)
    while piece := await _next_piece(content, pace):
        pieces.append(piece)
        held += len(piece)
        if held >= CHUNK:
            yield b"".join(pieces)
            pieces, held = [], 0
    if pieces:
        yield b"".join(pieces)


async def _next_piece(content: StreamReader, pace: Pace) -> bytes:
    if content.at_eof():
        return b""
    try:
        return await pace.next(content.readany())
    except (ClientPayloadError, web.RequestPayloadError, ConnectionError) as error:
        raise BadMessage("The body ended early; send the file again.") from error
