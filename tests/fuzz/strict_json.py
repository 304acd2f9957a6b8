"""What must hold of the strict parser for every input, and a fuzzer that looks for one for which it does not.

``python -m tests.fuzz.strict_json [libFuzzer options] [folder]`` runs atheris (``pip install --group fuzz``) until it
is stopped; it starts from ``tests/fuzz/corpus``, which the suite replays, and keeps what it finds in ``folder``.
"""

from __future__ import annotations

import importlib
import json
import json.decoder
import json.scanner
import math
import sys
from pathlib import Path
from typing import Any

from broker.errors import BadJson
from broker.jobs import strict

CORPUS = Path(__file__).parent / "corpus"
TOKENS = Path(__file__).parent / "strict_json.dict"


def check(raw: bytes) -> bool:
    """Parse ``raw`` as bytes and as text; whether it was accepted. Raises ``AssertionError`` where a promise is broken.

    What is refused raises ``BadJson`` and nothing else. What is accepted means the same to Python's own parser in both
    of its forms, is within the bounds, and comes back the same when it is serialised and parsed again.
    """
    value, other = _parse(raw), _reference(raw)
    if value is _REFUSED:
        return False
    text = raw.decode()
    assert _same(_parse(text), value), "as text it means something else"
    assert _same(json.loads(text), value), "Python's own parser reads something else"
    assert _same(other, value), "Python's own parser in Python reads something else"
    _bounded(value, 1)
    again = strict.dumps(value)
    assert _same(_parse(again), value), "it does not come back as it was"
    assert strict.canonical(value) == strict.canonical(_parse(again))
    assert strict.size(value) == len(again.encode())
    return True


_REFUSED = object()


def _parse(raw: bytes | str) -> Any:
    try:
        return strict.parse(raw)
    except BadJson as refused:
        error = refused
    assert error.code == "bad_json"
    assert error.message.isprintable(), "the message goes into logs"
    return _REFUSED


def _reference(raw: bytes) -> Any:
    """What the parser that is written in Python reads; the fuzzer follows its ways, which it cannot in the one in C."""
    decoder = json.decoder.JSONDecoder()
    decoder.parse_string = json.decoder.py_scanstring  # type: ignore[attr-defined]
    decoder.scan_once = json.scanner.py_make_scanner(decoder)  # type: ignore[attr-defined]
    try:
        return decoder.decode(raw.decode())
    except (ValueError, RecursionError):
        return _REFUSED


def _same(one: Any, other: Any) -> bool:
    """Equal, in types too: ``1`` is not ``True``, ``1.0`` not ``1``, ``-0.0`` not ``0.0``."""
    return repr(one) == repr(other)


def _bounded(value: Any, depth: int) -> None:
    if isinstance(value, dict | list):
        assert depth <= strict.MAX_DEPTH
        for child in [*value, *(value.values() if isinstance(value, dict) else ())]:
            _bounded(child, depth + 1)
    elif isinstance(value, str):
        assert "\x00" not in value
        value.encode("utf-8")
    elif isinstance(value, float):
        assert math.isfinite(value)
    elif not isinstance(value, bool) and value is not None:
        assert abs(value) <= 2**64


def main(argv: list[str]) -> None:
    """Fuzz; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["broker.jobs.strict", "json.decoder", "json.scanner"]):
        for module in (json.scanner, json.decoder, json, strict):
            importlib.reload(module)
    instrumented = atheris.instrument_func(check)
    atheris.Setup([sys.argv[0], f"-dict={TOKENS}", *argv, str(CORPUS)], instrumented)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
