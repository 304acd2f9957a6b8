"""Claims that stay: a submit gives its job to an idle worker at once, by the rules of a claim."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.queue.queue import Answer, parse
from comfyui_emq_node.resp import parse as parse_reply
from tests.support.desk import LEASE_MS, Desk, Worker, heard
from tests.support.jobs import profile

GIVEN = b"job\n"


async def wait_for_a_job(worker: Worker, **pairs: Any) -> str:
    """Claim, get nothing, and leave the claim; answers its token."""
    token = worker.desk.token()
    answer = await worker.claim(token=token, standing=1, **pairs)
    assert (answer.outcome, answer.flag("standing")) == ("none", True)
    return token


def hint(worker: Worker) -> bytes:
    """Take the newest hint; empty: there is none."""
    taken = worker.desk.client.lpop(worker.desk.key(f"in:{worker.instance}")) or b""
    assert isinstance(taken, bytes)
    return taken


def given(worker: Worker) -> Answer:
    """Take the job that came in a hint."""
    text = hint(worker)
    assert text.startswith(GIVEN), text
    return worker.took(parse(parse_reply(text, len(GIVEN))[0]))


@pytest.fixture
async def worker(desk: Desk) -> Worker:
    return await desk.worker()


async def test_a_submit_answers_a_claim_that_stands(desk: Desk, worker: Worker) -> None:
    token = await wait_for_a_job(worker)
    accepted = await desk.add("a")
    assert (accepted.text("status"), accepted.text("position"), accepted.flag("notified")) == ("pending", "1", True)
    answer = given(worker)
    assert (answer.outcome, answer.text("job_id"), answer.text("lease")) == ("job", "a", token)
    assert answer.pairs["payload"] == (await desk.queue.payload("a")).pairs["payload"]
    assert desk.story("a") == ["pending", "claimed"]
    assert (await worker.report("a")).outcome == "ok"
    assert (await worker.finish("a")).text("status") == "completed"


async def test_its_answer_is_what_a_claim_would_have_got(desk: Desk, worker: Worker) -> None:
    await wait_for_a_job(worker)
    await desk.add("a")
    at_once = given(worker).pairs
    other = await desk.worker("w2")
    await worker.finish("a")
    await desk.add("b")
    claimed = (await other.claim()).pairs
    changed = {name for name in at_once.keys() | claimed.keys() if at_once.get(name) != claimed.get(name)}
    assert changed <= {"job_id", "lease", "payload"}


async def test_who_listens_hears_of_the_claim(desk: Desk, worker: Worker) -> None:
    await wait_for_a_job(worker)
    with desk.listening("ev", "a") as events:
        await desk.add("a")
        told = heard(events)["data"].split(b"\n")
    assert told[0] == b"2-0"
    assert json.loads(told[2])["status"] == "claimed"


async def test_an_answer_that_was_lost_comes_again(desk: Desk, worker: Worker) -> None:
    token = await wait_for_a_job(worker)
    await desk.add("a")
    assert hint(worker)
    assert (await worker.heartbeat()).flag("work")
    again = await worker.claim(token=token, standing=1)
    assert (again.text("job_id"), again.text("attempt")) == ("a", "1")
    assert not (await worker.heartbeat("a")).flag("work")


async def test_the_token_gets_one_job_only(desk: Desk, worker: Worker) -> None:
    token = await wait_for_a_job(worker)
    await desk.add("a")
    await desk.add("b")
    given(worker)
    await worker.finish("a")
    answer = await worker.claim(token=token, standing=1)
    assert (answer.outcome, answer.flag("standing")) == ("none", False)
    assert await worker.take() == "b"


async def test_a_job_that_its_worker_knows_of_stays_while_the_process_hangs(desk: Desk, worker: Worker) -> None:
    await wait_for_a_job(worker)
    await desk.add("a")
    given(worker)
    await worker.heartbeat("a")
    desk.tick(LEASE_MS // 3)
    await worker.call("keep")
    assert await desk.status("a") == "claimed"


async def test_a_job_that_is_given_to_a_process_that_hangs_goes_on(desk: Desk, worker: Worker) -> None:
    await wait_for_a_job(worker)
    await desk.add("a")
    desk.tick(LEASE_MS // 8)
    await worker.call("keep")
    assert await desk.status("a") == "claimed"
    desk.tick(LEASE_MS // 4)
    await worker.call("keep")
    assert await desk.status("a") == "pending"
    other = await desk.worker("w2")
    assert await other.take() == "a"
    given(worker)
    assert (await worker.report("a")).outcome == "stale_lease"


async def test_a_worker_that_was_not_heard_of_is_given_nothing(desk: Desk, worker: Worker) -> None:
    await wait_for_a_job(worker)
    desk.tick(LEASE_MS // 3)
    await desk.add("a")
    assert hint(worker) == b"work"
    assert await desk.status("a") == "pending"


@pytest.mark.parametrize("scope", ["pool", "tenant", "worker"])
async def test_what_is_paused_is_given_nothing(desk: Desk, worker: Worker, scope: str) -> None:
    await wait_for_a_job(worker)
    names = {"pool": "", "tenant": "ann", "worker": worker.name}
    await desk.queue.pause(scope, names[scope], True)
    await worker.inbox()
    await desk.add("a")
    assert (await desk.status("a"), hint(worker)) == ("pending", b"")


async def test_a_draining_worker_is_given_nothing(desk: Desk, worker: Worker) -> None:
    await wait_for_a_job(worker)
    await desk.queue.drain(worker.name)
    await worker.inbox()
    await desk.add("a")
    assert (await desk.status("a"), hint(worker)) == ("pending", b"")


async def test_a_tenant_at_its_cap_is_given_nothing(desk: Desk, worker: Worker) -> None:
    await desk.queue.tenant("ann", max_running=1)
    await desk.add("a")
    busy = await desk.worker("w2")
    await busy.start()
    await wait_for_a_job(worker)
    await desk.add("b")
    assert await desk.status("b") == "pending"


async def test_a_job_that_others_come_before_waits_for_its_turn(desk: Desk, worker: Worker) -> None:
    await wait_for_a_job(worker)
    await desk.submit("a", "b")
    assert hint(worker) == b"work"
    await desk.add("c", priority=5)
    assert [await desk.status(job) for job in ("a", "b", "c")] == ["pending"] * 3
    assert await worker.take() == "c"


async def test_a_job_is_not_given_before_one_that_waits_for_a_woken_worker(desk: Desk) -> None:
    workers = [await desk.worker(name) for name in ("w1", "w2")]
    await desk.add("a", delay_ms=1000)
    for worker in workers:
        await wait_for_a_job(worker)
    desk.tick(1000)
    await desk.queue.sweep()
    await desk.add("b")
    assert [hint(worker) for worker in workers] == [b"work", b"work"]
    assert [await worker.take() for worker in workers] == ["a", "b"]


async def test_jobs_that_it_cannot_run_hold_nothing_up(desk: Desk) -> None:
    await desk.add("other", models=("B",))
    worker = await desk.worker(profile=profile(("A",)))
    await wait_for_a_job(worker)
    await desk.add("a", models=("A",))
    assert given(worker).text("job_id") == "a"


async def test_a_large_job_is_claimed(desk: Desk, worker: Worker) -> None:
    token = await wait_for_a_job(worker)
    await desk.add("a", payload=b"{" + b" " * 20_000 + b"}")
    assert hint(worker) == b"work"
    assert (await worker.claim(token=token, standing=1)).text("job_id") == "a"


async def test_a_claim_that_does_not_stay_is_woken(desk: Desk, worker: Worker) -> None:
    assert (await worker.claim()).outcome == "none"
    await desk.add("a")
    assert hint(worker) == b"work"
    assert await desk.status("a") == "pending"


async def test_a_job_that_expires_may_be_given(desk: Desk, worker: Worker) -> None:
    await wait_for_a_job(worker)
    await desk.add("a", expires_ms=1000)
    given(worker)
    assert not desk.client.exists(desk.key("expiry"))
