"""What becomes of a job whose claim did not lead to a result: retries, hand-backs, crashes, cancels, timeouts."""

from __future__ import annotations

import json

import pytest

from tests.support.desk import LEASE_MS, Desk, Worker
from tests.support.jobs import profile


async def fail_once(desk: Desk, worker: Worker, code: str = "node_error") -> None:
    """Run the job and fail it, then wait until it may be claimed again."""
    await worker.start()
    answer = await worker.fail("j", code)
    assert (answer.text("status"), answer.flag("will_retry")) == ("pending", True)
    await desk.live(6000, worker)


async def test_a_failed_attempt_is_retried_after_a_pause(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    answer = await worker.fail("j")
    assert (answer.text("status"), answer.flag("will_retry")) == ("pending", True)
    assert desk.story("j")[-2:] == ["fail_job", "pending"]
    assert desk.log("j")[-2][1]["will_retry"] is True
    again = await worker.fail("j")
    assert (again.flag("repeated"), again.flag("will_retry")) == (True, True)
    assert (await worker.claim()).outcome == "none"
    await desk.live(2001, worker)
    given = await worker.claim()
    assert (given.text("job_id"), given.number("attempt")) == ("j", 2)


async def test_used_up_attempts_end_with_the_jobs_own_error(desk: Desk) -> None:
    await desk.add("j", max_attempts=2)
    worker = await desk.worker()
    await fail_once(desk, worker)
    await worker.start()
    answer = await worker.fail("j", "out_of_memory")
    assert (answer.text("status"), answer.flag("will_retry")) == ("failed", False)
    kind, data = desk.log("j")[-1]
    assert (kind, data["error"]["code"], data["attempt"], data["will_retry"]) == ("fail_job", "out_of_memory", 2, False)
    assert desk.story("j")[-2] == "failed"
    record = await desk.queue.job("j")
    assert (record.text("error_code"), json.loads(record.text("error"))["code"]) == ("out_of_memory",) * 2


async def test_pauses_double_and_the_first_is_short(desk: Desk) -> None:
    await desk.queue.configure(backoff_ms=4000)
    await desk.add("j", max_attempts=4)
    worker = await desk.worker()
    pauses = []
    for _ in range(3):
        await worker.start()
        await worker.fail("j")
        pauses.append(int(desk.field("j", "due_at") or 0) - desk.now)
        await desk.live(pauses[-1] + 1, worker)
    assert 0 < pauses[0] <= 5000
    assert 6000 <= pauses[1] <= 8000
    assert 12000 <= pauses[2] <= 16000


@pytest.mark.parametrize("code", ["validation_failed", "interrupted"])
async def test_some_errors_are_never_retried(desk: Desk, code: str) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    assert (await worker.fail("j", code)).text("status") == "failed"


async def test_a_worker_may_rule_a_retry_out(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    assert (await worker.fail("j", retry="no")).text("status") == "failed"


async def test_a_retry_avoids_the_worker_that_failed_while_another_could(desk: Desk) -> None:
    await desk.add("j")
    first, second = await desk.worker("w1"), await desk.worker("w2")
    await first.start()
    await first.fail("j")
    await desk.live(2001, first, second)
    assert (await first.claim()).outcome == "none"
    assert await second.take() == "j"


async def test_the_avoided_worker_gets_it_when_no_other_is_left(desk: Desk) -> None:
    await desk.add("j")
    first, second = await desk.worker("w1"), await desk.worker("w2")
    await first.start()
    await first.fail("j")
    await second.call("bye")
    await desk.live(2001, first)
    assert await first.take() == "j"


async def test_the_avoided_worker_gets_it_when_the_other_takes_nothing_for_long(desk: Desk) -> None:
    await desk.add("j")
    first, second = await desk.worker("w1"), await desk.worker("w2")
    await desk.queue.pause("worker", "w2", on=True)
    await first.start()
    await first.fail("j")
    await desk.live(590_000, first, second, step=10_000)
    assert (await first.claim()).outcome == "none"
    await desk.live(20_000, first, second, step=10_000)
    assert await first.take() == "j"


async def test_what_had_too_little_memory_goes_to_a_larger_gpu_while_there_is_one(desk: Desk) -> None:
    await desk.add("j", max_attempts=9)
    small = await desk.worker("w1", profile=profile(vram_mb=12_000))
    alike = await desk.worker("w2", profile=profile(vram_mb=12_000))
    large = await desk.worker("w3", profile=profile(vram_mb=24_000))
    await small.start()
    assert (await small.fail("j", "out_of_memory")).flag("will_retry")
    await desk.live(2001, small, alike, large)
    assert [(await worker.claim()).outcome for worker in (small, alike)] == ["none", "none"]
    assert await large.start() == "j"
    await large.fail("j", "out_of_memory")  # nobody has more: it is for the large one again, which has freed its memory
    await desk.live(4001, small, alike, large)
    assert [(await worker.claim()).outcome for worker in (small, alike)] == ["none", "none"]
    assert await large.start() == "j"
    await large.call("bye")
    await desk.live(5001, small, alike)
    assert await alike.take() == "j"


async def test_what_had_too_little_memory_avoids_its_worker_where_none_is_larger(desk: Desk) -> None:
    await desk.add("j")
    first, second = await desk.worker("w1"), await desk.worker("w2")
    await first.start()
    await first.fail("j", "out_of_memory")
    await desk.live(2001, first, second)
    assert (await first.claim()).outcome == "none"
    assert await second.take() == "j"


async def test_a_hand_back_for_a_missing_file_goes_elsewhere_and_counts_nothing(desk: Desk) -> None:
    await desk.add("j", nodes=["A"])
    first = await desk.worker("w1", profile=profile(["a", "lora"], ["A"]))
    second = await desk.worker("w2", profile=profile(["lora"], ["A"]))
    assert await first.take() == "j"
    answer = await first.fail("j", "validation_failed", hand_back=1, missing="m:lora")
    assert (answer.text("status"), answer.flag("will_retry")) == ("pending", True)
    assert desk.log("j")[-1][1]["reason"] == "handed_back"
    assert (desk.field("j", "uncounted"), desk.field("j", "handbacks")) == ("1", "1")
    assert (await first.claim()).outcome == "none"
    assert await second.take() == "j"
    fleet = {row.text("profile"): row.lines("without") for row in (await desk.queue.fleet()).rows}
    assert sorted(fleet.values()) == [[], ["m:lora"]]
    await desk.add("k", models=["lora"])
    assert (await first.claim()).outcome == "none"


async def test_a_hand_back_for_another_reason_avoids_the_worker(desk: Desk) -> None:
    await desk.add("j")
    first, second = await desk.worker("w1"), await desk.worker("w2")
    await first.take()
    await first.fail("j", "validation_failed", hand_back=1)
    assert (await first.claim()).outcome == "none"
    assert await second.take() == "j"


async def test_hand_backs_end_as_validation_failed(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    for n in range(5):
        assert await worker.take() == "j"
        answer = await worker.fail("j", "node_error", hand_back=1)
        assert answer.text("status") == ("pending" if n < 4 else "failed")
    assert (await desk.queue.job("j")).text("error_code") == "validation_failed"


async def test_a_worker_lost_while_running_is_a_crash(desk: Desk) -> None:
    await desk.submit("j", "k")
    worker = await desk.worker()
    await worker.start()
    await desk.live(LEASE_MS + 2000)
    assert await desk.status("j") == "pending"
    assert desk.log("j")[-1][1]["reason"] == "worker_lost"
    assert desk.field("j", "crashes") == "1"
    assert (await worker.heartbeat("j")).outcome == "unknown"
    other = await desk.worker("w2")
    assert await other.take() == "j"


async def test_three_crashes_make_a_dead_letter(desk: Desk) -> None:
    await desk.add("j", max_attempts=9)
    for n in range(3):
        worker = await desk.worker(f"w{n}")
        await worker.start()
        await desk.queue.call("gone", [("instance", worker.instance)])
    kind, data = desk.log("j")[-1]
    assert (kind, data["error"]["code"], data["dead_letter"]) == ("fail_job", "worker_lost", True)
    assert {"crashes": 3, "worker_id": "w2", "attempt": 3}.items() <= data["error"]["details"].items()
    assert desk.client.zrange(desk.key("dead"), 0, -1) == [b"j"]
    assert (await desk.queue.stats()).number("dead") == 1
    assert (await desk.queue.retry("j")).number("round") == 2
    assert desk.client.zcard(desk.key("dead")) == 0


async def test_a_worker_lost_before_the_start_counts_nothing(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.take()
    await desk.queue.call("gone", [("instance", worker.instance)])
    assert (desk.field("j", "crashes"), desk.field("j", "uncounted")) == (None, "1")
    assert await desk.status("j") == "pending"


async def test_a_worker_lost_while_finishing_is_an_attempt_and_no_crash(desk: Desk) -> None:
    await desk.add("j", max_attempts=2)
    for n in range(2):
        worker = await desk.worker(f"w{n}")
        await worker.start()
        await worker.executed("j")
        await desk.queue.call("gone", [("instance", worker.instance)])
    record = await desk.queue.job("j")
    assert (record.text("status"), record.text("error_code"), record.text("crashes")) == ("failed", "worker_lost", "")
    assert "dead_letter" not in desk.log("j")[-1][1]


async def test_a_job_put_back_keeps_its_place(desk: Desk) -> None:
    await desk.submit("j1", "j2", "j3")
    worker = await desk.worker()
    assert await worker.start() == "j1"
    await desk.queue.call("gone", [("instance", worker.instance)])
    await desk.add("j4")
    other = await desk.worker("w2", slots=9)
    assert [await other.take() for _ in range(4)] == ["j1", "j2", "j3", "j4"]


async def test_a_gap_of_redis_gives_one_lease_of_grace(desk: Desk) -> None:
    """Nobody could keep a lease while Redis stood still."""
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    await desk.queue.sweep()
    desk.tick(5 * LEASE_MS)
    assert (await desk.queue.sweep()).number("reaped") == 0
    await desk.live(LEASE_MS - 2000)
    assert await desk.status("j") == "processing"
    assert (await worker.heartbeat("j", status="busy")).lines("jobs") == ["j ok"]


async def test_after_the_grace_a_silent_worker_is_lost(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    desk.tick(5 * LEASE_MS)
    await desk.live(LEASE_MS + 2000)
    assert await desk.status("j") == "pending"


async def test_a_broker_that_sweeps_rarely_still_takes_leases_back(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    for _ in range(2):
        desk.tick(2 * LEASE_MS)
        await desk.queue.sweep()
    assert await desk.status("j") == "pending"


async def test_a_claim_takes_lapsed_leases_back(desk: Desk) -> None:
    """Recovery does not hang on brokers: whoever calls next does it."""
    await desk.add("j")
    lost, other = await desk.worker("w1"), await desk.worker("w2")
    await lost.start()
    for _ in range(16):
        desk.tick(2000)
        await other.heartbeat()
    desk.tick(2500)
    assert await other.take() == "j"


async def test_a_claim_may_take_its_own_lease_back(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    for _ in range(2):
        desk.tick(LEASE_MS + 10)
        answer = await worker.claim()
    assert answer.outcome == "unknown"
    await desk.queue.sweep()
    assert (await desk.queue.stats()).number("workers") == 0


async def test_a_held_job_that_is_not_named_goes_back(desk: Desk) -> None:
    """Its claim's answer was lost: the worker does not know that it has it."""
    await desk.add("j")
    worker = await desk.worker()
    await worker.take()
    for _ in range(17):
        desk.tick(2000)
        await worker.heartbeat()
    assert await desk.status("j") == "pending"
    assert (desk.field("j", "uncounted"), desk.field("j", "crashes")) == ("1", None)
    assert await worker.take() == "j"


async def test_reports_name_a_job_too(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.take()
    for n in range(30):
        desk.tick(2000)
        assert (await worker.report("j", p=n)).outcome == "ok"
        await worker.heartbeat(status="busy")
    assert await desk.status("j") == "processing"


async def test_the_keeper_keeps_a_lease_until_the_worker_hangs(desk: Desk) -> None:
    await desk.queue.configure(hang_ms=60_000)
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    for n in range(1, 40):
        desk.tick(2000)
        await desk.queue.sweep()
        answer = await desk.queue.call("keep", [("instance", worker.instance)])
        assert answer.outcome == ("ok" if n <= 30 else "unknown"), n
    assert await desk.status("j") == "processing"
    await desk.live(LEASE_MS)
    assert await desk.status("j") == "pending"


async def test_cancel_of_a_waiting_job(desk: Desk) -> None:
    await desk.submit("j", "k")
    assert (await desk.queue.cancel("j", "ann", "changed my mind")).text("status") == "cancelled"
    assert desk.log("j")[-1] == (
        "job_update",
        {"status": "cancelled", "attempt": 0, "worker_id": None, "position": None, "reason": "changed my mind"},
    )
    assert (await desk.queue.cancel("j", "ann")).text("status") == "cancelled"
    worker = await desk.worker()
    assert await worker.take() == "k"


@pytest.mark.parametrize("end", ["fail", "finish", "release", "lost", "executed"])
async def test_cancel_of_a_running_job_wins_whatever_its_worker_says(desk: Desk, end: str) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    assert (await desk.queue.cancel("j", reason="enough")).text("status") == "processing"
    assert await worker.inbox() == ["cancel j"]
    assert (await worker.report("j", p=2)).text("cancel") == "enough"
    assert (await worker.heartbeat("j", status="busy")).lines("jobs") == ["j cancel enough"]
    if end == "lost":
        await desk.queue.call("gone", [("instance", worker.instance)])
    elif end == "fail":
        assert (await worker.fail("j")).text("status") == "cancelled"
    elif end == "release":
        await worker.held("release", "j")
    else:
        if end == "executed":
            await worker.executed("j")
        assert (await worker.finish("j")).text("status") == "cancelled"
    assert await desk.status("j") == "cancelled"
    assert desk.story("j")[-1] == "cancelled"


async def test_cancel_of_a_finished_job_is_a_conflict(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    await worker.finish("j")
    answer = await desk.queue.call("cancel", [("job", "j"), ("tenant", "")])
    assert (answer.outcome, answer.text("status")) == ("conflict", "completed")


async def test_what_runs_over_its_time_fails_with_timeout(desk: Desk) -> None:
    await desk.add("j", timeout_s=10.5, max_attempts=1)
    worker = await desk.worker()
    await worker.start()
    await desk.live(10_000 + LEASE_MS, worker)
    assert await desk.status("j") == "processing"
    await desk.live(4000, worker)
    assert (await desk.queue.job("j")).text("error_code") == "timeout"
    assert "cancel j" in await worker.inbox()
    assert (await worker.report("j", p=9)).outcome == "stale_lease"
    assert desk.client.zcard(desk.key("deadline")) == 0


async def test_a_forced_retry_starts_a_new_round(desk: Desk) -> None:
    await desk.add("j", max_attempts=1)
    worker = await desk.worker()
    await worker.start()
    await worker.fail("j")
    answer = await desk.queue.retry("j", "ann")
    assert answer.number("round") == 2
    assert (await desk.queue.retry("j", "ann")).number("round") == 2
    assert desk.log("j")[-1][1] == {
        "status": "pending", "attempt": 1, "worker_id": None, "position": 1, "reason": "forced_retry",
    }  # fmt: skip
    assert all(desk.life_ms(key) == -1 for key in ("j:j", "b:j", "e:j"))
    given = await worker.claim()
    assert (given.number("attempt"), given.number("round")) == (2, 2)
    await worker.report("j")
    await worker.finish("j")
    record = await desk.queue.job("j")
    assert (record.text("status"), record.text("error"), record.number("round")) == ("completed", "", 2)


async def test_a_running_job_cannot_be_forced(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    answer = await desk.queue.call("retry", [("job", "j")])
    assert (answer.outcome, answer.text("status")) == ("conflict", "processing")
