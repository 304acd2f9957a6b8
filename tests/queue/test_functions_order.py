"""Which job is next: priorities, FIFO, fair shares, caps, loaded models, positions."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest

from tests.support.desk import Desk, Worker
from tests.support.jobs import new_job, profile


async def drain(desk: Desk, worker: Worker, number: int) -> list[str]:
    """Claim and finish that many jobs; their ids in order."""
    order = []
    for _ in range(number):
        job = await worker.take()
        await worker.finish(job)
        order.append(job)
    return order


async def test_priority_first_then_arrival(desk: Desk) -> None:
    for job, priority in (("a", 0), ("b", -100), ("c", 100), ("d", 0), ("e", 7), ("f", 100)):
        await desk.add(job, priority=priority)
    worker = await desk.worker()
    assert await drain(desk, worker, 6) == ["c", "f", "e", "a", "d", "b"]


async def test_a_newcomer_waits_for_one_job_of_a_flood(desk: Desk) -> None:
    await desk.submit(*(f"a{n:04}" for n in range(900)))
    worker = await desk.worker()
    await drain(desk, worker, 10)
    await desk.submit(*(f"b{n}" for n in range(10)), tenant="bob")
    order = await drain(desk, worker, 20)
    assert order.index("b0") <= 1
    assert [job[0] for job in order].count("b") == 10
    assert all(sum(1 for _ in run) <= 2 for _, run in groupby(order, lambda job: job[0]))


async def test_a_job_that_waits_for_its_retry_is_not_overtaken_by_a_later_one(desk: Desk) -> None:
    """Nothing waited meanwhile, so its level knew no tags when a third one came; an earlier one had come back."""
    worker = await desk.worker("w", slots=3)
    await desk.submit("a", "b")
    assert await worker.start() == "a"
    await worker.executed("a", timings="{}", exec_ms=500, cold=0)
    await worker.fail(await worker.start(), retry="auto")
    await desk.worker("w", slots=3, instance="anew")
    await desk.submit("c", "d")
    desk.tick(10_000)
    await desk.queue.sweep()
    assert await drain(desk, await desk.worker("x"), 4) == ["a", "b", "c", "d"]


async def test_a_weight_is_a_share(desk: Desk) -> None:
    await desk.queue.call("tenant", [("tenant", "bob"), ("weight", 2)])
    await desk.submit(*(f"a{n:03}" for n in range(60)))
    await desk.submit(*(f"b{n:03}" for n in range(60)), tenant="bob")
    worker = await desk.worker()
    share = Counter(job[0] for job in await drain(desk, worker, 60))
    assert 38 <= share["b"] <= 42


async def test_an_idle_tenant_banks_nothing(desk: Desk) -> None:
    """Whoever was away for 900 jobs does not get the next 900."""
    await desk.submit(*(f"a{n:04}" for n in range(950)))
    worker = await desk.worker()
    await drain(desk, worker, 900)
    await desk.submit(*(f"b{n:02}" for n in range(40)), tenant="bob")
    share = Counter(job[0] for job in await drain(desk, worker, 40))
    assert 19 <= share["b"] <= 21


async def test_a_level_that_ran_empty_owes_nobody(desk: Desk) -> None:
    await desk.submit(*(f"a{n:03}" for n in range(100)))
    worker = await desk.worker()
    await drain(desk, worker, 100)
    assert desk.client.exists(desk.key("v:0")) == 0
    await desk.submit(*(f"b{n:02}" for n in range(20)), tenant="bob")
    await desk.submit(*(f"c{n:02}" for n in range(20)))
    share = Counter(job[0] for job in await drain(desk, worker, 20))
    assert share["b"] == share["c"] == 10


async def test_a_capped_tenant_waits_for_its_own_jobs_only(desk: Desk) -> None:
    await desk.queue.call("tenant", [("tenant", "ann"), ("max_running", 2)])
    await desk.submit(*(f"a{n}" for n in range(5)))
    await desk.submit("b0", "b1", tenant="bob")
    worker = await desk.worker(slots=9)
    order = [await worker.take() for _ in range(4)]
    assert sorted(order) == ["a0", "a1", "b0", "b1"]
    assert (await worker.claim()).outcome == "none"
    await worker.executed("a0")
    assert await worker.take() == "a2"
    assert (await worker.claim()).outcome == "none"
    await desk.queue.call("tenant", [("tenant", "ann"), ("max_running", 0)])
    assert [await worker.take(), await worker.take()] == ["a3", "a4"]


async def test_many_parked_heads_come_back(desk: Desk) -> None:
    """More classes than one call parks or brings back."""
    await desk.queue.call("tenant", [("tenant", "ann"), ("max_running", 1)])
    names = [f"m{n:02}" for n in range(40)]
    for name in names:
        await desk.add(name, models=[name])
    worker = await desk.worker(profile=profile(names), slots=99)
    first = await worker.take()
    answers = [(await worker.claim()).outcome for _ in range(4)]
    assert (answers[0], answers[-1]) == ("again", "none")
    assert desk.client.zcard(desk.key("parked:ann")) == 39
    await worker.finish(first)
    done = {first}
    for _ in range(39):
        job = await worker.take()
        await worker.finish(job)
        done.add(job)
    assert done == set(names)
    assert desk.client.exists(desk.key("parked:ann")) == 0


async def test_a_loaded_model_is_preferred_within_the_cost_of_a_load(desk: Desk) -> None:
    """Runs count 1 s and a load 15 s before anything is measured: about 15 jobs, then the other model's turn."""
    names = ["red", "blue"]
    jobs = [new_job(f"{names[n % 2]}{n:03}", models=[names[n % 2]]) for n in range(120)]
    await desk.submit_all("ann", jobs)
    worker = await desk.worker(profile=profile(names))
    order, loaded = [], "red"
    for _ in range(120):
        job = await worker.take(loaded=loaded)
        loaded = job.rstrip("0123456789")
        order.append(job)
        await worker.finish(job)
        desk.tick(100)
        await worker.heartbeat()
    runs = [sum(1 for _ in run) for _, run in groupby(order, lambda job: job[:3])]
    assert len(runs) <= 12, runs
    assert max(runs) <= 40, runs
    for name in names:
        mine = [job for job in order if job.startswith(name)]
        assert mine == sorted(mine)


async def test_a_warm_job_never_goes_before_a_higher_priority(desk: Desk) -> None:
    await desk.add("warm", models=["red"])
    await desk.add("cold", models=["blue"], priority=1)
    worker = await desk.worker(profile=profile(["red", "blue"]))
    assert await worker.take(loaded="red") == "cold"


async def test_the_cold_head_waits_no_longer_than_a_load_takes(desk: Desk) -> None:
    """Also when many tenants' warm jobs have the same tag."""
    await desk.add("cold", models=["blue"])
    for n in range(40):
        await desk.add(f"warm{n:02}", f"t{n:02}", models=["red"])
    worker = await desk.worker(profile=profile(["red", "blue"]))
    order = []
    for _ in range(30):
        order.append(await worker.take(loaded="red"))
        await worker.finish(order[-1])
        desk.tick(1000)
        await worker.heartbeat()
    assert 2 <= order.index("cold") <= 17


async def test_no_wait_for_affinity_when_it_is_off(desk: Desk) -> None:
    await desk.queue.configure(affinity_max_wait_ms=0)
    await desk.add("cold", models=["blue"])
    await desk.add("warm", models=["red"])
    worker = await desk.worker(profile=profile(["red", "blue"]))
    await worker.take(loaded="red")
    assert await desk.status("cold") == "claimed"


async def test_run_times_are_measured_by_class(desk: Desk) -> None:
    await desk.submit("j1", "j2", "j3", models=["m"])
    worker = await desk.worker(profile=profile(["m"]))
    for job, exec_ms, cold in (("j1", 9000, 1), ("j2", 2000, 0), ("j3", 3000, 0)):
        await worker.start()
        await worker.executed(job, exec_ms=exec_ms, cold=cold)
        await worker.finish(job, exec_ms=77, cold=0)
    name = new_job(models=["m"]).job_class
    known = await desk.queue.call("class", [("class", name)])
    assert (known.text("run_ms"), known.text("cold_ms"), known.number("runs")) == ("2200.0", "9000.0", 3)
    ring = known.text("ring")
    assert [int(ring[n : n + 8]) for n in range(0, len(ring), 8)] == [9000, 2000, 3000]
    assert known.number("workers") == 1


async def test_positions_count_across_tenants(desk: Desk) -> None:
    await desk.submit("a1", "a2", "a3")
    bob = await desk.submit("b1", "b2", tenant="bob")
    assert [answer.number("position") for answer in bob] == [2, 4]
    worker = await desk.worker(slots=9)
    places = {job: (await desk.queue.job(job)).number("position") for job in ("a1", "a2", "a3", "b1", "b2")}
    order = [await worker.take() for _ in range(5)]
    assert sorted(places, key=lambda job: places[job]) == order
    assert sorted(places.values()) == [1, 2, 3, 4, 5]


async def test_a_position_is_exact_to_1000_lanes_when_asked_and_an_estimate_beyond_64_at_the_submit(desk: Desk) -> None:
    await desk.queue.configure(max_queued=0)
    for n in range(100):
        await desk.add(f"j{n:03}", f"t{n:03}")
    last = (await desk.submit("late", tenant="zoe"))[0]
    assert (last.number("position"), last.flag("exact")) == (101, False)
    record = await desk.queue.job("late")
    assert (record.number("position"), record.flag("exact")) == (101, True)


async def test_claims_fit_what_the_worker_can_do(desk: Desk) -> None:
    await desk.add("gpu", vram_mb=16_000)
    await desk.add("tag", tags=["eu"])
    await desk.add("node", nodes=["KSampler"])
    await desk.add("file", models=["checkpoints/a"])
    await desk.add("type", job_type="other")
    small = await desk.worker("small", profile=profile(["a"], ["KSampler"], vram_mb=8_000), slots=9)
    big = await desk.worker("big", profile=profile([], [], ["eu"], vram_mb=24_000), slots=9)
    assert {await small.take(), await small.take()} == {"node", "file"}
    assert (await small.claim()).outcome == "none"
    assert {await big.take(), await big.take()} == {"gpu", "tag"}
    assert (await big.claim()).outcome == "none"


async def test_what_nobody_can_run_says_what_is_missing(desk: Desk) -> None:
    assert (await desk.submit("j0"))[0].text("missing") == "*"
    await desk.worker("w1", profile=profile(["a"]))
    await desk.worker("w2", profile=profile(["b"]))
    assert (await desk.submit("j1", models=["a"]))[0].text("missing") == ""
    assert (await desk.submit("j2", models=["a", "zzz"], nodes=["N"]))[0].lines("missing") == ["m:zzz", "n:N"]
    assert (await desk.submit("j3", models=["a", "b"]))[0].text("missing") == "+"
    assert (await desk.submit("j4", vram_mb=48_000))[0].text("missing") == "v:48000"


@pytest.mark.parametrize("where", ["front", "priority"])
async def test_a_waiting_job_can_be_moved(desk: Desk, where: str) -> None:
    await desk.submit("j1", "j2", "j3")
    if where == "front":
        await desk.queue.set_priority("j3", "ann", front=True)
        await desk.queue.set_priority("j2", "ann", front=True)
    else:
        await desk.queue.set_priority("j3", "ann", priority=5)
        await desk.queue.set_priority("j2", "ann", priority=6)
    worker = await desk.worker()
    assert await drain(desk, worker, 3) == ["j2", "j3", "j1"]


async def test_a_job_that_comes_back_stays_before_later_ones_of_its_lane(desk: Desk) -> None:
    """While it ran nothing waited, so its level forgot who had what; another tenant's job was moved to the front."""
    await desk.add("lost")
    await (await desk.worker("w")).start()
    worker = await desk.worker("w")  # another process: what the first one ran goes back
    assert await desk.status("lost") == "pending"
    await desk.add("front", tenant="bob")
    await desk.queue.set_priority("front", "bob", front=True)
    await desk.add("later")
    assert await drain(desk, worker, 3) == ["front", "lost", "later"]


async def test_what_no_longer_waits_cannot_be_moved(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.take()
    answer = await desk.queue.call("priority", [("job", "j"), ("priority", 5)])
    assert (answer.outcome, answer.text("status")) == ("conflict", "claimed")


async def test_aging_lifts_a_job_that_waits(desk: Desk) -> None:
    await desk.queue.configure(aging_ms=60_000)
    await desk.add("old", priority=-2)
    worker = await desk.worker()
    await desk.live(190_000, worker, step=10_000)
    await desk.add("new", priority=0)
    assert await drain(desk, worker, 2) == ["old", "new"]


async def test_a_sweep_does_not_let_a_later_job_pass_an_earlier_one(desk: Desk) -> None:
    await desk.submit("a1", "a2", models=["A"])
    await desk.submit("b1", "b2", "b3", "b4", tenant="bob")
    worker = await desk.worker(profile=profile(models=["A"]))
    await desk.queue.pause("tenant", "ann", True)
    for job in ("b1", "b2", "b3"):
        assert await worker.take() == job
        await worker.finish(job)
    await desk.queue.pause("tenant", "ann", False)
    for _ in range(10):
        await desk.queue.sweep()
    await desk.add("a3", models=["A"])
    order = [await worker.take()]
    for _ in range(3):
        await worker.finish(order[-1])
        order.append(await worker.take())
    assert [job for job in order if job[0] == "a"] == ["a1", "a2", "a3"]
