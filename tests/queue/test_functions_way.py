"""One job's way: submit, claim, report, executed, finish, and what repeated calls get."""

from __future__ import annotations

import json

from broker.queue.new_job import Value
from tests.support.desk import Desk, heard
from tests.support.jobs import PAYLOAD, profile


async def test_a_job_goes_its_way(desk: Desk) -> None:
    accepted = await desk.add("j")
    assert accepted.text("status") == "pending"
    assert (accepted.number("position"), accepted.flag("exact")) == (1, True)
    worker = await desk.worker()
    given = await worker.claim()
    assert (given.text("job_id"), given.number("attempt"), given.pairs["payload"]) == ("j", 1, PAYLOAD)
    assert await desk.status("j") == "claimed"
    assert (await worker.report("j")).outcome == "ok"
    assert await desk.status("j") == "processing"
    assert (await worker.finish("j", exec_ms=100)).text("status") == "completed"
    record = await desk.queue.job("j")
    assert json.loads(record.text("result")) == {"outputs": [], "timings": {}}
    assert json.loads(record.text("progress"))["progress"] == 100
    assert desk.story("j") == [
        "pending", "claimed", "processing", "update_job_progress", "completed", "complete_job",
    ]  # fmt: skip


async def test_events_have_the_fields_of_the_protocol(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    await worker.finish("j", result='{"outputs":[{"filename":"a.png"}],"timings":{"execution_ms":3}}')
    log = desk.log("j")
    assert log[0] == (
        "job_update", {"status": "pending", "attempt": 0, "worker_id": None, "position": 1, "reason": None},
    )  # fmt: skip
    assert log[1][1]["worker_id"] == "w"
    assert log[3] == ("update_job_progress", log[3][1])
    assert log[3][1]["progress"] == 100
    assert log[5] == (
        "complete_job",
        {
            "status": "completed", "worker_id": "w", "attempt": 1,
            "result": {"outputs": [{"filename": "a.png"}], "timings": {"execution_ms": 3}},
        },
    )  # fmt: skip


async def test_a_payload_comes_back_as_it_was(desk: Desk) -> None:
    """Lua never reads it: every byte value, large integers, empty lists."""
    payload, spec = bytes(range(256)) * 40, b'{"big":9007199254740993,"none":[]}'
    await desk.add("j", payload=payload, spec=spec)
    worker = await desk.worker()
    assert (await worker.claim()).pairs["payload"] == payload
    answer = await desk.queue.payload("j", "ann")
    assert (answer.pairs["payload"], answer.pairs["spec"]) == (payload, spec)
    assert (await desk.queue.job("j")).pairs["spec"] == spec


async def test_submitting_again_with_the_same_id_answers_the_same(desk: Desk) -> None:
    first = await desk.add("j")
    again = (await desk.submit("j"))[0]
    assert (again.outcome, again.text("job_id")) == ("ok", "j")
    assert again.text("created_at") == first.text("created_at")
    assert desk.story("j") == ["pending"]


async def test_an_id_of_another_tenant_is_refused(desk: Desk) -> None:
    await desk.add("j", "ann")
    assert (await desk.submit("j", tenant="bob"))[0].outcome == "conflict"


async def test_an_idempotency_key_gives_the_first_job(desk: Desk) -> None:
    await desk.add("j1", idempotency_key="k", body_digest="b")
    again = (await desk.submit("j2", idempotency_key="k", body_digest="b"))[0]
    assert (again.outcome, again.text("job_id")) == ("duplicate", "j1")
    other = (await desk.submit("j3", idempotency_key="k", body_digest="x"))[0]
    assert (other.outcome, other.text("reason")) == ("conflict", "idempotency_key")
    assert (await desk.submit("j4", tenant="bob", idempotency_key="k", body_digest="b"))[0].outcome == "ok"


async def test_twins_in_one_call_are_one_job(desk: Desk) -> None:
    answers = await desk.submit("j1", "j2", idempotency_key="k", body_digest="b")
    assert [a.outcome for a in answers] == ["ok", "duplicate"]
    assert answers[1].text("job_id") == "j1"


async def test_a_claim_that_is_repeated_gets_the_same_job(desk: Desk) -> None:
    await desk.add("j1")
    await desk.add("j2")
    worker = await desk.worker(slots=4)
    first = await worker.claim(token="a" * 32)
    again = await worker.claim(token="a" * 32)
    assert (first.pairs, again.outcome) == (again.pairs, "job")
    assert await worker.take() == "j2"


async def test_finishing_claims_the_next_in_the_same_call(desk: Desk) -> None:
    await desk.submit("j1", "j2", "j3")
    worker = await desk.worker()
    await worker.start()
    fused: dict[str, Value | None] = {"claim": 1, "claim_token": "b" * 32}
    answer = await worker.finish("j1", **fused)
    assert answer.next is not None
    assert answer.next.text("job_id") == "j2"
    again = await worker.finish("j1", **fused)
    assert (again.text("status"), again.flag("repeated")) == ("completed", True)
    assert again.next is not None
    assert again.next.pairs == answer.next.pairs
    assert desk.story("j1").count("complete_job") == 1


async def test_an_executed_job_frees_the_slot_and_keeps_its_lease(desk: Desk) -> None:
    await desk.submit("j1", "j2")
    worker = await desk.worker()
    await worker.start()
    answer = await worker.executed("j1", exec_ms=50, timings="{}", claim=1, claim_token="b" * 32)
    assert answer.next is not None
    worker.took(answer.next)
    assert answer.next.text("job_id") == "j2"
    assert (desk.field("j1", "phase"), await desk.status("j1")) == ("finishing", "processing")
    assert (await worker.executed("j1", claim=1, claim_token="b" * 32)).flag("repeated")
    assert (await worker.finish("j1")).text("status") == "completed"


async def test_uploads_are_bounded(desk: Desk) -> None:
    await desk.queue.configure(max_finishing=2)
    await desk.submit("j1", "j2", "j3")
    worker = await desk.worker()
    for job in ("j1", "j2"):
        await worker.start()
        await worker.executed(job)
    assert (await worker.claim()).outcome == "busy"
    await worker.finish("j1")
    assert await worker.take() == "j3"


async def test_one_job_may_be_claimed_ahead(desk: Desk) -> None:
    await desk.submit("j1", "j2", "j3")
    worker = await desk.worker()
    await worker.start()
    assert (await worker.claim()).outcome == "busy"
    assert await worker.take(ahead=1) == "j2"
    assert (await worker.claim(ahead=1)).outcome == "busy"
    assert (await worker.held("release", "j2", reason="not started")).outcome == "ok"
    assert desk.log("j2")[-1][1]["reason"] == "not started"
    assert desk.field("j2", "uncounted") == "1"


async def test_a_named_job_is_given_or_refused_with_a_reason(desk: Desk) -> None:
    await desk.submit("j1", "j2")
    await desk.add("big", models=["huge"])
    worker = await desk.worker(slots=9)
    assert await worker.take(job="j2") == "j2"
    assert (await worker.claim(job="nobody")).outcome == "not_found"
    taken = await worker.claim(job="j2")
    assert (taken.outcome, taken.text("reason")) == ("conflict", "state")
    unfit = await worker.claim(job="big")
    assert (unfit.outcome, unfit.text("reason")) == ("conflict", "requirements")


async def test_a_stale_token_changes_nothing(desk: Desk) -> None:
    await desk.add("j")
    first = await desk.worker("w1")
    await first.start()
    await desk.queue.call("gone", [("instance", first.instance)])
    second = await desk.worker("w2")
    await second.start()
    before = desk.log("j")
    for function in ("report", "preview", "executed", "finish", "fail", "release"):
        answer = await first.held(function, "j", p=9, data="{}", result='{"mine":1}', code="node_error")
        assert answer.outcome == "stale_lease", function
    assert desk.log("j") == before
    assert (await second.finish("j")).text("status") == "completed"


async def test_a_finished_record_and_all_around_it_has_a_life_time(desk: Desk) -> None:
    await desk.queue.configure(ttl_completed_ms=60_000)
    await desk.add("j", idempotency_key="k")
    worker = await desk.worker()
    await worker.start()
    await worker.report("j", store=1)
    await worker.finish("j")
    for key in ("j:j", "b:j", "e:j", "q:ann:k"):
        assert desk.life_ms(key) > 0, key
    assert desk.life_ms("pr:j") == -2
    desk.tick(61_000)
    assert (await desk.queue.sweep()).number("trimmed") == 1
    assert desk.client.exists(*(desk.key(k) for k in ("j:j", "b:j", "e:j"))) == 0
    assert desk.client.zcard(desk.key("fin:completed")) == 0
    assert (await desk.queue.stats()).number("completed") == 0
    assert (await desk.queue.stats()).number("completed_total") == 1


async def test_finished_jobs_are_capped_in_number(desk: Desk) -> None:
    await desk.queue.configure(max_finished=2)
    worker = await desk.worker()
    for n in range(4):
        await desk.add(f"j{n}")
        await worker.start()
        await worker.finish(f"j{n}")
        desk.tick(10)
    await desk.queue.sweep()
    rows = (await desk.queue.list_jobs("ann", ["completed"])).rows
    assert [row.text("job_id") for row in rows] == ["j3", "j2"]


async def test_progress_is_published_and_the_latest_kept(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.take()
    events = desk.listening("ev", "j")
    await worker.report("j", p=1, data='{"progress":10}', store=1)
    await worker.report("j", p=2, data='{"progress":20}')
    got = [heard(events)["data"].decode() for _ in range(3)]
    events.close()
    assert got[0].startswith("3-0\njob_update\n")
    assert got[1:] == ['3-1\nupdate_job_progress\n{"progress":10}', '3-2\nupdate_job_progress\n{"progress":20}']
    record = await desk.queue.job("j")
    assert (record.text("progress_id"), record.text("progress")) == ("3-1", '{"progress":10}')


async def test_a_preview_is_published_in_parts_only_while_somebody_watches(desk: Desk) -> None:
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    frame = bytes(range(256)) * 130
    assert not (await worker.held("preview", "j", frame=1, data=frame)).flag("watch")
    assert (await desk.queue.watch("j", "ann")).text("worker_id") == "w"
    assert await worker.inbox() == ["watch j"]
    assert (await worker.heartbeat("j", status="busy")).lines("watch") == ["j"]
    assert (await worker.report("j", p=2)).flag("watch")
    previews = desk.listening("pv", "j")
    assert (await worker.held("preview", "j", frame=7, data=frame)).flag("watch")
    heads, joined = [], b""
    for _ in range(3):
        head, _, data = heard(previews)["data"].partition(b"\n")
        assert len(data) < 16 * 1024
        heads.append(head)
        joined += data
    previews.close()
    assert (heads, joined) == ([b"7-1-3", b"7-2-3", b"7-3-3"], frame)


async def test_the_lease_is_the_ticket_of_an_upload(desk: Desk) -> None:
    await desk.queue.configure(max_output_bytes=5000)
    await desk.add("j")
    worker = await desk.worker()
    await worker.start()
    answer = await desk.queue.lease("j", 1, worker.tokens["j"])
    assert (answer.text("tenant"), answer.text("worker_id"), answer.number("max_bytes")) == ("ann", "w", 5000)
    stale = await desk.queue.call("lease", [("job", "j"), ("attempt", 2), ("token", worker.tokens["j"])])
    assert stale.outcome == "stale_lease"
    await worker.finish("j")
    late = await desk.queue.call("lease", [("job", "j"), ("attempt", 1), ("token", worker.tokens["j"])])
    assert late.outcome == "stale_lease"


async def test_the_queue_is_full_for_the_pool_and_for_a_tenant(desk: Desk) -> None:
    await desk.queue.call("tenant", [("tenant", "ann"), ("max_queued", 2)])
    answers = await desk.submit("a1", "a2", "a3")
    assert [a.outcome for a in answers] == ["ok", "ok", "queue_full"]
    assert answers[2].text("scope") == "tenant"
    await desk.queue.configure(max_queued=3)
    answers = await desk.submit("b1", "b2", tenant="bob")
    assert [(a.outcome, a.text("scope")) for a in answers] == [("ok", ""), ("queue_full", "pool")]


async def test_each_job_of_a_bulk_gets_its_own_answer(desk: Desk) -> None:
    ids = [f"j{n:04}" for n in range(1000)]
    answers = await desk.submit(*ids)
    assert [a.text("job_id") for a in answers] == ids
    assert [a.number("position") for a in answers] == list(range(1, 1001))
    assert (await desk.queue.stats()).number("pending") == 1000
    worker = await desk.worker(profile=profile())
    assert await worker.take() == "j0000"
