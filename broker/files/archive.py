"""Files as one zip, made while it is sent: stored as they are, whatever their size, nothing held but a piece of one."""

from __future__ import annotations

import io
import zipfile
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Protocol

from broker.files.names import display_name
from broker.files.store import StoredFile

ZIP64_FROM = 1 << 31
"""Sizes from which on an entry says its size in 64 bits; the format needs it from 4 GiB on."""
Buffer = bytes | bytearray | memoryview


class Reader(Protocol):
    """What gives a file's bytes."""

    def read(self, file: StoredFile) -> AsyncGenerator[bytes, None]:
        """Stream a file."""


class _Sink(io.RawIOBase):
    """Where the zip is written to, and taken from at once; it cannot be rewound."""

    def __init__(self) -> None:
        super().__init__()
        self._held: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Buffer, /) -> int:  # type: ignore[override]  # typeshed's buffer is 3.12's
        self._held.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """What was written since the last time."""
        held, self._held = b"".join(self._held), []
        return held


def unique_names(labels: Iterable[str]) -> list[str]:
    """A name for each file, none twice, also where upper and lower case are one: ``a.png``, ``a (2).png``."""
    used: dict[str, int] = {}
    names = []
    for label in labels:
        name = display_name(label)
        stem, dot, ending = name.rpartition(".") if "." in name else (name, "", "")
        number = used.get(name.casefold(), 0)
        chosen = name
        while number and chosen.casefold() in used:
            number += 1
            chosen = f"{stem} ({number}){dot}{ending}"
        used[name.casefold()] = number or 1
        used.setdefault(chosen.casefold(), 1)
        names.append(chosen)
    return names


async def zipped(
    reader: Reader, files: Sequence[StoredFile], labels: Sequence[str], at: datetime
) -> AsyncGenerator[bytes, None]:
    """The zip, in pieces; ``at`` is the time that its entries bear. Raises what reading a file raises."""
    sink = _Sink()
    moment = at.astimezone(UTC).timetuple()[:6]
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, file in zip(unique_names(labels), files, strict=True):
            entry = zipfile.ZipInfo(name, moment)
            entry.external_attr = 0o600 << 16
            with archive.open(entry, "w", force_zip64=file.size >= ZIP64_FROM) as out:
                async with aclosing(reader.read(file)) as pieces:
                    async for piece in pieces:
                        out.write(piece)
                        yield sink.take()
    yield sink.take()
