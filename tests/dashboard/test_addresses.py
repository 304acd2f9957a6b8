"""Files keep their address while a page is open."""

from __future__ import annotations

from broker.dashboard.addresses import SAME_S, Addresses


def test_a_file_has_the_same_address_for_a_while_and_then_a_new_one() -> None:
    now = [0.0]
    it = Addresses(lambda: now[0])
    assert it.steady("/a.png?e=1") == "/a.png?e=1"
    assert it.steady("/b.png?e=1") == "/b.png?e=1"
    now[0] = SAME_S - 1
    assert it.steady("/a.png?e=2") == "/a.png?e=1"
    now[0] = SAME_S
    assert it.steady("/a.png?e=3") == "/a.png?e=3"
