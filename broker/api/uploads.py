"""Request bodies that are files: read as a stream, with what the sender announces about them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

from aiohttp import ClientPayloadError, HttpVersion11, StreamReader, hdrs, web

from broker.errors import BadMessage
from broker.files.meter import Expected, too_large
from broker.files.objects import CHUNK

IDLE_S = 60.0
"""A sender that is silent for so long has left."""
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


async def body(content: StreamReader) -> AsyncIterator[bytes]:
    """The body in pieces of about a megabyte; raises ``BadMessage`` when the sender stops or leaves."""
    pieces: list[bytes] = []
    held = 0
    while piece := await _next_piece(content):
        pieces.append(piece)
        held += len(piece)
        if held >= CHUNK:
            yield b"".join(pieces)
            pieces, held = [], 0
    if pieces:
        yield b"".join(pieces)


async def _next_piece(content: StreamReader) -> bytes:
    if content.at_eof():
        return b""
    try:
        async with asyncio.timeout(IDLE_S):
            return await content.readany()
    except TimeoutError as error:
        raise BadMessage(f"Nothing arrived for {IDLE_S:g} seconds; send the file again.") from error
    except (ClientPayloadError, web.RequestPayloadError, ConnectionError) as error:
        raise BadMessage("The body ended early; send the file again.") from error
