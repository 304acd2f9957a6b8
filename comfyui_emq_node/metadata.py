"""PNGs without what ComfyUI writes into them: the prompt and the page's workflow, in chunks of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"eXIf"})
PIECE = 1 << 20


def has_text(path: str) -> bool:
    """Whether a file is a PNG with text in it. Raises ``OSError``."""
    with open(path, "rb") as file:
        return file.read(8) == SIGNATURE and any(kind in TEXTS for kind, _ in _chunks(file))


def copy_without_text(path: str, target: str) -> None:
    """Copy a PNG, leaving texts out; the picture stays as it is, byte for byte. Raises ``OSError``."""
    with open(path, "rb") as file, open(target, "wb") as out:
        out.write(file.read(8))
        for kind, length in _chunks(file):
            if kind not in TEXTS:
                file.seek(-8, 1)
                _copy(file, out, length + 12)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk, the file standing behind both; what is read meanwhile does not matter."""
    start = file.tell()
    while len(head := file.read(8)) == 8:
        length = int.from_bytes(head[:4], "big")
        yield head[4:], length
        start += length + 12
        file.seek(start)


def _copy(file: BinaryIO, out: BinaryIO, length: int) -> None:
    while length > 0 and (piece := file.read(min(length, PIECE))):
        out.write(piece)
        length -= len(piece)
