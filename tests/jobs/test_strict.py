"""JSON with one meaning only."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import BadJson
from broker.jobs import strict

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc"), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(plain)
def test_plain_json_comes_back_as_it_was(value: Any) -> None:
    assert strict.parse(json.dumps(value)) == value
    assert strict.parse(strict.dumps(value)) == value


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_anything_else_is_bad_json_and_nothing_worse(raw: bytes | str) -> None:
    with contextlib.suppress(BadJson):
        strict.parse(raw)


def test_depth_is_counted_exactly() -> None:
    deep = "[" * strict.MAX_DEPTH + "1" + "]" * strict.MAX_DEPTH
    strict.parse(deep)
    with pytest.raises(BadJson):
        strict.parse(f"[{deep}]")


def test_integers_within_64_bits() -> None:
    assert strict.parse(str(2**64)) == 2**64
    assert strict.parse(str(-(2**64))) == -(2**64)
    for text in (str(2**64 + 1), "-" + "9" * 30):
        with pytest.raises(BadJson):
            strict.parse(text)


@pytest.mark.parametrize("text", ['"\\ud83d\\ude00"', '"\\\\u0000"', '"\\\\ud800"', '"\\u0001"'])
def test_escapes_that_mean_something_harmless_pass(text: str) -> None:
    assert strict.parse(text) == json.loads(text)


def test_canonical_has_one_form() -> None:
    assert strict.canonical({"b": 1, "a": [1, {"d": 1, "c": 2}]}) == strict.canonical(
        {"a": [1, {"c": 2, "d": 1}], "b": 1}
    )
