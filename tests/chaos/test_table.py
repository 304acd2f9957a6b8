"""The table of ``docs/reliability.md`` has every fault and names tests that are there."""

from __future__ import annotations

import re

import pytest

from tests.support.tables import ROOT, check_row

ROW = re.compile(r"^\| (F\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = ROW.findall((ROOT / "docs/reliability.md").read_text())


def test_every_fault_is_there() -> None:
    assert [row[0] for row in ROWS] == [f"F{number}" for number in range(1, 45)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_tests_that_exist_or_says_why_not(row: tuple[str, ...]) -> None:
    check_row(row)
