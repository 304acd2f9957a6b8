"""Jobs by when they ended, and the minutes' samples."""

from __future__ import annotations

import time
from typing import Any

import pytest

from broker.jobs import history as history_of
from broker.jobs.history import EndedJobs, History, Recorder
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from broker.queue.series import KEPT, Series
from broker.recent import UNUSED_S
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker

NOW = 1_800_000_000_000


class Clock:
    """The pool's time, set by hand."""

    def __init__(self, connection: Connection, queue: Queue) -> None:
        self._connection, self._queue = connection, queue
        self.now = NOW

    async def at(self, now: int) -> None:
        self.now = now
        await self._connection.write(
            self._queue.prefix, ("HSET", f"{self._queue.prefix}config", "test_clock", str(now))
        )


async def ran(clock: Clock, worker: SimulatedWorker, job_id: str, start: int, end: int, *, ok: bool = True) -> None:
    """A job that is submitted a second before it starts."""
    await clock.at(start - 1000)
    await worker.queue.submit("ann", [new_job(job_id, models=("A",), max_attempts=1)])
    await clock.at(start)
    held = await worker.claim()
    assert held is not None
    await worker.report(held)
    await clock.at(end)
    await (worker.finish(held) if ok else worker.fail(held, retry="no"))


async def ended(queue: Queue, limit: int = 100, **filters: Any) -> list[str]:
    ids: list[str] = []
    until = None
    for _ in range(50):
        page = await queue.ended(until=until, limit=limit, **filters)
        ids += [row.text("job_id") for row in page.rows]
        until = page.number("next") or None
        if until is None:
            return ids
    raise AssertionError("the pages do not end")


async def test_an_ended_job_is_parsed_once_until_it_has_run_again(queue: Queue, connection: Connection) -> None:
    clock, past = Clock(connection, queue), History(queue, Series(connection, queue.prefix))
    await queue.configure(lease_ms=10**9)
    worker = SimulatedWorker(queue, "w1", profile=profile(("A",)))
    await clock.at(NOW)
    await worker.register()
    await ran(clock, worker, "j1", NOW + 2000, NOW + 4000, ok=False)
    [failed], _ = await past.ended()
    assert failed["status"] == "failed"
    [same], _ = await past.ended(status="failed")
    assert same is failed
    await queue.retry("j1")
    assert await past.ended() == ([], None)
    await clock.at(NOW + 6000)
    held = await worker.claim()
    assert held is not None
    await worker.report(held)
    await clock.at(NOW + 8000)
    await worker.finish(held)
    [completed], _ = await past.ended()
    assert (completed["status"], completed["finished_at"]) == ("completed", NOW + 8000)
    assert completed["error"] is None


def test_ended_jobs_that_nobody_reads_go_after_a_minute() -> None:
    now = [0.0]
    ended = EndedJobs(lambda: now[0])
    for second in range(3600):
        now[0] = float(second)
        ended.read([b"ok", b"row", row(f"j{second}", second)], [])
    assert len(ended) <= 2 * (UNUSED_S + 1)


def test_an_ended_job_is_known_by_its_end_whatever_its_worker_is_called() -> None:
    ended, jobs = EndedJobs(), list[dict[str, Any]]()
    for finished_at in (1000, 2000):
        ended.read([b"ok", b"row", row("j", finished_at, worker_id="finished_at")], jobs)
    assert [job["finished_at"] for job in jobs] == [1000, 2000]


def row(job_id: str, finished_at: int, worker_id: str = "w") -> list[bytes]:
    """A job as ``emq_ended`` gives it."""
    pairs = {"job_id": job_id, "worker_id": worker_id, "finished_at": str(finished_at), "status": "completed"}
    return [b"job", *(part.encode() for pair in pairs.items() for part in pair)]


async def test_ended_jobs_come_the_latest_end_first(queue: Queue, connection: Connection) -> None:
    clock = Clock(connection, queue)
    await queue.configure(lease_ms=10**9)
    one = SimulatedWorker(queue, "w1", profile=profile(("A",)))
    await clock.at(NOW)
    await one.register()
    for number in range(6):
        await ran(clock, one, f"j{number}", NOW + 5000 * number + 2000, NOW + 5000 * number + 4000, ok=number % 2 == 0)
    assert await ended(queue) == ["j5", "j4", "j3", "j2", "j1", "j0"]
    assert await ended(queue, limit=1) == ["j5", "j4", "j3", "j2", "j1", "j0"]
    assert await ended(queue, status="failed") == ["j5", "j3", "j1"]
    assert await ended(queue, worker="w2") == await ended(queue, tenant="bob") == []
    page = await queue.ended(since=NOW + 4000, until=NOW + 14_000)
    assert [row.text("job_id") for row in page.rows] == ["j2", "j1"]
    row = page.rows[1]
    assert (row.text("worker_id"), row.text("error_code"), row.lines("models")) == ("w1", "node_error", ["A"])
    assert (row.number("started_at"), row.number("finished_at")) == (NOW + 7000, NOW + 9000)


async def test_jobs_that_ended_at_once_are_not_cut_in_two(queue: Queue, connection: Connection) -> None:
    clock = Clock(connection, queue)
    await clock.at(NOW)
    await queue.submit("ann", [new_job(f"j{number:02}", group="g") for number in range(30)])
    while (await queue.cancel_group("ann", "g")).flag("more"):
        pass
    await clock.at(NOW + 5)
    await queue.submit("ann", [new_job("last")])
    await queue.cancel("last")
    assert sorted(await ended(queue, limit=4, status="cancelled")) == [
        *(f"j{number:02}" for number in range(30)),
        "last",
    ]


async def test_a_minute_is_sampled_by_one_replica(queue: Queue, connection: Connection) -> None:
    series = Series(connection, queue.prefix)
    assert [await series.take_turn(7), await series.take_turn(7), await series.take_turn(8)] == [True, False, True]


async def test_samples_are_bounded_and_the_newest_are_given(queue: Queue, connection: Connection) -> None:
    series = Series(connection, queue.prefix)
    for number in range(KEPT + 3):
        await series.add({"t": number})
    everything = await series.last(10_000)
    assert [everything[0]["t"], everything[-1]["t"], len(everything)] == [3, KEPT + 2, KEPT]
    history = History(queue, series)
    assert [sample["t"] for sample in await history.samples(2)] == [KEPT + 1, KEPT + 2]
    assert len(await history.samples(60)) == 60


async def test_the_next_sample_is_looked_for_when_it_is_due(
    queue: Queue, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    series, history, clock = Series(connection, queue.prefix), History(queue, Series(connection, queue.prefix)), [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(history_of, "now_ms", lambda: NOW + round(clock[0] * 1000))

    async def newest(at: float) -> int:
        clock[0] = at
        return int((await history.samples())[-1]["t"])

    await series.add({"t": NOW})
    assert await newest(59) == NOW
    await series.add({"t": NOW + 60_000})
    assert await newest(59.8) == NOW, "none is due"
    assert await newest(60.1) == NOW + 60_000
    await series.add({"t": NOW + 120_000})
    assert await newest(67) == NOW + 60_000
    assert await newest(71) == NOW + 120_000, "the clocks of two brokers may differ"


async def test_a_sample_says_what_happened_in_its_minute(queue: Queue, connection: Connection) -> None:
    clock, until = Clock(connection, queue), NOW + 60_000
    await queue.configure(lease_ms=10**9)
    one = SimulatedWorker(queue, "w1", profile=profile(("A",)))
    await clock.at(NOW - 60_000)
    await one.register()
    await ran(clock, one, "before", NOW - 50_000, NOW - 10_000)
    await ran(clock, one, "across", NOW - 5_000, NOW + 5_000)
    await ran(clock, one, "good", NOW + 10_000, NOW + 22_000)
    await ran(clock, one, "bad", NOW + 30_000, NOW + 33_000, ok=False)
    await clock.at(NOW + 50_000)
    await one.heartbeat()
    await queue.submit("bob", [new_job("running", models=("A",)), new_job("waiting", models=("A",))])
    held = await one.claim()
    assert held is not None
    await one.report(held)
    await clock.at(until)
    await one.heartbeat()
    sample = await Recorder(queue, Series(connection, queue.prefix)).sample(until)
    assert sample["t"] == until
    assert (sample["queued"], sample["running"]) == (1, 1)
    assert sample["kinds"] == {"A": {"n": 3, "failed": 1, "wait_ms": [1000, 1000], "run_ms": [10_000, 12_000]}}
    assert sample["tenants"] == {"ann": 3}
    assert sample["gpus"] == {"w1": 50.0}, "5 s + 12 s + 3 s + 10 s of 60"
