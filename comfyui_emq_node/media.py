"""What input files are: whether a file is what its node wants, and which ending it goes by.

Pictures, video and audio are opened by the libraries with which ComfyUI's own loaders open them, so that a broken one
is found before any node has run.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import struct
from typing import Any

ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")
ACTIVE = frozenset({
    ".htm", ".html", ".xhtml", ".shtml", ".xht", ".svg", ".xml", ".js", ".mjs", ".css", ".py", ".pyc", ".so", ".dll",
    ".exe", ".sh", ".bat", ".cmd", ".ps1",
})  # fmt: skip
"""Endings under which a browser or a system might run a file that a stranger chose."""
MAGIC = (
    (b"\x89PNG\r\n\x1a\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"OggS", ".ogg"), (b"fLaC", ".flac"),
    (b"ID3", ".mp3"), (b"\xff\xfb", ".mp3"), (b"\x1aE\xdf\xa3", ".webm"), (b"glTF", ".glb"),
)  # fmt: skip
RIFF = {b"WEBP": ".webp", b"WAVE": ".wav", b"AVI ": ".avi"}
MAX_HEADER = 16 << 20


class Unsound(Exception):
    """The file is not what its node wants; the message says why."""


def ending_of(label: str, head: bytes) -> str:
    """The ending for a file: of its label, if that is harmless, else by its first bytes, else none."""
    found = ENDING.search(label)
    ending = found.group().lower() if found else ""
    return ending if ending and ending not in ACTIVE else _sniffed(head)


def _sniffed(head: bytes) -> str:
    for magic, ending in MAGIC:
        if head.startswith(magic):
            return ending
    if head.startswith(b"RIFF"):
        return RIFF.get(head[8:12], "")
    if head[4:8] == b"ftyp":
        return {b"avif": ".avif", b"M4A ": ".m4a"}.get(head[8:12], ".mp4")
    return ".latent" if head[8:10] == b'{"' else ""


def check(path: str, kind: str | None) -> None:
    """Open a file as the loader of its ``kind`` (image, video, audio, latent; None: not known) will.

    Raises:
        Unsound: it is empty, or broken, or something else.
    """
    if not os.path.getsize(path):
        raise Unsound("the file is empty")
    checks = {"image": _check_image, "video": _check_stream, "audio": _check_stream, "latent": _check_latent}
    if kind in checks:
        checks[kind](path, kind)


def _check_image(path: str, _kind: str) -> None:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, ValueError, SyntaxError, struct.error, EOFError, Image.DecompressionBombError) as error:
        raise Unsound(f"it is no picture that can be read ({_short(error, path)})") from None


def _check_stream(path: str, kind: str) -> None:
    try:
        av: Any = importlib.import_module("av")
    except ImportError:  # a ComfyUI so old that it has no loader for these
        return
    try:
        with av.open(path) as container:
            streams: Any = container.streams.video if kind == "video" else container.streams.audio
            found = len(streams)
    except (OSError, ValueError) as error:
        raise Unsound(f"it is no {kind} that can be read ({_short(error, path)})") from None
    if not found:
        raise Unsound(f"it has no {kind} in it")


def _check_latent(path: str, _kind: str) -> None:
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
            raise Unsound("it is no latent (not in the safetensors format, or cut off)")
        try:
            header = json.loads(file.read(length))
            end = max(each["data_offsets"][1] for name, each in header.items() if name != "__metadata__")
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            raise Unsound("it is no latent (its header cannot be read)") from None
    if "latent_tensor" not in header:
        raise Unsound("it is no latent (it has no latent_tensor)")
    if size < 8 + length + end:
        raise Unsound("the latent is cut off")


def _short(error: Exception, path: str) -> str:
    return (str(error).replace(path, "the file").replace(repr(path), "the file") or type(error).__name__)[:200]
