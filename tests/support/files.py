"""Files for tests to send and store: pictures, contents of every type, and names that must do no harm."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from broker.files.meter import Expected

ANY_CONTENT = Expected(limit=1 << 30)
"""What is expected of a file of which nothing is known before."""

HOSTILE_NAMES = [
    "../etc/passwd", "..\\windows\\win.ini", "....//....//etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/x",
    "%2e%2e%2fx", "..%5cx", "..%255cx", "..%c0%afx", "..%e0%80%afx", "..%c1%9cx", "%252e%252e%252fx", "/etc/passwd",
    "//etc/passwd", "\\\\host\\share\\x", "//host/share/x", "C:\\x", "C:/x", "C:x", "c:..\\x", "\\\\?\\C:\\x",
    "\\\\.\\PhysicalDrive0", "x\0.png", "x.png\0.html", "\0", "a" * 300, "a" * 300 + ".png", "é" * 300, "CON",
    "con.png", "NUL", "nul.txt", "PRN", "AUX.tar.gz", "COM1", "com9.log", "LPT1.txt", "COM¹", "CONIN$", "CLOCK$/../x",
    "x.png.", "x.png ", "x. . .", ".htaccess", ".", "..", "...", " ", "", "x\r\nSet-Cookie: a=b", "x\ny", "x\ty",
    "x\x1b[31m",
    "\u202egnp.exe", "x\u202egpj.html", "a/./b", "a/../../b", "~root/x", "$(id).png", "`id`.png", "x;rm -rf.png", "x|y",
    "<img src=x onerror=alert(1)>.png", 'x".png', "x'.png", "file:///etc/passwd", "x:stream", "x.png::$DATA",
    "\uff0fetc\uff0fx", "\ud800.png", "x\u2028y", "x\u0000\u0001", "\ufeffx.png", "\uff45\u0301", "😀.png",
]  # fmt: skip
"""Names that could become a path, a header or something that runs."""

_FTYP = b"\x00\x00\x00\x1cftyp"
_WEBM = b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\x01\x42\xf7\x81\x01\x42\xf2\x81\x04\x42\xf3\x81\x08\x42\x82\x84webm"

INLINE_CONTENTS = [
    (b"\x89PNG\r\n\x1a\n" + bytes(16), "image/png"),
    (b"\x89PNG\r\n\x1a\n<html><script>alert(1)</script>", "image/png"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "image/jpeg"),
    (b"RIFF\x24\x00\x00\x00WEBPVP8 ", "image/webp"),
    (b"GIF89a\x01\x00\x01\x00", "image/gif"),
    (_FTYP + b"avif\x00\x00\x00\x00mif1avif", "image/avif"),
    (_FTYP + b"mif1\x00\x00\x00\x00mif1avifmiaf", "image/avif"),
    (_FTYP + b"isom\x00\x00\x02\x00isomiso2", "video/mp4"),
    (_FTYP + b"mp42\x00\x00\x00\x00mp42isom", "video/mp4"),
    (_WEBM, "video/webm"),
    (b"RIFF\x24\x00\x00\x00WAVEfmt ", "audio/wav"),
    (b"ID3\x04\x00\x00\x00\x00\x00\x00", "audio/mpeg"),
    (b"\xff\xfb\x90\x64" + bytes(32), "audio/mpeg"),
    (b"fLaC\x00\x00\x00\x22", "audio/flac"),
]
"""Beginnings of what a browser may show, and their types."""

DOWNLOAD_CONTENTS = [
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
"""Beginnings of what must not be shown."""


def picture(colour: tuple[int, int, int]) -> bytes:
    """A small PNG of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and in the folders inside."""
    return sorted(path for path in folder.rglob("*") if path.is_file())
