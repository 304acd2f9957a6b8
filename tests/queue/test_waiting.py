"""Waiting jobs in claim order, and what cannot run anywhere."""

from __future__ import annotations

from broker.queue.queue import Queue
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker


async def worker(queue: Queue, *models: str) -> SimulatedWorker:
    made = SimulatedWorker(queue, "w1", profile=profile(models))
    await made.register()
    return made


async def waiting(queue: Queue, tenant: str = "", limit: int = 100, priority: int | None = None) -> list[str]:
    ids: list[str] = []
    after = ""
    for _ in range(100):
        page = await queue.waiting(tenant, limit=limit, after=after, priority=priority)
        ids += [row.text("job_id") for row in page.rows if row.outcome == "job"]
        after = page.text("next")
        if not after:
            return ids
    raise AssertionError("the pages do not end")


async def test_the_order_is_that_of_claims(queue: Queue) -> None:
    await worker(queue, "A", "B")
    for number in range(12):
        tenant, model = ("ann", "bob", "cid")[number % 3], "AB"[number % 2]
        await queue.submit(tenant, [new_job(f"j{number}", models=(model,), priority=number % 4 // 3 * 5)])
    order = await waiting(queue)
    assert await waiting(queue, limit=1) == await waiting(queue, limit=5) == order
    assert sorted(order) == sorted(f"j{number}" for number in range(12))
    assert set(await waiting(queue, priority=5)) == set(order[:3]) == {"j3", "j7", "j11"}
    assert await waiting(queue, "bob") == [job for job in order if int(job[1:]) % 3 == 1]
    cold = SimulatedWorker(queue, "w2", profile=profile(("A", "B")))
    await cold.register()
    first = await cold.claim()
    assert first is not None
    assert first.job_id == order[0]


async def test_a_job_says_what_it_needs_and_how_many_can_run_it(queue: Queue) -> None:
    await worker(queue, "A")
    await queue.submit("ann", [new_job("j", models=("A",), priority=3, group="g")])
    (row,) = (await queue.waiting()).rows
    assert (row.outcome, row.text("job_id"), row.text("tenant"), row.text("kind")) == ("job", "j", "ann", "A")
    assert (row.number("priority"), row.number("workers"), row.text("group")) == (3, 1, "g")


async def test_what_nobody_can_run_is_apart_and_says_why(queue: Queue) -> None:
    await worker(queue, "A")
    await queue.submit("ann", [new_job("a", models=("A",)), new_job("b", models=("B",)), new_job("c", models=("B",))])
    answer = await queue.waiting()
    assert [(row.outcome, row.text("job_id")) for row in answer.rows] == [("job", "a"), ("class", "b")]
    stuck = answer.rows[1]
    assert (stuck.number("jobs"), stuck.text("kind"), stuck.lines("missing")) == (2, "B", ["m:B"])
    assert [row.outcome for row in (await queue.waiting("bob")).rows] == []


async def test_jobs_of_a_paused_tenant_are_shown_as_held(queue: Queue) -> None:
    one = await worker(queue, "A")
    await queue.submit("ann", [new_job("a", models=("A",))])
    await queue.submit("bob", [new_job("b", models=("A",))])
    await queue.pause("tenant", "ann", True)
    held = await one.claim()
    assert held is not None
    assert held.job_id == "b"
    assert [(row.text("job_id"), row.text("held")) for row in (await queue.waiting()).rows] == [("a", "tenant")]


async def test_a_retry_elsewhere_keeps_away_from_the_last_worker(queue: Queue) -> None:
    one = await worker(queue, "A")
    two = SimulatedWorker(queue, "w2", profile=profile(("A",)))
    await two.register()
    await queue.submit("ann", [new_job("a", models=("A",), max_attempts=1)])
    held = await one.claim()
    assert held is not None
    await one.fail(held, retry="no")
    await queue.retry("a", elsewhere=True)
    assert await one.claim() is None
    again = await two.claim()
    assert again is not None
    assert again.job_id == "a"


async def test_pages_of_any_size_are_the_order_of_claims_where_heads_tie(queue: Queue) -> None:
    one = await worker(queue, "A", "B", "C")
    one.slots = 100
    await one.register()
    for tenant in range(12):
        jobs = [new_job(f"{tenant}-{n}", models=("ABC"[n % 3],), priority=n % 2) for n in range(6)]
        await queue.submit(f"t{tenant:02}", jobs)
    await queue.set_priority("5-2", front=True)
    order = await waiting(queue)
    assert len(order) == 72
    for limit in (7, 20, 72):
        assert await waiting(queue, limit=limit) == order
    assert await waiting(queue, priority=0, limit=5) == [job for job in order if int(job.split("-")[1]) % 2 == 0]
    claimed = []
    while held := await one.claim():
        claimed.append(held.job_id)
    assert claimed == order


async def test_parked_lanes_and_those_with_a_head_stand_in_one_order(queue: Queue) -> None:
    one = await worker(queue, "A", "B")
    for tenant in ("ann", "bob", "cid"):
        await queue.submit(tenant, [new_job(f"{tenant}{n}", models=("AB"[n % 2],)) for n in range(4)])
    order = await waiting(queue)
    await queue.pause("tenant", "ann", True)
    assert await one.claim() is not None  # ann's best head was in its way
    left = [job for job in order if job != "bob0"]
    assert await waiting(queue) == await waiting(queue, limit=2) == left
    rows = {row.text("job_id"): row.text("held") for row in (await queue.waiting()).rows}
    assert {rows[f"ann{n}"] for n in (0, 2)} == {"tenant"}


async def test_jobs_that_nobody_can_run_are_estimated_where_they_are_in_many_lanes(queue: Queue) -> None:
    await worker(queue, "A")
    for tenant in range(200):
        await queue.submit(f"t{tenant}", [new_job(models=("B",)) for _ in range(2)])
    (stuck,) = (await queue.waiting(limit=1)).rows
    assert (stuck.number("jobs"), stuck.flag("exact")) == (400, False)
    (stuck,) = (await queue.waiting("t7")).rows
    assert (stuck.number("jobs"), stuck.flag("exact")) == (2, True)
