"""The workflow in a picture that ComfyUI saved: PNG text chunks, or a WebP's EXIF.

Strict and bounded: lengths and checksums are compared, nothing but text is looked at, no pixel is decoded.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from broker.errors import BadMessage
from broker.jobs import strict

PNG = b"\x89PNG\r\n\x1a\n"
KEYWORDS = (b"prompt", b"workflow")
MAX_CHUNKS = 100_000
MAX_ENTRIES = 256
_ASCII = 2


def is_picture(data: bytes) -> bool:
    """Whether these bytes begin like a PNG or WebP."""
    return data.startswith(PNG) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def payload_of(data: bytes, limit: int) -> dict[str, Any]:
    """``prompt`` and ``workflow`` of a picture, each of at most ``limit`` bytes; raises ``BadMessage``."""
    texts: dict[str, Any] = {}
    for keyword, text in _png(data, limit) if data.startswith(PNG) else _webp(data):
        if len(text) > limit:
            raise BadMessage(f"The picture's {keyword} has more than {limit} bytes.")
        if keyword in texts:
            raise BadMessage(f"The picture has two texts named {keyword}.")
        # ComfyUI writes what its nodes say of themselves, and some of them say NaN.
        texts[keyword] = strict.parse(text, nan_is_null=True)
    if not texts:
        raise BadMessage("The picture carries no workflow; ComfyUI's SaveImage puts one in, unless told not to.")
    return texts


def _png(data: bytes, limit: int) -> Iterator[tuple[str, bytes]]:
    at = len(PNG)
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            raise BadMessage("The PNG ends early.")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise BadMessage("The PNG ends early.")
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            if zlib.crc32(data[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
                raise BadMessage("The PNG is damaged: a checksum is wrong.")
            keyword, zero, rest = data[at + 8 : end - 4].partition(b"\0")
            if zero and keyword in KEYWORDS:
                yield keyword.decode(), _text(kind, rest, limit)
        if kind == b"IEND":
            return
        at = end
    raise BadMessage(f"The PNG has more than {MAX_CHUNKS} chunks.")


def _text(kind: bytes, rest: bytes, limit: int) -> bytes:
    """A chunk's text as UTF-8, from what follows the keyword."""
    if kind == b"tEXt":
        return rest.decode("latin-1").encode()
    if kind == b"zTXt":
        return _inflate(rest[1:], limit).decode("latin-1").encode()
    packed = rest[:1] == b"\1"
    parts = rest[2:].split(b"\0", 2)
    if len(parts) != 3:
        raise BadMessage("The PNG has a text without its fields.")
    return _inflate(parts[2], limit) if packed else parts[2]


def _inflate(data: bytes, limit: int) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, limit + 1)
    except zlib.error:
        raise BadMessage("The PNG has a text that cannot be unpacked.") from None
    if not unpacker.eof and len(text) <= limit:
        raise BadMessage("The PNG has a text that ends early.")
    return text


def _webp(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        if at + 8 + length > len(data):
            raise BadMessage("The WebP ends early.")
        if kind == b"EXIF":
            yield from _exif(data[at + 8 : at + 8 + length].removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2


def _exif(tiff: bytes) -> Iterator[tuple[str, bytes]]:
    """ComfyUI's SaveAnimatedWEBP writes ``prompt:{…}`` and ``workflow:{…}`` as texts of the first directory."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    try:
        if order is None:
            raise struct.error
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for i in range(min(count, MAX_ENTRIES)):
            _, kind, size, offset = struct.unpack_from(order + "HHII", tiff, at + 2 + 12 * i)
            if kind != _ASCII or size <= 4:
                continue
            keyword, colon, text = tiff[offset : offset + size].rstrip(b"\0").partition(b":")
            if colon and keyword.lower() in KEYWORDS:
                yield keyword.lower().decode(), text
    except struct.error:
        raise BadMessage("The WebP's EXIF cannot be read.") from None
