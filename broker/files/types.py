"""What a file is, judged by its first bytes and never by its name.

Only the types in ``INLINE`` are shown by a browser; every other file is served as ``application/octet-stream`` with
``attachment``, whatever it says it is (SVG, HTML, XML and PDF can carry scripts).
"""

from __future__ import annotations

import codecs

HEAD_BYTES = 4096
OCTET_STREAM = "application/octet-stream"

INLINE = frozenset(
    {
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/gif",
        "image/avif",
        "video/mp4",
        "video/webm",
        "audio/wav",
        "audio/mpeg",
        "audio/flac",
    }
)

_EXTENSIONS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/avif": ".avif",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "audio/wav": ".wav",
    "audio/mpeg": ".mp3",
    "audio/flac": ".flac",
}

_CLAIMS = {ending[1:]: content_type for content_type, ending in _EXTENSIONS.items()} | {
    "jpeg": "image/jpeg",
    "mov": "video/quicktime",
    "mkv": "video/x-matroska",
    "txt": "text/plain",
    "json": "text/plain",
}

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"fLaC", "audio/flac"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"glTF", "model/gltf-binary"),
    (b"v/1\x01", "image/x-exr"),
    (b"II*\x00", "image/tiff"),
    (b"MM\x00*", "image/tiff"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
)

_BRANDS = {
    b"avif": "image/avif",
    b"avis": "image/avif",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heif",
    b"qt  ": "video/quicktime",
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
}


def sniff(head: bytes) -> str:
    """The content type of a file that starts with ``head`` (at least 4 KiB, or all of it)."""
    for magic, content_type in _MAGIC:
        if head.startswith(magic):
            return content_type
    if head[:2] == b"BM" and head[6:10] == bytes(4):
        return "image/bmp"
    return _riff(head) or _iso_media(head) or _matroska(head) or _mpeg_audio(head) or _text(head) or OCTET_STREAM


def served_type(content_type: str) -> str:
    """The ``Content-Type`` to answer with."""
    return content_type if content_type in INLINE else OCTET_STREAM


def disposition(content_type: str) -> str:
    """``inline`` for what a browser may show, else ``attachment``."""
    return "inline" if content_type in INLINE else "attachment"


def extension_of(content_type: str) -> str:
    """The usual extension of an inline type, empty for others."""
    return _EXTENSIONS.get(content_type, "")


def guess(name: str) -> str:
    """The type that a name claims: good enough to sort by, not to serve by."""
    return _CLAIMS.get(name.rpartition(".")[2].lower(), OCTET_STREAM)


def kind(content_type: str) -> str:
    """image, video, audio, text or file."""
    family = content_type.partition("/")[0]
    return family if family in ("image", "video", "audio", "text") else "file"


def _riff(head: bytes) -> str | None:
    if head[:4] != b"RIFF":
        return None
    return {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}.get(head[8:12])


def _iso_media(head: bytes) -> str | None:
    """ISO base media: the ``ftyp`` box names a major brand and compatible ones."""
    if head[4:8] != b"ftyp":
        return None
    major = head[8:12]
    if major in (b"mif1", b"msf1"):
        size = min(int.from_bytes(head[:4], "big"), len(head))
        others = {head[i : i + 4] for i in range(16, size, 4)}
        if others & {b"avif", b"avis"}:
            return "image/avif"
    return _BRANDS.get(major, "video/mp4")


def _matroska(head: bytes) -> str | None:
    if head[:4] != b"\x1a\x45\xdf\xa3":
        return None
    return "video/webm" if b"\x42\x82\x84webm" in head[:64] else "video/x-matroska"


def _mpeg_audio(head: bytes) -> str | None:
    """An MPEG layer III frame header: sync, layer, a bit rate and a sample rate that exist."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    bit_rate, sample_rate = head[2] >> 4, head[2] >> 2 & 3
    return "audio/mpeg" if 0 < bit_rate < 15 and sample_rate < 3 and head[1] & 0x18 != 0x08 else None


def _text(head: bytes) -> str | None:
    """UTF-8 without control characters (a character cut at the end of ``head`` is no fault)."""
    if not head:
        return None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        return None
    return "text/plain" if all(c >= " " or c in "\t\n\r\f" for c in text) else None
