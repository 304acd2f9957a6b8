"""The bytes of a file say what it is; its name says nothing."""

from __future__ import annotations

import pytest

from broker.files import types
from tests.support.files import DOWNLOAD_CONTENTS, INLINE_CONTENTS


@pytest.mark.parametrize(("head", "content_type"), INLINE_CONTENTS)
def test_what_a_browser_may_show(head: bytes, content_type: str) -> None:
    assert types.sniff(head) == content_type
    assert types.served_type(content_type) == content_type
    assert types.disposition(content_type) == "inline"
    assert types.extension_of(content_type)


@pytest.mark.parametrize("head", DOWNLOAD_CONTENTS)
def test_everything_else_is_a_download(head: bytes) -> None:
    content_type = types.sniff(head)
    assert types.served_type(content_type) == "application/octet-stream"
    assert types.disposition(content_type) == "attachment"


def test_every_inline_type_is_tested() -> None:
    assert {content_type for _, content_type in INLINE_CONTENTS} == types.INLINE


def test_text_is_recognised_also_when_a_character_is_cut() -> None:
    assert types.sniff("prompt: ein schöner Tag\n".encode()) == "text/plain"
    assert types.sniff(("x" * 4095 + "ü").encode()[:4096]) == "text/plain"
    assert types.sniff(b"\xfc\xfc") == "application/octet-stream"
    assert types.kind("text/plain") == "text"
    assert types.kind("application/zip") == "file"
