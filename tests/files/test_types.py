"""The bytes of a file say what it is; its name says nothing."""

from __future__ import annotations

import pytest

from broker.files import types

FTYP = b"\x00\x00\x00\x1cftyp"
WEBM = b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08\x42\x82\x84webm"

INLINE = [
    (b"\x89PNG\r\n\x1a\n" + bytes(16), "image/png"),
    (b"\x89PNG\r\n\x1a\n<html><script>alert(1)</script>", "image/png"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "image/jpeg"),
    (b"RIFF\x24\x00\x00\x00WEBPVP8 ", "image/webp"),
    (b"GIF89a\x01\x00\x01\x00", "image/gif"),
    (FTYP + b"avif\x00\x00\x00\x00mif1avif", "image/avif"),
    (FTYP + b"mif1\x00\x00\x00\x00mif1avifmiaf", "image/avif"),
    (FTYP + b"isom\x00\x00\x02\x00isomiso2", "video/mp4"),
    (FTYP + b"mp42\x00\x00\x00\x00mp42isom", "video/mp4"),
    (WEBM, "video/webm"),
    (b"RIFF\x24\x00\x00\x00WAVEfmt ", "audio/wav"),
    (b"ID3\x04\x00\x00\x00\x00\x00\x00", "audio/mpeg"),
    (b"\xff\xfb\x90\x64" + bytes(32), "audio/mpeg"),
    (b"fLaC\x00\x00\x00\x22", "audio/flac"),
]

DOWNLOADS = [
    b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    b"<?xml version='1.0'?><x/>",
    b"<!DOCTYPE html><script>alert(1)</script>",
    b"\xef\xbb\xbf<html>",
    b"%PDF-1.7\n%\xe2\xe3\xcf\xd3",
    b"alert(1)",
    b"PK\x03\x04",
    b"glTF\x02\x00\x00\x00",
    b"\x1a\x45\xdf\xa3\x42\x82\x88matroska",
    b"\xff\xf1\x50\x80",
    b"\xff\xfb\xf0\x64",
    b"BMW is a car",
    b"",
    bytes(64),
]


@pytest.mark.parametrize(("head", "content_type"), INLINE)
def test_what_a_browser_may_show(head: bytes, content_type: str) -> None:
    assert types.sniff(head) == content_type
    assert types.served_type(content_type) == content_type
    assert types.disposition(content_type) == "inline"
    assert types.extension_of(content_type)


@pytest.mark.parametrize("head", DOWNLOADS)
def test_everything_else_is_a_download(head: bytes) -> None:
    content_type = types.sniff(head)
    assert types.served_type(content_type) == "application/octet-stream"
    assert types.disposition(content_type) == "attachment"


def test_every_inline_type_is_tested() -> None:
    assert {content_type for _, content_type in INLINE} == types.INLINE


def test_text_is_recognised_also_when_a_character_is_cut() -> None:
    assert types.sniff("prompt: ein schöner Tag\n".encode()) == "text/plain"
    assert types.sniff(("x" * 4095 + "ü").encode()[:4096]) == "text/plain"
    assert types.sniff(b"\xfc\xfc") == "application/octet-stream"
    assert types.kind("text/plain") == "text"
    assert types.kind("application/zip") == "file"
