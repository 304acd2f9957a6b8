"""Small objects in a local folder, each put in one go: the library would take a thread of its own for every step."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import suppress

LIMIT = 256 << 10
"""The size up to which an object is small."""
_TRIES = 5


def replace(root: str, key: str, data: str, content: bytes, decide: Callable[[bytes | None], bytes | None]) -> None:
    """Write ``content`` under ``data`` and then, in one step, what ``decide`` makes of what is under ``key``.

    ``decide`` answers ``None`` to leave everything as it is. Blocking: for a thread. Raises ``OSError``.
    """
    named, content_path = f"{root}/{key}", f"{root}/{data}"
    document = decide(read(named))
    if document is None:
        return
    half = f"{named}#{secrets.token_hex(4)}"
    try:
        for left in reversed(range(_TRIES)):
            try:
                _write(content_path, content)  # nothing names it yet
                _write(half, document)
                os.replace(half, named)
                return
            except FileNotFoundError:  # cleaning takes an empty folder and what is half written away at any time
                if not left:
                    raise
                os.makedirs(os.path.dirname(named), exist_ok=True)
    except BaseException:
        for path in (content_path, half):
            with suppress(OSError):
                os.unlink(path)
        raise


def read(path: str) -> bytes | None:
    """A small object; ``None`` where there is none, or a link, which is no object."""
    try:
        with open(path, "rb") as file:
            content = file.read(LIMIT + 1)
    except FileNotFoundError:
        return None
    return content if len(content) <= LIMIT and os.path.realpath(path) == path else None


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
