"""What the fuzzer found worth keeping is replayed."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.strict_json import CORPUS, check


def test_the_corpus_holds() -> None:
    """Every input is refused cleanly or means one thing; both kinds are among them."""
    files = [path for path in Path(CORPUS).iterdir() if path.is_file()]
    accepted = sum(check(path.read_bytes()) for path in files)
    assert len(files) >= 80
    assert 20 <= accepted <= len(files) - 40
