"""Workers: registering, taking over, waking, pausing, draining, leaving."""

from __future__ import annotations

import asyncio
import itertools
import json

import pytest

from tests.support.desk import LEASE_MS, Desk, text
from tests.support.jobs import profile


async def states(desk: Desk) -> dict[str, str]:
    return {row.text("worker_id"): row.text("status") for row in (await desk.queue.workers()).rows}


async def test_a_worker_must_register_first(desk: Desk) -> None:
    worker = await desk.worker()
    stranger = type(worker)(desk, "stranger", "x")
    assert (await stranger.claim()).outcome == "unknown"
    assert (await stranger.heartbeat()).outcome == "unknown"


async def test_registering_answers_what_a_worker_needs(desk: Desk) -> None:
    await desk.queue.configure(input_urls="off", hang_ms=5, stall_ms=6, max_finishing=7, broker_url="http://b")
    worker = await desk.worker()
    answer = await worker.call("register", profile=profile(), slots=1)
    assert (answer.text("input_urls"), answer.number("hang_ms"), answer.number("max_finishing")) == ("off", 5, 7)
    assert (answer.number("lease_ms"), answer.lines("brokers")) == (LEASE_MS, ["http://b"])
    assert answer.text("deployment") == text(desk.client.hget(desk.key("meta"), "deployment"))
    desk.tick(16_000)
    assert (await worker.heartbeat()).lines("brokers") == []


async def test_a_new_instance_takes_over_and_the_old_ones_jobs_go_back(desk: Desk) -> None:
    await desk.add("j")
    old = await desk.worker()
    await old.start()
    new = await desk.worker()
    assert desk.log("j")[-1][1]["reason"] == "worker_lost"
    assert (await old.heartbeat("j")).outcome == "superseded"
    assert (await old.claim()).outcome == "superseded"
    assert await old.inbox() == ["superseded"]
    assert await new.take() == "j"


async def test_the_same_process_on_a_new_connection_keeps_its_jobs(desk: Desk) -> None:
    await desk.add("j")
    old = await desk.worker()
    await old.start()
    new = await desk.worker(previous=old.instance)
    new.tokens = old.tokens
    assert await desk.status("j") == "processing"
    assert (await new.heartbeat("j", status="busy")).lines("jobs") == ["j ok"]
    assert (await new.finish("j")).text("status") == "completed"
    assert desk.client.exists(desk.key(f"held:{old.instance}")) == 0


async def test_registering_again_changes_nothing_but_what_it_says(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    await worker.call("register", profile=profile(["new"]), slots=2)
    assert await desk.status("j") == "processing"
    await desk.add("k", models=["new"])
    assert await worker.take() == "k"
    assert [row.number("workers") for row in (await desk.queue.fleet()).rows] == [1]


async def test_equal_workers_share_a_profile(desk: Desk) -> None:
    for n in range(5):
        await desk.worker(f"w{n}", profile=profile(["a"]))
    await desk.worker("other", profile=profile(["b"]))
    rows = (await desk.queue.fleet()).rows
    assert sorted(row.number("workers") for row in rows) == [1, 5]
    assert json.loads(rows[0].text("json"))["job_types"] == ["comfyui"]


async def test_goodbye_gives_jobs_back_uncounted_and_lets_the_worker_go(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    assert (await worker.call("bye")).outcome == "ok"
    assert (await worker.call("bye")).outcome == "ok"
    assert desk.field("j", "uncounted") == "1"
    assert await states(desk) == {}
    assert (await desk.queue.fleet()).rows == []
    assert (await worker.heartbeat()).outcome == "unknown"
    assert desk.life_ms("wk:w") > 0


async def test_a_submit_wakes_exactly_one_suitable_worker(desk: Desk) -> None:
    workers = [await desk.worker(f"w{n}", profile=profile(["a"])) for n in range(3)]
    unfit = await desk.worker("unfit")
    for worker in [*workers, unfit]:
        assert (await worker.claim()).outcome == "none"
    assert (await desk.add("j1", models=["a"])).flag("notified")
    hints = [await worker.inbox() for worker in [*workers, unfit]]
    assert hints == [["work"], [], [], []]
    assert (await desk.add("j2", models=["a"])).flag("notified")
    hints = [await worker.inbox() for worker in workers]
    assert hints == [[], ["work"], []]
    await desk.add("j3", models=["a"])
    assert not (await desk.add("j4", models=["a"])).flag("notified")


async def test_a_worker_with_the_model_loaded_is_woken_first(desk: Desk) -> None:
    cold = await desk.worker("cold", profile=profile(["a"]))
    warm = await desk.worker("warm", profile=profile(["a"]))
    await cold.claim()
    await warm.claim(loaded="x\na")
    await desk.add("j", models=["a"])
    assert (await cold.inbox(), await warm.inbox()) == ([], ["work"])


async def test_a_retry_wakes_another_worker_than_the_one_that_failed(desk: Desk) -> None:
    first, second = await desk.worker("a"), await desk.worker("b")
    await desk.add("j")
    await first.start()
    await first.fail("j", claim=1, claim_token="b" * 32)
    desk.tick(10)
    await second.claim()
    desk.tick(2500)
    await desk.queue.sweep()
    assert (await first.inbox(), await second.inbox()) == ([], ["work"])


async def test_a_lost_hint_costs_one_heartbeat(desk: Desk) -> None:
    worker = await desk.worker()
    await worker.claim()
    await desk.add("j")
    await worker.inbox()
    assert (await worker.heartbeat()).flag("work")
    await worker.take()
    assert not (await worker.heartbeat("j", status="busy")).flag("work")


@pytest.mark.parametrize("how", ["due", "retry", "lost", "resumed", "uncapped", "met", "forced"])
async def test_whatever_makes_a_job_claimable_wakes_a_worker(desk: Desk, how: str) -> None:
    busy = await desk.worker("busy", profile=profile(["a"], tags=["x"]))
    worker = await desk.worker("idle", profile=profile(["a"]))
    if how in ("retry", "lost", "met", "forced", "uncapped"):
        await desk.add("first", tags=["x"] if how in {"met", "uncapped"} else [])
        await busy.start()
    if how == "due":
        await desk.add("j", delay_ms=5000)
    elif how == "met":
        await desk.add("j", depends_on=["first"])
    elif how == "uncapped":
        await desk.queue.call("tenant", [("tenant", "ann"), ("max_running", 1)])
        await desk.add("j")
    elif how == "resumed":
        await desk.queue.pause("pool", "", on=True)
        await desk.add("j")
    elif how == "forced":
        await busy.finish("first")
    assert (await worker.claim()).outcome == ("paused" if how == "resumed" else "none")
    await worker.heartbeat()
    await worker.inbox()
    if how == "due":
        await desk.live(6000, busy)
    elif how == "retry":
        await busy.fail("first")
        await desk.live(2500, busy)
    elif how == "lost":
        await desk.queue.call("gone", [("instance", busy.instance)])
    elif how == "resumed":
        await desk.queue.pause("pool", "", on=False)
        assert (await worker.heartbeat()).flag("work")
        return
    elif how == "forced":
        await desk.queue.retry("first")
    else:
        await busy.finish("first")
    assert await worker.inbox() == ["work"]


@pytest.mark.parametrize("scope", ["pool", "tenant", "worker"])
async def test_pause_holds_claims_back_and_resume_lets_them_go(desk: Desk, scope: str) -> None:
    await desk.submit("j1", "j2", "j3")
    worker = await desk.worker()
    assert await worker.start() == "j1"
    target = {"pool": "", "tenant": "ann", "worker": "w"}[scope]
    await desk.queue.pause(scope, target, on=True)
    answer = await worker.finish("j1", claim=1, claim_token="b" * 32)
    assert answer.text("status") == "completed"
    assert answer.next is not None
    assert answer.next.outcome == ("none" if scope == "tenant" else "paused")
    assert (await worker.heartbeat()).flag("paused") == (scope != "tenant")
    assert not (await worker.heartbeat()).flag("work") or scope == "tenant"
    await desk.queue.pause(scope, target, on=False)
    assert await worker.take() == "j2"


async def test_pause_of_nobody_is_not_found(desk: Desk) -> None:
    for scope in ("worker", "planet"):
        answer = await desk.queue.call("pause", [("scope", scope), ("id", "nobody"), ("on", 1)])
        assert answer.outcome == "not_found", scope
    assert (await desk.queue.call("pause", [("scope", "tenant"), ("id", ""), ("on", 1)])).outcome == "not_found"


async def test_a_tenant_may_be_paused_before_its_first_job(desk: Desk) -> None:
    await desk.queue.pause("tenant", "ann", on=True)
    await desk.submit("j1")
    worker = await desk.worker("w1")
    assert (await worker.claim()).outcome == "none"
    await desk.queue.pause("tenant", "ann", on=False)
    assert await worker.take() == "j1"


async def test_drain_finishes_what_runs_and_takes_nothing_new(desk: Desk) -> None:
    await desk.submit("j1", "j2")
    worker = await desk.worker()
    await worker.start()
    await desk.queue.drain("w")
    assert await worker.inbox() == ["drain"]
    assert (await worker.heartbeat("j1", status="busy")).flag("drain")
    answer = await worker.finish("j1", claim=1, claim_token="b" * 32)
    assert answer.next is not None
    assert answer.next.outcome == "paused"
    again = await desk.worker()
    assert await again.take() == "j2"


async def test_states_of_the_fleet(desk: Desk) -> None:
    await desk.add("j")
    await (await desk.worker("busy")).start()
    await desk.worker("idle")
    await desk.worker("paused")
    await desk.queue.pause("worker", "paused", on=True)
    await desk.worker("draining")
    await desk.queue.drain("draining")
    await (await desk.worker("ill")).heartbeat(status="unhealthy")
    stats = await desk.queue.stats()
    names = ("workers", "workers_idle", "workers_busy", "workers_paused", "workers_draining", "workers_unhealthy")
    assert [stats.number(name) for name in names] == [5, 1, 1, 1, 1, 1]
    row = (await desk.queue.workers("busy")).rows[0]
    assert (row.text("worker_id"), row.text("machine"), row.lines("held")) == ("busy", "m", ["j running"])


async def test_a_lost_worker_is_shown_offline_for_an_hour(desk: Desk) -> None:
    worker = await desk.worker()
    await desk.queue.call("gone", [("instance", worker.instance)])
    assert await states(desk) == {"w": "offline"}
    assert (await desk.queue.stats()).number("workers") == 0
    desk.tick(3_700_000)
    await desk.queue.sweep()
    assert await states(desk) == {}


async def test_a_worker_with_two_slots_runs_two(desk: Desk) -> None:
    await desk.submit("j1", "j2", "j3")
    worker = await desk.worker(slots=2)
    await worker.start()
    await worker.start()
    assert (await worker.claim()).outcome == "busy"
    assert await worker.take(ahead=1) == "j3"


async def test_classes_and_profiles_are_compared_however_many(desk: Desk) -> None:
    """More than one call compares: the rest follows with the sweeps."""
    names = [f"m{n:03}" for n in range(450)]
    for name in names:
        await desk.add(name, models=[name])
    worker = await desk.worker(profile=profile(names), slots=999)
    for _ in range(6):
        await desk.queue.sweep()
    assert desk.client.exists(desk.key("match")) == 0
    got = set()
    while (answer := await worker.claim()).outcome == "job":
        got.add(answer.text("job_id"))
    assert got == set(names)


async def test_a_new_class_meets_many_profiles(desk: Desk) -> None:
    workers = [await desk.worker(f"w{n}", profile=profile([f"m{n}"], tags=[str(n)])) for n in range(300)]
    await desk.submit(*(f"j{n}" for n in range(300)))
    for _ in range(6):
        await desk.queue.sweep()
    assert desk.client.exists(desk.key("match")) == 0
    assert len({await worker.take() for worker in workers}) == 300


async def test_a_fleet_that_beats_while_it_is_read_in_parts_is_read_whole(desk: Desk) -> None:
    """Heartbeats change the order of the index: each worker is to be there once all the same."""
    workers = [await desk.worker(f"gpu-{number:02}") for number in range(90)]

    async def beat() -> None:
        for number in itertools.count():
            desk.tick(1)
            await workers[number * 37 % 90].heartbeat()

    beating = asyncio.create_task(beat())
    try:
        for _ in range(10):
            rows = (await desk.queue.workers(jobs=True)).rows
            assert sorted(row.text("worker_id") for row in rows) == [f"gpu-{number:02}" for number in range(90)]
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
    assert (await desk.queue.workers("gpu-01\ngpu-02")).rows == []


@pytest.mark.parametrize("silent_ms", [(0, 3_700_000), (3_700_000, 0)], ids=["leaves, silence", "silence, leaves"])
async def test_a_worker_that_has_left_is_listed_while_it_has_a_job(desk: Desk, silent_ms: tuple[int, int]) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    desk.tick(silent_ms[0])
    await worker.call("leave")
    desk.tick(silent_ms[1])
    await desk.queue.sweep()
    [row] = (await desk.queue.workers()).rows
    assert [line.split()[0] for line in row.lines("held")] == ["j"]
    await desk.live(LEASE_MS + 5_000)
    assert await desk.status("j") == "pending"
    desk.tick(3_700_000)
    await desk.queue.sweep()
    assert await states(desk) == {}
