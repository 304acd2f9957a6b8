"""Objects in a local folder: plain blocking calls, to be made in a thread. Errors: ``OSError``.

A name with a ``#`` is an object that is still being written: no listing has it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import TypeVar

from broker.files.objects import SMALL, Decide

_TRIES = 20
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
T = TypeVar("T")
Found = tuple[str, datetime]
"""A key, and when its object was last written."""


def name(root: str, key: str, data: str, decide: Decide, content: bytes | None = None) -> bytes | None:
    """Have ``key`` name ``data`` as ``decide`` says, in one step; answers what ``key`` was.

    ``content`` is what is written under ``data`` first (``None``: it is there). An object that is not named is removed.
    """
    named, path = f"{root}/{key}", f"{root}/{data}"

    def both(half: str, document: bytes) -> None:
        if content is not None:
            _write(path, content)  # nothing names it yet
        _write(half, document)

    try:
        before = read(named)
        document = decide(before)
        if document is None:
            _drop(path)
        else:
            _appear(named, lambda half: both(half, document))
    except BaseException:
        _drop(path)
        raise
    return before


def write(path: str, content: bytes) -> None:
    """Write a small object in one step."""
    _appear(path, lambda half: _write(half, content))


def _appear(path: str, make: Callable[[str], None]) -> None:
    """Have ``make`` write a file under another name, and let it appear."""
    half = _half(path)

    def appear() -> None:
        make(half)
        os.replace(half, path)

    try:
        _in_folder_of(path, appear)
    except BaseException:
        _drop(half)
        raise


def read(path: str) -> bytes | None:
    """A small object; ``None`` where there is none, or a link, which is no object."""
    try:
        with open(path, "rb") as file:
            content = file.read(SMALL + 1)
    except _MISSING:
        return None
    return content if len(content) <= SMALL and os.path.realpath(path) == path else None


class Reading:
    """An object that is read from its beginning to its end, also when it is replaced meanwhile."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None

    def part(self, at: int, length: int) -> bytes:
        """So many bytes (fewer at its end); raises ``FileNotFoundError`` for a link, too, which is no object."""
        if self._file is None:
            if os.path.realpath(self._path) != self._path or not os.path.isfile(self._path):
                raise FileNotFoundError(self._path)
            self._file = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        return os.pread(self._file, length, at)

    def size(self) -> int:
        """Of the whole."""
        return os.stat(self._path, follow_symlinks=False).st_size

    def close(self) -> None:
        """End the reading."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Swept(OSError):
    """What had come of an object was removed before its end, by cleaning or with its folder."""


class Writing:
    """An object that comes in pieces and appears when all have come."""

    def __init__(self, path: str) -> None:
        self._path, self._half = path, _half(path)
        self._file: int | None = None

    def add(self, piece: bytes) -> None:
        """Write the next piece."""
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = _in_folder_of(self._path, lambda: os.open(self._half, flags, 0o666))
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._file, rest) :]

    def end(self) -> None:
        """Let it appear; raises :class:`Swept`."""
        self.add(b"")
        self._close()
        try:
            os.replace(self._half, self._path)
        except FileNotFoundError as error:
            raise Swept(self._half) from error

    def give_up(self) -> None:
        """Take away what has come."""
        with suppress(OSError):
            self._close()
        _drop(self._half)

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


def delete(root: str, keys: Iterable[str]) -> None:
    """Remove objects, and folders that are empty then; one that is not there is no error."""
    parents = set()
    for key in keys:
        with suppress(*_MISSING):
            os.unlink(f"{root}/{key}")
            parents.add(os.path.dirname(key))
    for parent in parents:
        _remove_empty(root, parent)


def remove(root: str, parent: str) -> int:
    """Remove everything below a folder, and it; answers how many objects there were. Links are not followed."""
    removed = 0
    with suppress(*_MISSING):
        for path, name, is_folder in _entries(f"{root}/{parent}"):
            if is_folder:
                removed += remove(root, f"{parent}/{name}")
                continue
            with suppress(FileNotFoundError):
                os.unlink(path)
                removed += "#" not in name
    _remove_empty(root, parent)
    return removed


def sweep(root: str, parent: str, before: float) -> None:
    """Remove what was half written before then below a folder, and folders that are empty."""
    with suppress(*_MISSING):
        for path, name, is_folder in _entries(f"{root}/{parent}"):
            if is_folder:
                sweep(root, f"{parent}/{name}", before)
            elif "#" in name:
                with suppress(OSError):
                    if os.lstat(path).st_mtime < before:
                        os.unlink(path)
    _remove_empty(root, parent)


def below(root: str, parent: str) -> Iterator[Found]:
    """Keys of everything below a folder; links are no objects."""
    with suppress(*_MISSING), os.scandir(f"{root}/{parent}") as entries:
        for entry in entries:
            key = f"{parent}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                yield from below(root, key)
            elif "#" not in entry.name and entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):
                    at = entry.stat(follow_symlinks=False).st_mtime
                    yield key, datetime.fromtimestamp(at, UTC)


def folders(root: str, parent: str) -> Iterator[str]:
    """Keys of the folders directly below one (empty: the root)."""
    with suppress(*_MISSING), os.scandir(f"{root}/{parent}") as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield f"{parent}/{entry.name}" if parent else entry.name


def _entries(folder: str) -> list[tuple[str, str, bool]]:
    """Path and name of each entry of a folder, and whether it is one itself."""
    with os.scandir(folder) as entries:
        return [(entry.path, entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]


def _remove_empty(root: str, folder: str) -> None:
    """Remove a folder if it is empty, and those above that are empty then."""
    with suppress(OSError):
        while folder:
            os.rmdir(f"{root}/{folder}")
            folder = os.path.dirname(folder)


def _in_folder_of(path: str, do: Callable[[], T]) -> T:
    """Do it again while something is missing: cleaning takes empty folders and what is half written at any time."""
    for _ in range(_TRIES - 1):
        try:
            return do()
        except FileNotFoundError:
            with suppress(FileNotFoundError):  # one above was empty, and has just been removed
                os.makedirs(os.path.dirname(path), exist_ok=True)
    return do()


def _half(path: str) -> str:
    return f"{path}#{secrets.token_hex(4)}"


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _drop(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)
