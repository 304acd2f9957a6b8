"""How jobs reach the queue: many at once, and from a caller of the previous release."""

from __future__ import annotations

from broker.queue.queue import SUBMIT_CHUNK, flatten, parse
from tests.support.desk import Desk
from tests.support.jobs import new_job


async def test_a_bulk_in_several_calls_keeps_its_order(desk: Desk) -> None:
    count = 2 * SUBMIT_CHUNK + 3
    answers = await desk.submit(*(f"j{number}" for number in range(count)))
    assert [answer.number("position") for answer in answers] == list(range(1, count + 1))
    assert all(answer.flag("exact") for answer in answers)
    worker = await desk.worker(slots=count)
    claimed = [(await worker.claim()).text("job_id") for _ in range(count)]
    assert claimed == [f"j{number}" for number in range(count)]


async def test_positions_in_a_bulk_count_the_lanes_of_others(desk: Desk) -> None:
    """A lane that is not its class's only one is counted each time."""
    await desk.submit("a0", "a1", tenant="ann")
    answers = await desk.submit("b0", "b1", "b2", tenant="bob")
    for answer in answers:
        record = await desk.queue.job(answer.text("job_id"))
        assert (answer.number("position"), answer.flag("exact")) == (record.number("position"), True)


async def test_a_bulk_of_mixed_priorities_is_numbered_as_it_will_be_served(desk: Desk) -> None:
    jobs = [new_job(f"j{number}", priority=priority) for number, priority in enumerate((0, 5, 0, 5))]
    answers = await desk.queue.submit("ann", jobs)
    assert [answer.number("position") for answer in answers] == [1, 1, 3, 2]


async def test_spec_and_payload_may_come_apart(desk: Desk) -> None:
    """As a broker of the previous release sends them; defaults that it names are no difference."""
    pairs = [pair for pair in new_job("j").pairs() if pair[0] not in ("payload", "spec_len")]
    old = [("tenant", "ann"), *pairs, ("payload", b"{body}"), ("spec", b"{spec}"), ("max_attempts", 3)]
    raw = await desk.queue._caller.fcall("emq_submit", desk.queue.prefix, flatten(old))
    assert parse(raw[0]).outcome == "ok"
    stored = await desk.queue.payload("j", "ann")
    assert (stored.pairs["payload"], stored.pairs["spec"]) == (b"{body}", b"{spec}")
    assert (await (await desk.worker()).claim()).text("job_type") == "comfyui"
