"""Listing and search: every filter, paging, times, and the bound on what one call looks at."""

from __future__ import annotations

import json

import redis

from broker.queue.new_job import Value
from broker.queue.queue import RECORDS, Answer, Queue
from broker.queue.seal import Seal
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker


async def found(queue: Queue, tenant: str = "ann", limit: int = 100, **filters: Value) -> list[str]:
    """The ids that a listing gives over all of its pages."""
    ids: list[str] = []
    before, status = "", str(filters.pop("status", ""))
    for _ in range(200):
        page = await queue.list_jobs(tenant, status.split(",") if status else (), limit, before, filters)
        ids += [row.text("job_id") for row in page.rows]
        before = page.text("next")
        if not before:
            return ids
    raise AssertionError("the pages do not end")


async def worker(queue: Queue, name: str, *models: str) -> SimulatedWorker:
    made = SimulatedWorker(queue, name, profile=profile(models))
    await made.register()
    return made


async def test_filters_find_jobs_by_what_happened_to_them(queue: Queue) -> None:
    one, two = await worker(queue, "w1", "A"), await worker(queue, "w2", "A", "B")
    await queue.submit("ann", [new_job(f"a{i}", models=("A",), labels=("000000aa",)) for i in range(4)])
    await queue.submit("ann", [new_job(f"b{i}", models=("B",), group="g", max_attempts=1) for i in range(3)])
    await queue.submit("bob", [new_job("other", models=("A",), labels=("000000aa",))])
    for job in ("a0", "a1"):
        held = await one.claim(job)
        assert held is not None
        await one.finish(held)
    for job in ("b0", "b1"):
        held = await two.claim(job)
        assert held is not None
        await (two.finish(held) if job == "b0" else two.fail(held))
    running = await two.claim("b2")
    assert running is not None
    assert await found(queue, worker="w1") == ["a1", "a0"]
    assert await found(queue, worker="w2") == ["b2", "b1", "b0"]
    assert await found(queue, worker="w2", status="processing,claimed") == ["b2"]
    assert await found(queue, error="node_error") == ["b1"]
    assert await found(queue, error="node_error", worker="w1") == []
    assert await found(queue, model="A") == ["a3", "a2", "a1", "a0"]
    assert await found(queue, model="A", status="pending") == ["a3", "a2"]
    assert await found(queue, labels="000000aa", limit=1) == ["a3", "a2", "a1", "a0"]
    assert await found(queue, labels="000000aa", worker="w1") == ["a1", "a0"]
    assert await found(queue, labels="000000aa\n000000bb") == []
    assert await found(queue, group="g", model="B", limit=2) == ["b2", "b1", "b0"]
    assert await found(queue, "", labels="000000aa") == ["other", "a3", "a2", "a1", "a0"]
    await queue.retry("b1", "ann")
    assert await found(queue, error="node_error") == []
    assert await found(queue, model="B", limit=1) == ["b2", "b1", "b0"]


async def test_a_job_that_was_handed_back_has_the_models_that_it_had(queue: Queue) -> None:
    """Though it needs what was missing from then on, as another job does that has it as a model."""
    await queue.submit("ann", [new_job("with", models=("A",)), new_job("without")])
    for number, job in enumerate(("with", "without")):
        one = await worker(queue, f"w{number}", "A")
        held = await one.claim(job)
        assert held is not None
        await one.fail(held, "validation_failed", hand_back=1, missing="m:A")
    records = [await queue.job(job) for job in ("with", "without")]
    assert records[0].text("class") == records[1].text("class")
    assert [record.lines("models") for record in records] == [["A"], []]
    assert await found(queue, model="A") == ["with"]
    for job in ("with", "without"):
        await queue.cancel(job)
    assert await found(queue, model="A") == ["with"]


async def test_times_bound_a_listing_without_reading_what_lies_outside(queue: Queue, redis_client: redis.Redis) -> None:
    config = f"{queue.prefix}config"
    for hour in range(50):
        redis_client.hset(config, "test_clock", 1_800_000_000_000 + hour * 3_600_000)
        await queue.submit("ann", [new_job(f"h{hour}", labels=("000000aa",))])
    start = 1_800_000_000_000
    since, until = start + 10 * 3_600_000, start + 12 * 3_600_000
    assert await found(queue, since=since, until=until) == ["h12", "h11", "h10"]
    assert await found(queue, labels="000000aa", limit=2, since=since, until=until) == ["h12", "h11", "h10"]
    assert await found(queue, until=start) == ["h0"]
    assert await found(queue, until=start - 1) == []
    assert await found(queue, since=start + 100 * 3_600_000) == []
    assert len(await found(queue, until=start + 100 * 3_600_000)) == 50


async def test_a_call_looks_at_a_bounded_number_of_jobs_and_goes_on(queue: Queue, redis_client: redis.Redis) -> None:
    await queue.submit("ann", [new_job("rare", models=("A",)), *(new_job() for _ in range(999))])
    for _ in range(9):
        await queue.submit("ann", [new_job() for _ in range(1000)])
    pages: list[Answer] = []
    before = ""
    while not pages or before:
        redis_client.config_resetstat()
        pages.append(await queue.list_jobs("ann", ["pending"], 50, before, {"model": "A"}))
        calls = redis_client.info("commandstats")
        assert sum(stat["calls"] for name, stat in calls.items() if name != "cmdstat_fcall") < 700
        before = pages[-1].text("next")
    assert [row.text("job_id") for page in pages for row in page.rows] == ["rare"]
    assert len(pages) == 21


async def test_retention_empties_the_index(queue: Queue, redis_client: redis.Redis) -> None:
    config = f"{queue.prefix}config"
    redis_client.hset(config, mapping={"test_clock": 1_800_000_000_000, "ttl_completed_ms": 1000})
    one = await worker(queue, "w1", "A")
    await queue.submit("ann", [new_job(models=("A",), labels=("000000aa", "000000bb"))])
    await one.work_one()
    index = f"{queue.prefix}x:ann"
    assert redis_client.zcard(index) == 4
    redis_client.hset(config, "test_clock", 1_800_000_002_000)
    await queue.sweep()
    assert redis_client.zcard(index) == 0


async def test_the_sweep_removes_entries_of_records_that_went_first(queue: Queue, redis_client: redis.Redis) -> None:
    one = await worker(queue, "w1")
    await queue.submit("ann", [new_job(f"j{i}", labels=("000000aa",)) for i in range(30)])
    while await one.work_one():
        pass
    for i in range(30):
        redis_client.delete(f"{queue.prefix}j:j{i}")
    for step in range(200):
        redis_client.hset(f"{queue.prefix}config", "test_clock", 1_800_000_000_000 + step * 7)
        await queue.sweep()
    assert redis_client.exists(f"{queue.prefix}x:ann") == 0


async def test_records_of_several_jobs_are_as_each_alone(queue: Queue) -> None:
    sealing = Queue(queue._caller, queue.pool, Seal.of("a key that nobody else has"))
    names = [f"j{number}" for number in range(RECORDS + 2)]
    await sealing.submit("ann", [new_job(name) for name in names])
    await sealing.submit("bob", [new_job("other")])
    one = await worker(sealing, "w1")
    for name in (names[0], names[-1]):
        held = await one.claim(name)
        assert held is not None
        await one.finish(held, {"outputs": [{"text": name}]})
    rows = await sealing.jobs(["gone", *reversed(names), "other"], "ann")
    assert [row.text("job_id") for row in rows] == names[::-1]
    for row in (rows[0], rows[1], rows[-1]):
        alone = await sealing.job(row.text("job_id"), "ann")
        assert alone.pairs.items() >= row.pairs.items()
        assert alone.pairs.get("result") == row.pairs.get("result")
    assert json.loads(rows[0].pairs["result"])["outputs"] == [{"text": names[-1]}]
    assert await sealing.jobs([]) == []
