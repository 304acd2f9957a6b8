"""Tables in docs/: the settings, and checklists whose last column names tests.

A test is named by its `file.py` and, behind it, what its name goes on with.
"""

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


def described_settings(heading: str) -> dict[str, str]:
    """Name → default of every setting in a part of the configuration page."""
    text = (ROOT / "docs/configuration.md").read_text()
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    (found,) = [each for each in part if each.startswith(heading)]
    cells = re.findall(r"^\| (`[A-Z].*?) \| (.*?) \| .+ \|$", found, re.MULTILINE)
    return {name: default.strip("`") for names, default in cells for name in re.findall(r"`([A-Z_]+)`", names)}
