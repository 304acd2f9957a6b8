"""How jobs reach the queue: many at once, and from a caller of the previous release."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from broker.errors import Unavailable
from broker.queue.in_order import Args, in_order
from broker.queue.new_job import SUBMIT_BYTES, SUBMIT_CHUNK, parts_of, submission
from broker.queue.queue import Caller, Queue, parse, require
from broker.queue.seal import Seal
from tests.support.desk import Desk
from tests.support.jobs import new_job, profile


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


def kept(desk: Desk) -> dict[str, Any]:
    """All that the pool's keys have."""
    client, out = desk.client, dict[str, Any]()
    for key in client.scan_iter(match=f"{desk.queue.prefix}*", count=1000):
        reads: dict[object, Callable[[bytes], object]] = {
            b"hash": client.hgetall,
            b"string": client.get,
            b"set": client.smembers,
            b"list": lambda name: client.lrange(name, 0, -1),
            b"zset": lambda name: client.zrange(name, 0, -1, withscores=True),
        }
        out[key.decode().removeprefix(desk.queue.prefix)] = reads[client.type(key)](key)
    return out


@pytest.mark.parametrize("seed", range(4))
async def test_a_bulk_leaves_what_its_jobs_leave_one_by_one(desk: Desk, seed: int) -> None:
    """Jobs that follow others of their lane are added in fewer steps; nobody can tell."""
    draw = random.Random(seed)
    await desk.queue.tenant("ann", weight=3)
    classes, levels = (("a.safetensors",), ("b.safetensors",)), (0, 7)
    await desk.queue.submit("bob", [new_job(f"bob{n}", models=classes[1], priority=n % 2 * 7) for n in range(4)])
    for number, models in enumerate(classes):
        for priority in levels:
            await desk.add(f"first{number}-{priority}", models=models, priority=priority)
    rare: list[dict[str, Any]] = [{}, {}, {}, {}, {"estimate": "100 200"}, {"labels": ["0badcafe"]}, {"delay_ms": 5000}]
    rare += [{"timeout_s": 60}, {"group": "g"}, {"depends_on": ["first0-0"]}]
    more: dict[str, Any] = {"models": classes[0], "priority": 0}
    jobs = []
    for number in range(60):
        if draw.random() < 0.3:
            more = {"models": draw.choice(classes), "priority": draw.choice(levels)}
        own = draw.choice([*rare, {"idempotency_key": f"key-{number}"}])
        jobs.append(new_job(f"j{number}", **more, **own))
    before = {key: desk.client.dump(key) for key in desk.client.scan_iter(match=f"{desk.queue.prefix}*")}
    together = [
        answer for start in range(0, 60, 15) for answer in await desk.queue.submit("ann", jobs[start : start + 15])
    ]
    bulk = kept(desk)
    desk.client.delete(*desk.client.scan_iter(match=f"{desk.queue.prefix}*"))
    for key, value in before.items():
        desk.client.restore(key, 0, value or b"")
    assert [(await desk.queue.submit("ann", [job]))[0] for job in jobs] == together
    assert kept(desk) == bulk


async def test_spec_and_payload_may_come_apart(desk: Desk) -> None:
    """As a broker of the previous release sends them; defaults that it names are no difference."""
    now = new_job("j").arguments()
    body = now.index("spec_len")
    old = [*now[:body], "payload", b"{body}", "spec", b"{spec}", "max_attempts", "3", *now[body + 4 :]]
    raw = await desk.queue._caller.fcall("emq_submit", desk.queue.prefix, ["tenant", "ann", *old])
    assert parse(raw[0]).outcome == "ok"
    stored = await desk.queue.payload("j", "ann")
    assert (stored.pairs["payload"], stored.pairs["spec"]) == (b"{body}", b"{spec}")
    assert (await (await desk.worker()).claim()).text("job_type") == "comfyui"


async def test_what_is_as_of_the_job_before_is_left_out(desk: Desk) -> None:
    """The class and how long the spec is; each job gets its own back."""
    models = (["a.safetensors"], ["a.safetensors"], ["b.safetensors"], ["a.safetensors"], ["a.safetensors"])
    specs = (b'{"n":1}', b'{"n":2}', b'{"n":3}', b'{"n":10}', b'{"n":100}')
    jobs = [
        replace(new_job(f"j{n}", models=names, payload=b'{"body":%d}' % n), spec=spec)
        for n, (names, spec) in enumerate(zip(models, specs, strict=True))
    ]
    args = submission("ann", None, jobs, Seal())
    assert [args[n + 1] for n, name in enumerate(args) if name == "again"] == ["j1", "j4"]
    assert args.count("spec_len") == 4
    assert {answer.outcome for answer in await desk.queue.submit("ann", jobs)} == {"ok"}
    for job in jobs:
        stored = await desk.queue.payload(job.job_id, "ann")
        assert (stored.pairs["spec"], stored.pairs["payload"]) == (job.spec, job.payload)
        assert (await desk.queue.job(job.job_id)).text("class") == job.job_class


async def test_a_class_is_known_by_what_a_refused_job_said(desk: Desk) -> None:
    """Of the jobs of one class in one call only the first says what the class needs."""
    lost = new_job("lost", models=["a.safetensors"], depends_on=["nobody"])
    answers = await desk.queue.submit("ann", [lost, new_job("j", models=["a.safetensors"])])
    assert [answer.outcome for answer in answers] == ["not_found", "ok"]
    assert answers[1].text("missing") == "*"
    assert (await (await desk.worker("poor")).claim()).outcome == "none"
    able = await desk.worker("able", profile=profile(["a.safetensors"]))
    assert await able.take() == "j"


def test_a_call_has_so_many_jobs_and_bytes() -> None:
    jobs = [new_job(payload=b"x" * size) for size in (1, SUBMIT_BYTES, 5, SUBMIT_BYTES // 2, SUBMIT_BYTES // 2)]
    jobs += [new_job() for _ in range(SUBMIT_CHUNK)]
    parts = list(parts_of(jobs))
    assert [job for part in parts for job in part] == jobs
    assert [len(part) for part in parts] == [1, 1, 2, SUBMIT_CHUNK, 1]
    assert list(parts_of([])) == []


class LostAfter:
    """A caller whose Redis goes away after a number of calls."""

    def __init__(self, caller: Caller, calls: int) -> None:
        self.caller, self.calls = caller, calls

    async def fcall(self, function: str, prefix: str, args: Args) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise Unavailable("Redis is away.")
        return await self.caller.fcall(function, prefix, args)

    def fcalls(self, function: str, prefix: str, calls: Iterable[Args]) -> AsyncGenerator[Any]:
        return in_order(partial(self.fcall, function, prefix), calls)


async def test_a_bulk_that_is_cut_says_which_jobs_are_in(desk: Desk) -> None:
    jobs = [new_job(f"j{number}") for number in range(SUBMIT_CHUNK + 2)]
    cut = Queue(LostAfter(desk.queue._caller, 1), desk.queue.pool)
    answers = await cut.submit("ann", jobs)
    assert [answer.outcome for answer in answers] == ["ok"] * SUBMIT_CHUNK + ["unavailable"] * 2
    with pytest.raises(Unavailable):
        require(answers[-1], "job")
    again = await desk.queue.submit("ann", jobs)
    assert [answer.text("job_id") for answer in again] == [job.job_id for job in jobs]
    assert (await desk.queue.stats("ann")).number("pending") == len(jobs)


async def test_a_bulk_that_reaches_nobody_raises(desk: Desk) -> None:
    with pytest.raises(Unavailable):
        await Queue(LostAfter(desk.queue._caller, 0), desk.queue.pool).submit("ann", [new_job("j")])
