"""The checklist of ``docs/security.md`` names tests that are there."""

from __future__ import annotations

import re

import pytest

from tests.support.tables import ROOT, check_row

ROWS = re.findall(r"^\| (S\d+) \| (.+?) \| (.+?) \| (.+?) \|$", (ROOT / "docs/security.md").read_text(), re.MULTILINE)
NUMBERS = [
    *range(1, 18),
    *range(20, 26),
    *range(30, 39),
    *range(40, 45),
    *range(50, 55),
    *range(60, 64),
    *range(70, 78),
]


def test_every_line_is_there() -> None:
    assert [row[0] for row in ROWS] == [f"S{number}" for number in NUMBERS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_line_names_tests_that_exist_or_says_why_not(row: tuple[str, ...]) -> None:
    check_row(row)
