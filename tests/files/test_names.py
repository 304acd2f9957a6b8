"""Names are labels: nothing that a worker or client sends can become a path or a header."""

from __future__ import annotations

import re
import unicodedata

import pytest

from broker.files.names import content_disposition, display_name, extension, is_strict
from tests.support.files import HOSTILE_NAMES


def test_the_list_is_long_enough() -> None:
    assert len(set(HOSTILE_NAMES)) >= 60


@pytest.mark.parametrize("raw", HOSTILE_NAMES)
def test_a_label_is_safe_to_save_under_and_to_send(raw: str) -> None:
    label = display_name(raw)
    assert 1 <= len(label) <= 200
    assert not set(label) & set('/\\:*?"<>|')
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs") for c in label)
    assert not label.startswith(".")
    assert not label.endswith((".", " "))
    assert not re.fullmatch(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", label, re.IGNORECASE)
    assert display_name(label) == label
    for kind in ("inline", "attachment"):
        value = content_disposition(kind, raw)
        assert value.isascii()
        assert value.isprintable()
        assert re.fullmatch(rf"{kind}; filename=\"[^\"\\]*\"(; filename\*=UTF-8''[A-Za-z0-9!#$&+.^_`|~%-]+)?", value)


@pytest.mark.parametrize("raw", [name for name in HOSTILE_NAMES if re.search(r"[/\\\0-\x1f:%]|\.\.|^\.|^ ?$", name)])
def test_a_hostile_name_is_never_a_strict_one(raw: str) -> None:
    assert not is_strict(raw)


@pytest.mark.parametrize("name", ["CON", "nul.txt", "a" * 201, "x.", "x ", "..", "é", "😀.png", ".x", ""])
def test_what_is_not_strict(name: str) -> None:
    assert not is_strict(name)


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("ComfyUI_00001_.png", "my file (2).webm", "Ünïcode.flac", "日本.png", "a.tar.gz"):
        assert display_name(name) == name
    assert is_strict("ComfyUI_00001_.png")


def test_a_long_name_keeps_its_extension() -> None:
    label = display_name("a" * 300 + ".PNG")
    assert len(label) == 200
    assert label.endswith("a.PNG")


def test_the_extension_is_plain_or_none() -> None:
    assert extension("a.PNG") == ".png"
    assert [extension(n) for n in ("a", "a.", "a.p/g", "a.toolongext", "a.p\n")] == [""] * 5


def test_both_forms_of_a_name_in_content_disposition() -> None:
    assert content_disposition("inline", "cat.png") == 'inline; filename="cat.png"'
    assert content_disposition("attachment", "Ünï 😀.png") == (
        "attachment; filename=\"_n_ _.png\"; filename*=UTF-8''%C3%9Cn%C3%AF%20%F0%9F%98%80.png"
    )
