"""A job's life beside its run: delay, expiry, dependencies, groups, listing, figures, memory."""

from __future__ import annotations

import pytest

from broker.errors import QueueFull
from tests.support.desk import Desk, text
from tests.support.jobs import new_job


async def complete(desk: Desk, *jobs: str) -> None:
    """Run these jobs, which are next."""
    worker = await desk.worker("completer")
    for job in jobs:
        assert await worker.start() == job
        await worker.finish(job)


async def test_a_delayed_job_is_scheduled_until_its_time(desk: Desk) -> None:
    assert (await desk.add("j", delay_ms=5000)).text("status") == "scheduled"
    await desk.add("k", start_at=desk.now + 3000)
    worker = await desk.worker(slots=9)
    assert (await worker.claim()).outcome == "none"
    await desk.live(3000, worker)
    assert await worker.take() == "k"
    await desk.live(2000, worker)
    assert await worker.take() == "j"
    assert desk.story("j") == ["scheduled", "pending", "claimed"]


async def test_a_start_time_in_the_past_is_now(desk: Desk) -> None:
    assert (await desk.add("j", start_at=desk.now - 5)).text("status") == "pending"


async def test_a_job_that_is_not_started_in_time_expires(desk: Desk) -> None:
    await desk.submit("j", "k", expires_ms=5000)
    await desk.add("s", expires_ms=5000, delay_ms=60_000)
    worker = await desk.worker()
    await worker.start()
    desk.tick(5001)
    assert (await desk.queue.sweep()).number("expired") == 2
    assert [await desk.status(job) for job in ("j", "k", "s")] == ["processing", "failed", "failed"]
    assert desk.log("k")[-1][1]["error"]["code"] == "expired"


async def test_a_claim_never_gives_an_expired_job(desk: Desk) -> None:
    await desk.add("j", expires_ms=5000)
    await desk.add("k")
    desk.tick(5001)
    worker = await desk.worker()
    assert await worker.take() == "k"
    assert await desk.status("j") == "failed"


async def test_a_job_waits_for_all_its_parents(desk: Desk) -> None:
    await desk.submit("p1", "p2")
    child = await desk.add("child", depends_on=["p1", "p2"])
    assert child.text("status") == "blocked"
    await complete(desk, "p1")
    assert await desk.status("child") == "blocked"
    await complete(desk, "p2")
    assert desk.story("child") == ["blocked", "pending"]
    await complete(desk, "child")


async def test_a_parent_that_has_ended_is_no_wait(desk: Desk) -> None:
    await desk.add("p")
    await complete(desk, "p")
    assert (await desk.add("child", depends_on=["p"])).text("status") == "pending"


async def test_a_parent_may_come_in_the_same_call(desk: Desk) -> None:
    jobs = [new_job("p"), new_job("c", depends_on=["p"])]
    answers = await desk.submit_all("ann", jobs)
    assert [a.text("status") for a in answers] == ["pending", "blocked"]


async def test_an_unknown_parent_is_refused(desk: Desk) -> None:
    await desk.add("theirs", "bob")
    for parent in ("nobody", "theirs"):
        answer = (await desk.submit("c", depends_on=[parent]))[0]
        assert (answer.outcome, answer.text("job_id")) == ("not_found", parent)
    assert (await desk.queue.call("job", [("job", "c")])).outcome == "not_found"


@pytest.mark.parametrize("policy", ["fail", "run"])
@pytest.mark.parametrize("end", ["failed", "cancelled"])
async def test_a_parent_that_fails_fails_its_children_or_not(desk: Desk, policy: str, end: str) -> None:
    await desk.add("p")
    await desk.add("c", depends_on=["p"], on_parent_failure=policy)
    await desk.add("grandchild", depends_on=["c"])
    if end == "cancelled":
        await desk.queue.cancel("p")
    else:
        worker = await desk.worker()
        await worker.start()
        await worker.fail("p", "validation_failed")
    late = (await desk.submit("late", depends_on=["p"], on_parent_failure=policy))[0]
    if policy == "run":
        assert [await desk.status(job) for job in ("c", "grandchild")] == ["pending", "blocked"]
        assert late.text("status") == "pending"
        return
    assert [await desk.status(job) for job in ("c", "grandchild", "late")] == ["failed"] * 3
    assert late.text("status") == "failed"
    error = desk.log("c")[-1][1]["error"]
    assert (error["code"], error["details"]) == ("dependency_failed", {"job_id": "p", "status": end})


async def test_many_children_are_told_in_steps(desk: Desk) -> None:
    await desk.add("p")
    await desk.submit(*(f"c{n:03}" for n in range(350)), depends_on=["p"])
    await desk.queue.cancel("p")
    failed = (await desk.queue.stats()).number("failed")
    assert failed == 20
    rounds = 0
    while (await desk.queue.sweep()).flag("more"):
        rounds += 1
        assert rounds < 20
    stats = await desk.queue.stats()
    assert (stats.number("failed"), stats.number("blocked")) == (350, 0)
    assert desk.client.exists(desk.key("kids:p"), desk.key("cascade")) == 0


async def test_a_delayed_child_is_scheduled_after_its_parent(desk: Desk) -> None:
    await desk.add("p")
    await desk.add("c", depends_on=["p"], delay_ms=60_000)
    await complete(desk, "p")
    assert desk.story("c") == ["blocked", "scheduled"]
    worker = await desk.worker()
    await desk.live(61_000, worker)
    assert await worker.take() == "c"


async def test_a_group_is_counted_and_cancelled(desk: Desk) -> None:
    await desk.submit(*(f"j{n}" for n in range(5)), group="g")
    await complete(desk, "j0")
    status = await desk.queue.group("ann", "g")
    assert [status.number(name) for name in ("jobs", "open", "completed", "pending")] == [5, 4, 1, 4]
    assert (await desk.queue.call("group", [("tenant", "bob"), ("group", "g")])).outcome == "not_found"
    first = await desk.queue.cancel_group("ann", "g", "enough", limit=3)
    assert (first.number("cancelled"), first.flag("more")) == (3, True)
    rest = await desk.queue.cancel_group("ann", "g", "enough", limit=3)
    assert (rest.number("cancelled"), rest.flag("more")) == (1, False)
    status = await desk.queue.group("ann", "g")
    assert [status.number(name) for name in ("open", "completed", "cancelled")] == [0, 1, 4]
    assert desk.life_ms("g:ann:g") > 0
    await desk.queue.retry("j1")
    assert (await desk.queue.group("ann", "g")).number("open") == 1
    assert desk.life_ms("g:ann:g") == -1
    await desk.queue.cancel("j1")


async def test_a_list_is_newest_first_and_goes_on(desk: Desk) -> None:
    for n in range(7):
        await desk.add(f"j{n}", "bob" if n % 2 else "ann")
    await complete(desk, "j0")
    await desk.queue.cancel("j5", "bob")
    page = await desk.queue.list_jobs(limit=3)
    assert [row.text("job_id") for row in page.rows] == ["j6", "j5", "j4"]
    page = await desk.queue.list_jobs(limit=9, before=page.text("next"))
    assert [row.text("job_id") for row in page.rows] == ["j3", "j2", "j1", "j0"]
    assert page.text("next") == ""
    mine = await desk.queue.list_jobs("bob")
    assert [row.text("job_id") for row in mine.rows] == ["j5", "j3", "j1"]
    waiting = await desk.queue.list_jobs("", ["pending", "scheduled"], limit=2)
    assert [row.text("job_id") for row in waiting.rows] == ["j6", "j4"]
    assert [row.text("job_id") for row in (await desk.queue.list_jobs("bob", ["cancelled"])).rows] == ["j5"]


async def test_figures(desk: Desk) -> None:
    await desk.submit("j1", "j2", priority=5)
    desk.tick(1500)
    await desk.add("k1", "bob", delay_ms=9000)
    await desk.add("k2", "bob")
    stats = await desk.queue.stats()
    names = ("pending", "scheduled", "submitted_total", "oldest_ms", "workers")
    assert [stats.number(name) for name in names] == [3, 1, 4, 1500, 0]
    assert sorted(stats.lines("depth")) == ["0 1", "5 2"]
    await complete(desk, "j1")
    ann, bob = await desk.queue.stats("ann"), await desk.queue.stats("bob")
    assert [ann.number(name) for name in ("pending", "completed", "completed_total", "submitted_total")] == [1, 1, 1, 2]
    assert [bob.number(name) for name in ("pending", "completed", "scheduled")] == [1, 0, 1]


async def test_a_tenant_sees_only_its_own(desk: Desk) -> None:
    await desk.add("j", "ann")
    for function in ("job", "payload", "cancel", "retry", "watch", "priority"):
        answer = await desk.queue.call(function, [("job", "j"), ("tenant", "bob"), ("priority", 3)])
        assert answer.outcome == "not_found", function
    assert (await desk.queue.list_jobs("bob")).rows == []


async def test_a_record_that_went_before_the_sweep_leaves_no_index(desk: Desk) -> None:
    """No sweep for longer than a record's slack: Redis removes the record by itself."""
    await desk.add("j")
    await complete(desk, "j")
    for key in ("j:j", "b:j", "e:j"):
        desk.client.delete(desk.key(key))
    desk.tick(86_400_001)
    await desk.queue.sweep()
    assert desk.client.exists(desk.key("f:ann:completed"), desk.key("fin:completed")) == 0
    assert (await desk.queue.stats("ann")).number("completed") == 0


async def test_classes_and_tags_are_forgotten_in_the_end(desk: Desk) -> None:
    await desk.queue.configure(ttl_completed_ms=1000)
    await desk.add("j", models=["rare"])
    await desk.queue.cancel("j")
    await desk.add("later", models=["kept"], delay_ms=90 * 86_400_000)
    desk.tick(31 * 86_400_000)
    for _ in range(3):
        await desk.queue.sweep()
    classes = set(map(text, desk.client.zrange(desk.key("classes"), 0, -1)))
    assert classes == {new_job(models=["kept"]).job_class}
    assert desk.client.exists(desk.key(f"c:{new_job(models=['rare']).job_class}")) == 0


async def test_finish_tags_that_time_has_passed_are_dropped(desk: Desk) -> None:
    for n in range(300):
        await desk.add(f"j{n}", f"t{n}")
    await desk.add("last", "t0", priority=0)
    worker = await desk.worker()
    for _ in range(300):
        await worker.finish(await worker.take())
    await desk.submit(*(f"k{n}" for n in range(50)), tenant="t0")
    for _ in range(3):
        await worker.finish(await worker.take())
    assert desk.client.hlen(desk.key("v:0")) > 600
    for _ in range(40):
        await desk.queue.sweep()
    assert desk.client.hlen(desk.key("v:0")) < 20


async def test_without_memory_only_new_work_is_refused(desk: Desk) -> None:
    await desk.submit("j1", "j2")
    worker = await desk.worker()
    await worker.start()
    desk.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(QueueFull):
            await desk.add("j3")
        assert (await worker.report("j1", p=2, store=1)).outcome == "ok"
        assert (await worker.finish("j1", claim=1, claim_token="b" * 32)).text("status") == "completed"
        assert (await desk.queue.sweep()).outcome == "ok"
        assert (await desk.queue.stats()).number("completed") == 1
    finally:
        desk.client.config_set("maxmemory", "0")
    assert (await desk.queue.call("job", [("job", "j3")])).outcome == "not_found"


async def test_a_variant_that_was_forgotten_while_its_job_ran_is_known_again(desk: Desk) -> None:
    first, second = await desk.worker("w1"), await desk.worker("w2")
    await desk.add("a")
    await first.start()
    await first.fail("a")
    await desk.live(4000, first, second)
    assert await second.start() == "a"
    await desk.live(7_500_000, first, second, step=10_000)
    assert (await second.held("release", "a", reason="x")).outcome == "ok"
    assert await second.take() == "a"


async def test_a_parked_class_is_not_forgotten(desk: Desk) -> None:
    first, second = await desk.worker("w1"), await desk.worker("w2")
    await desk.add("a")
    await first.start()
    await first.fail("a")
    await desk.queue.pause("tenant", "ann", True)
    await desk.live(4000, first, second)
    assert (await second.claim()).outcome == "none"
    await desk.live(7_500_000, first, second, step=10_000)
    await desk.queue.pause("tenant", "ann", False)
    assert await second.take() == "a"
