"""The table of ``docs/reliability.md`` has every fault and names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (F\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/reliability.md").read_text())


def test_every_fault_is_there() -> None:
    assert [row[0] for row in ROWS] == [f"F{number}" for number in range(1, 45)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_tests_that_exist_or_says_why_not(row: tuple[str, ...]) -> None:
    _, _, note, tests = row
    files = re.findall(r"`([a-z_/]+\.py)`([^`;]*)", tests)
    assert files or note.startswith("does not apply")
    for name, words in files:
        text = (ROOT / "tests" / name).read_text()
        for part in filter(None, (word.strip(" ,") for word in words.split(","))):
            assert re.search(rf"def test_\w*{part}", text), f"tests/{name} has no test_{part}"
