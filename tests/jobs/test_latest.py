"""Ended jobs that are kept between readings: as one reading of all of them, and cheaper."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.jobs import latest
from broker.jobs.latest import PAGE, PAGES, Latest


class Ends:
    """Jobs that end, as ``History.ended`` gives them; it counts what was asked and given."""

    def __init__(self) -> None:
        self.jobs: dict[str, int] = {}
        self.calls = self.given = 0

    def end(self, at: int, count: int = 1) -> None:
        for _ in range(count):
            self.jobs[f"j{len(self.jobs)}"] = at

    async def ended(
        self, *, since: int, until: int | None = None, limit: int
    ) -> tuple[list[dict[str, Any]], int | None]:
        fits = sorted(
            (-at, name) for name, at in self.jobs.items() if at > since and (until is None or at <= until)
        )  # fmt: skip
        last = -fits[limit - 1][0] if len(fits) > limit else 0
        page = [{"job_id": name, "finished_at": -at} for at, name in fits if -at >= last]
        self.calls, self.given = self.calls + 1, self.given + len(page)
        return page, last - 1 if last else None


async def names(it: Latest, since: int, state: object = None) -> tuple[set[str], int]:
    jobs, known = await it.since(since, state)
    assert [job["finished_at"] for job in jobs] == sorted((job["finished_at"] for job in jobs), reverse=True)
    return {job["job_id"] for job in jobs}, known


async def test_only_what_ended_since_is_asked_for_again() -> None:
    ends = Ends()
    ends.end(10_000, 200)
    ends.end(50_000, 20)
    it = Latest(ends.ended)
    assert await names(it, 0) == (set(ends.jobs), 0)
    ends.end(50_500, 3)
    ends.calls = ends.given = 0
    assert await names(it, 0) == (set(ends.jobs), 0)
    assert (ends.calls, ends.given) == (1, 23)


async def test_what_has_gone_is_gone_when_something_says_so_and_after_a_while_anyway(monkeypatch: Any) -> None:
    ends = Ends()
    ends.end(10_000, 5)
    ends.end(90_000, 5)
    it = Latest(ends.ended)
    await names(it, 0, 1)
    del ends.jobs["j0"]
    assert "j0" in (await names(it, 0, 1))[0]
    assert "j0" not in (await names(it, 0, 2))[0]
    del ends.jobs["j1"]
    monkeypatch.setattr(latest, "WHOLE_S", 0.0)
    assert "j1" not in (await names(it, 0, 2))[0]


async def test_of_many_the_latest_are_there_and_it_is_said_since_when() -> None:
    ends = Ends()
    for at in range(1, 3 * PAGE * PAGES):
        ends.end(at)
    it = Latest(ends.ended)
    found, known = await names(it, 0)
    assert found == {name for name, at in ends.jobs.items() if at > known}
    assert len(found) == PAGE * PAGES
    top = max(ends.jobs.values())
    ends.end(top + 10_000, 30)
    await names(it, 0)
    ends.end(top + 20_000, 100)
    found, known = await names(it, 0)
    assert found >= {name for name, at in ends.jobs.items() if at > known}
    assert PAGE * PAGES - 100 <= len(found) <= PAGE * PAGES


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 40), st.integers(0, 20_000)), max_size=12))
async def test_readings_in_between_change_nothing(steps: list[tuple[int, int, int]]) -> None:
    ends, at = Ends(), 100_000
    it = Latest(ends.ended)
    for later, count, back in steps:
        at += later
        ends.end(at, count)
        since = at - back
        assert await names(it, since) == ({name for name, when in ends.jobs.items() if when > since}, since)
