"""What a submit hands to the queue."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Conflict, EmqError, PayloadTooLarge
from broker.jobs.fleet import Fleet
from broker.jobs.payloads import decode_payload, encode_payload
from broker.jobs.submission import Submitter
from broker.queue.queue import Queue
from broker.settings import Settings

GRAPH: dict[str, Any] = {"1": {"class_type": "A", "inputs": {"text": "x"}}}


@given(st.dictionaries(st.text(max_size=5).filter(lambda t: "\x00" not in t), st.text("ab", max_size=300), max_size=5))
def test_payloads_come_back_and_are_never_larger(payload: dict[str, str]) -> None:
    stored = encode_payload(payload)
    assert decode_payload(stored) == payload


def test_a_payload_is_packed_when_that_is_smaller() -> None:
    assert encode_payload({"a": 1}) == b'{"a":1}'
    packed = encode_payload({"a": "x" * 1000})
    assert packed[:1] == b"x"
    assert len(packed) < 100


@pytest.fixture
def submitter(queue: Queue) -> Submitter:
    return Submitter(queue, Fleet(queue), Settings())


async def test_the_body_decides_over_a_key_not_its_delivery(submitter: Submitter) -> None:
    first = await submitter.submit("t", {"payload": GRAPH, "idempotency_key": "k", "message_id": "1"})
    same = {"payload": GRAPH, "idempotency_key": "k", "message_id": "2", "timestamp": 5, "subscribe": False}
    assert (await submitter.submit("t", same)).job_id == first.job_id
    other = await submitter.submit("another tenant", same)
    assert (other.duplicate, other.job_id == first.job_id) == (False, False)
    with pytest.raises(Conflict):
        await submitter.submit("t", {**same, "metadata": 1})


async def test_the_pools_limit_of_a_run_holds_where_a_job_has_none_of_its_own(queue: Queue) -> None:
    submitter = Submitter(queue, Fleet(queue), Settings(timeout_s=90))
    for own, wanted in ({}, 90), ({"timeout_s": 5}, 5):
        accepted = await submitter.submit("t", {"payload": GRAPH, **own})
        assert (await queue.job(accepted.job_id or "")).number("timeout_s") == wanted


async def test_size_comes_before_everything(submitter: Submitter) -> None:
    for message in ({"payload": "x" * 2_000_000}, {"payload": {"nodes": "x" * 2_000_000}, "priority": "high"}):
        with pytest.raises(PayloadTooLarge) as caught:
            await submitter.submit("t", message)
        assert caught.value.details["limit"] == 1024 * 1024


async def test_metadata_comes_back_whatever_it_is(submitter: Submitter, queue: Queue) -> None:
    from broker.jobs.records import public_job

    for value in ({"order": 17}, [1, 2], "text", 5, False, None, {}, []):
        accepted = await submitter.submit("t", {"payload": GRAPH, "metadata": value})
        assert accepted.job_id
        record = public_job(await queue.job(accepted.job_id), lambda tenant, job, result: result)
        assert record["metadata"] == value


async def test_one_bad_job_does_not_spoil_the_others(submitter: Submitter) -> None:
    outcomes = await submitter.submit_many("t", [{"payload": GRAPH}, {}, {"payload": GRAPH, "depends_on": ["x"]}], "g")
    assert [o.code if isinstance(o, EmqError) else o.status for o in outcomes] == [
        "pending",
        "bad_message",
        "not_found",
    ]


async def test_another_job_type_needs_no_graph(submitter: Submitter, queue: Queue) -> None:
    accepted = await submitter.submit("t", {"payload": {"steps": 3}, "job_type": "simulation"})
    assert accepted.job_id
    stored = await queue.payload(accepted.job_id)
    assert decode_payload(stored.pairs["payload"]) == {"steps": 3}
