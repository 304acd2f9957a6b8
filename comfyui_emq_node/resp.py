"""The wire of Redis (RESP), as far as calls of functions need it.

Both the worker and its side process speak it: the parser of redis-py, in Python and made for everything, costs a
multiple of what a call of the queue may cost ComfyUI.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

NO_VALUE = (b"-1", b"")
BULK_STRING = ord("$")
BULK, ARRAY, ERROR, SIMPLE, NUMBER, NULL = b"$*-+:_"


class ReplyError(Exception):
    """Redis answers with an error; the text is its own."""


class Incomplete(Exception):
    """More bytes have to come first."""


def pack(arguments: Iterable[bytes | str | int]) -> bytes:
    """A command as it goes to the server."""
    parts: list[bytes] = []
    for argument in arguments:
        data = argument if isinstance(argument, bytes) else str(argument).encode("utf-8", "replace")
        parts += (b"$%d\r\n" % len(data), data, b"\r\n")
    return b"*%d\r\n%b" % (len(parts) // 3, b"".join(parts))


def parse(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The reply that begins at ``at``, and where the next one begins; an error reply is given, not raised.

    Raises:
        Incomplete: the reply is not whole yet.
        ValueError: this is no reply.
    """
    end = data.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, head, after = data[at], data[at + 1 : end], end + 2
    if kind == BULK:
        return _bulk(data, head, after)
    if kind == ARRAY:
        return _array(data, head, after)
    if kind == ERROR:
        return ReplyError(head.decode("utf-8", "replace")), after
    if kind == SIMPLE:
        return head, after
    if kind == NUMBER:
        return int(head), after
    if kind == NULL:
        return None, after
    raise ValueError(f"no reply of Redis begins with {chr(kind)!r}")


def _bulk(data: bytes, head: bytes, at: int) -> tuple[bytes | None, int]:
    if head in NO_VALUE:
        return None, at
    end = at + int(head)
    if len(data) < end + 2:
        raise Incomplete
    return data[at:end], end + 2


def _array(data: bytes, head: bytes, at: int) -> tuple[list[Any] | None, int]:
    if head in NO_VALUE:
        return None, at
    values: list[Any] = []
    for _ in range(int(head)):
        end = data.find(b"\r\n", at)
        if end < 0:
            raise Incomplete
        if data[at] == BULK_STRING:  # nearly all are: they are spared a call
            value, at = _bulk(data, data[at + 1 : end], end + 2)
        else:
            value, at = parse(data, at)
        values.append(value)
    return values, at
