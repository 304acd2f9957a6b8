"""Workflows in pictures: PNG text chunks and WebP's EXIF, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from broker.errors import BadJson, BadMessage
from broker.jobs.pictures import PNG, is_picture, payload_of

LIMIT = 100_000
GRAPH = '{"1":{"class_type":"A","inputs":{"text":"äöü 猫"}}}'


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(*chunks: bytes, end: bytes = chunk(b"IEND", b"")) -> bytes:
    return PNG + chunk(b"IHDR", bytes(13)) + b"".join(chunks) + end


def saved(**texts: tuple[str, bool, bool]) -> bytes:
    """A picture as Pillow saves it, as ComfyUI does."""
    info = PngImagePlugin.PngInfo()
    for name, (text, international, packed) in texts.items():
        (info.add_itxt if international else info.add_text)(name, text, zip=packed)
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("international", [False, True])
def test_a_workflow_is_found_in_every_kind_of_text(international: bool, packed: bool) -> None:
    import json

    text = GRAPH if international else json.dumps(json.loads(GRAPH))
    data = saved(prompt=(text, international, packed), other=("not JSON", False, False))
    assert is_picture(data)
    assert payload_of(data, LIMIT) == {"prompt": json.loads(GRAPH)}


def test_what_some_nodes_say_of_themselves_is_no_hindrance() -> None:
    assert payload_of(saved(prompt=('{"1":{"is_changed":[NaN]}}', False, False)), LIMIT) == {
        "prompt": {"1": {"is_changed": [None]}}
    }


def test_a_webp_s_workflow_is_found() -> None:
    buffer = io.BytesIO()
    image = Image.new("RGB", (9, 9))
    exif = image.getexif()
    exif[0x010F], exif[0x010E] = 'prompt:{"1":{}}', 'workflow:{"nodes":[]}'
    image.save(buffer, "WEBP", exif=exif)
    assert payload_of(buffer.getvalue(), LIMIT) == {"prompt": {"1": {}}, "workflow": {"nodes": []}}


BOMB = zlib.compress(b"[" * 50_000_000)
BAD: dict[str, Any] = {
    "no text": png(),
    "no end": png(end=b""),
    "a chunk that is too long": PNG + struct.pack(">I", 2**31) + b"tEXt" + b"x" * 100,
    "a wrong checksum": png(chunk(b"tEXt", b"prompt\0{}", crc=1)),
    "two texts": png(chunk(b"tEXt", b"prompt\0{}"), chunk(b"tEXt", b"prompt\0{}")),
    "a bomb": png(chunk(b"zTXt", b"prompt\0\0" + BOMB)),
    "a bomb, international": png(chunk(b"iTXt", b"prompt\0\1\0\0\0" + BOMB)),
    "not packed": png(chunk(b"zTXt", b"prompt\0\0" + b"junk")),
    "cut off": png(chunk(b"zTXt", b"prompt\0\0" + zlib.compress(b"{}" * 99)[:-6])),
    "no fields": png(chunk(b"iTXt", b"prompt\0\0\0")),
    "not JSON": png(chunk(b"tEXt", b"prompt\0hello")),
    "too deep": png(chunk(b"tEXt", b"prompt\0" + b"[" * 5000 + b"]" * 5000)),
    "a key twice": png(chunk(b"tEXt", b'prompt\0{"1":1,"1":2}')),
    "not UTF-8": png(chunk(b"iTXt", b"prompt\0\0\0\0\0\xff\xfe")),
    "too large": png(chunk(b"tEXt", b"prompt\0[" + b"1," * LIMIT + b"1]")),
    "webp without": b"RIFF\0\0\0\0WEBP",
    "webp that ends early": b"RIFF\0\0\0\0WEBPEXIF" + struct.pack("<I", 99) + b"II*\0",
    "webp with junk": b"RIFF\0\0\0\0WEBPEXIF" + struct.pack("<I", 8) + b"II*\0\xff\xff\xff\xff",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_cannot_be_read_is_refused(data: bytes) -> None:
    with pytest.raises((BadMessage, BadJson)):
        payload_of(data, LIMIT)


@given(
    st.binary(max_size=200),
    st.sampled_from([PNG, b"RIFF\0\0\0\0WEBPEXIF\x40\0\0\0II*\0", PNG + chunk(b"IHDR", bytes(13))]),
)
def test_whatever_follows_is_refused_in_good_order(data: bytes, head: bytes) -> None:
    with pytest.raises((BadMessage, BadJson)):
        payload_of(head + data, LIMIT)
