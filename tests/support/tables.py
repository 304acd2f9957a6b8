"""Tables in docs/ whose last column names tests: `file.py` and, behind it, what each test's name goes on with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def check_row(row: Sequence[str]) -> None:
    """The tests of a row (number, what, note, tests) exist, or its note says that it does not apply."""
    _, _, note, tests = row
    files = re.findall(r"`([a-z_/]+\.py)`([^`;]*)", tests)
    assert files or note.startswith("does not apply")
    for name, words in files:
        text = (ROOT / "tests" / name).read_text()
        for part in filter(None, (word.strip(" ,") for word in words.split(","))):
            assert re.search(rf"def test_\w*{part}", text), f"tests/{name} has no test_{part}"
