"""JSON as EMQ reads it: one meaning only, bounded, and always passed on re-serialised.

What another parser could read differently (duplicate keys, NaN, lone surrogates, huge numbers) is refused, so that
what was checked here and what ComfyUI runs are the same.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from broker.errors import BadJson

MAX_DEPTH = 32
_INT_LIMIT = 2**64


def _constant(name: str) -> NoReturn:
    raise BadJson(f"{name} is not a number in JSON.")


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 21 else _INT_LIMIT + 1
    if abs(value) > _INT_LIMIT:
        raise BadJson("An integer is outside the range of 64 bits.")
    return value


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise BadJson("A number is too large.")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise BadJson(f"The key {twice[:64]!r} is given twice.")
    return result


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=_constant
)
_nulling = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_number, parse_constant=lambda _: None
)


def parse(raw: str | bytes, *, nan_is_null: bool = False) -> Any:
    """Read a JSON text; raises ``BadJson`` with where and why. ``nan_is_null``: for files of programs that write it."""
    text = decode(raw)
    try:
        value = (_nulling if nan_is_null else _decoder).decode(text)
    except json.JSONDecodeError as exc:
        raise BadJson(f"This is not JSON: {exc.msg} at character {exc.pos}.", position=exc.pos) from None
    except RecursionError:
        raise BadJson(f"The JSON is nested deeper than {MAX_DEPTH} levels.") from None
    escapes = text.lower() if "\\u" in text else ""
    _walk(value, strings="\\u0000" in escapes or "\\ud" in escapes)
    return value


def decode(raw: str | bytes) -> str:
    """The text of a frame or body; raises ``BadJson`` when it is not UTF-8."""
    if isinstance(raw, str):
        return raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise BadJson(f"The text is not UTF-8 (byte {exc.start}).", position=exc.start) from None


def _walk(value: Any, *, strings: bool) -> None:
    """Bound the depth; look into strings only when an escape may have smuggled something in."""
    stack = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if isinstance(item, dict):
            if strings:
                for key in item:
                    _clean(key)
            children: Any = item.values()
        elif isinstance(item, list):
            children = item
        else:
            if strings and isinstance(item, str):
                _clean(item)
            continue
        if depth > MAX_DEPTH:
            raise BadJson(f"The JSON is nested deeper than {MAX_DEPTH} levels.")
        stack.extend((child, depth + 1) for child in children)


def _clean(text: str) -> None:
    if "\x00" in text:
        raise BadJson("A text contains a NUL character.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadJson("A text contains half of a surrogate pair.") from None


def lenient(raw: str | bytes) -> Any:
    """Read what is wrong only by EMQ's stricter rules, to find the ``message_id`` to answer; ``None`` if unreadable."""
    try:
        return json.loads(decode(raw))
    except (BadJson, ValueError, RecursionError):
        return None


def dumps(value: Any) -> str:
    """Compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def canonical(value: Any) -> bytes:
    """JSON with one form per value, to be hashed."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True, allow_nan=False).encode()


def size(value: Any) -> int:
    """Bytes of a value as compact JSON."""
    return len(dumps(value).encode("utf-8", "surrogatepass"))
