"""Pieces of pages are rendered once, and go when nobody asks for them."""

from __future__ import annotations

from broker.dashboard.kept import MOST, Kept
from broker.recent import UNUSED_S


def test_a_piece_is_rendered_once_while_it_is_asked_for() -> None:
    now, drawn = [0.0], []
    keep = Kept(lambda: now[0])

    def draw() -> str:
        drawn.append(now[0])
        return "<p>"

    for moment in range(0, 600, 20):
        now[0] = float(moment)
        assert keep("foot", "gpu-1", caller=draw) == "<p>"
    assert drawn == [0.0]


def test_pieces_of_jobs_that_are_gone_go_after_a_minute() -> None:
    now = [0.0]
    keep = Kept(lambda: now[0])
    for second in range(3600):
        now[0] = float(second)
        keep("foot", f"job {second}", caller=lambda: "<p>")
    assert len(keep) <= 2 * (UNUSED_S + 1)


def test_pieces_are_not_without_number_even_within_a_minute() -> None:
    keep = Kept(lambda: 0.0)
    for number in range(3 * MOST):
        keep(number, caller=lambda: "<p>")
    assert len(keep) <= 2 * MOST
