"""Several ends of jobs in one call: each is as it would be alone, and the workers get the same jobs."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from broker.errors import Unavailable
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.new_job import Value, flatten
from broker.queue.queue import Answer, parse
from broker.queue.turns import GAP, MOST, Turns, answers_of, sections
from tests.support.desk import Desk, Worker
from tests.support.dump import dump
from tests.support.jobs import new_job, profile


def ending(worker: Worker, job: str, token: str | None = None, **pairs: Value | None) -> dict[str, Value | None]:
    """The arguments of a finish."""
    return {
        "turn": "finish", "job": job, "token": token or worker.tokens[job], "result": "{}", "exec_ms": 1, **worker.me,
        "claim": 1, "claim_token": worker.desk.token(), "loaded": "", **pairs,
    }  # fmt: skip


Call = Callable[..., Awaitable[list[Answer]]]


async def in_pairs(desk: Desk, *ends: dict[str, Value | None]) -> list[Answer]:
    """One call of several, as releases before version 5 make it."""
    args = flatten([pair for end in ends for pair in end.items()])
    raw = await desk.queue._caller.fcall("emq_turns", desk.queue.prefix, args)
    return [parse(answer) for answer in raw]


async def in_sections(desk: Desk, *ends: dict[str, Value | None]) -> list[Answer]:
    """One call of several."""
    args = sections([(str(end["turn"]), flatten(list(end.items())[1:])) for end in ends])
    raw = await desk.queue._caller.fcall("emq_turns", desk.queue.prefix, args)
    return [parse(answer) for answer in answers_of(raw)]


@pytest.fixture(params=[in_sections, in_pairs])
def turns(request: pytest.FixtureRequest) -> Call:
    """One call of several, in either form."""
    call: Call = request.param
    return call


async def start(worker: Worker, number: int) -> list[str]:
    return [await worker.start() for _ in range(number)]


async def is_sound(desk: Desk, connection: Connection) -> None:
    assert not [str(finding) for finding in await Check(connection, desk.queue.prefix).run()]


async def test_each_is_as_alone(desk: Desk, turns: Call, connection: Connection) -> None:
    worker, other = await desk.worker("w", slots=3), await desk.worker("v")
    await desk.submit(*"abcdefgh")
    one, two, three = await start(worker, 3)
    four = await other.start()
    await desk.queue.cancel(three)
    answers = await turns(
        desk,
        ending(worker, one),
        ending(worker, two, turn="executed", result=None, timings="{}"),
        ending(worker, three, claim=None),
        ending(other, four, token="0" * 32),
    )
    assert [answer.outcome for answer in answers] == ["ok", "ok", "ok", "stale_lease"]
    assert [answer.text("status") for answer in answers] == ["completed", "", "cancelled", ""]
    assert [answer.next and answer.next.text("job_id") for answer in answers] == ["e", "f", None, None]
    assert [await desk.status(job) for job in (one, two, three, four)] == [
        "completed", "processing", "cancelled", "processing",
    ]  # fmt: skip
    assert desk.story(one)[-2:] == ["completed", "complete_job"]
    assert desk.field(two, "phase") == "finishing"
    await is_sound(desk, connection)


async def test_a_repeated_call_gets_the_same_answers(desk: Desk, turns: Call, connection: Connection) -> None:
    worker = await desk.worker(slots=MOST)
    await desk.submit(*(f"j{n:02}" for n in range(3 * MOST)))
    ends = [ending(worker, job) for job in await start(worker, MOST)]
    first, second = await turns(desk, *ends), await turns(desk, *ends)
    given = [answer.next.text("job_id") for answer in first if answer.next]
    assert given == [f"j{n:02}" for n in range(MOST, 2 * MOST)]
    assert given == [answer.next.text("job_id") for answer in second if answer.next]
    assert [answer.text("repeated") for answer in (*first, *second)] == ["0"] * MOST + ["1"] * MOST
    await is_sound(desk, connection)


async def test_a_call_that_is_repeated_after_another_one_gets_the_same_jobs(
    desk: Desk, turns: Call, connection: Connection
) -> None:
    worker = await desk.worker(slots=MOST)
    await desk.submit(*(f"{n:036}" for n in range(3 * MOST)))
    held = await start(worker, MOST)
    ends = [ending(worker, job) for job in held]
    first = await turns(desk, *ends[: MOST // 2])
    await turns(desk, *ends[MOST // 2 :])
    again = await turns(desk, *ends[: MOST // 2])
    given = [answer.next.text("job_id") for answer in first if answer.next]
    assert given == [f"{n:036}" for n in range(MOST, MOST + MOST // 2)]
    assert given == [answer.next.text("job_id") for answer in again if answer.next]
    await is_sound(desk, connection)


async def test_the_same_token_twice_in_a_call_gets_one_job(desk: Desk, turns: Call) -> None:
    worker = await desk.worker(slots=2)
    await desk.submit(*"abcd")
    token = desk.token()
    answers = await turns(desk, *(ending(worker, job, claim_token=token) for job in await start(worker, 2)))
    assert [answer.next and answer.next.text("job_id") for answer in answers] == ["c", "c"]
    assert await desk.status("d") == "pending"


async def test_who_has_no_slot_left_gets_nothing_and_the_job_waits_on(
    desk: Desk, turns: Call, connection: Connection
) -> None:
    worker = await desk.worker(slots=4)
    await desk.submit(*"abcdefgh")
    held = await start(worker, 3)
    await worker.claim()
    # Two that have ended before free no slot: two slots for four claims.
    await worker.finish(held[0])
    again = [ending(worker, held[0]), ending(worker, held[0]), ending(worker, held[1]), ending(worker, held[2])]
    answers = await turns(desk, *again)
    assert [answer.next and answer.next.outcome for answer in answers] == ["job", "job", "job", "busy"]
    assert [job for job in "abcdefgh" if await desk.status(job) == "pending"] == ["h"]
    await is_sound(desk, connection)
    worker.took(answers[0].next or Answer("none"))
    await worker.finish("e")
    assert await worker.take() == "h"


async def test_what_a_full_worker_leaves_is_for_the_next_one(desk: Desk, turns: Call, connection: Connection) -> None:
    worker, other = await desk.worker("w", slots=2), await desk.worker("v")
    await desk.submit(*"abcdefgh")
    one, two = await start(worker, 2)
    three = await other.start()
    await worker.finish(one)
    ends = [ending(worker, one), ending(worker, one), ending(worker, one), ending(other, three)]
    answers = await turns(desk, *ends, ending(worker, two))
    assert [answer.next and answer.next.text("job_id") for answer in answers] == ["d", "e", "", "f", ""]
    await is_sound(desk, connection)


async def test_a_job_with_the_score_of_the_one_before_it_stays(desk: Desk, turns: Call, connection: Connection) -> None:
    worker = await desk.worker(slots=2)
    await desk.submit(*"abcdef")
    held = await start(worker, 2)
    lanes = desk.client.keys(f"{desk.queue.prefix}n:*")
    assert len(lanes) == 1
    members: Any = desk.client.zrange(lanes[0], 0, -1, withscores=True)
    desk.client.zadd(lanes[0], {members[2][0]: members[1][1]})
    desk.client.hset(f"{desk.queue.prefix}j:e", "score", desk.field("d", "score"))
    answers = await turns(desk, *(ending(worker, job) for job in held))
    assert [answer.next and answer.next.text("job_id") for answer in answers] == ["c", "d"]
    assert [job for job in "cdef" if await desk.status(job) == "pending"] == ["e", "f"]
    await is_sound(desk, connection)
    for answer in answers:
        worker.took(answer.next or Answer("none"))
    answers = await turns(desk, *(ending(worker, job) for job in "cd"))
    assert [answer.next and answer.next.text("job_id") for answer in answers] == ["e", "f"]
    await is_sound(desk, connection)


async def test_an_expired_job_is_passed_over(desk: Desk, turns: Call, connection: Connection) -> None:
    worker = await desk.worker(slots=4)
    await desk.submit(*"abcd")
    await desk.submit("e", "f", expires_ms=1000)
    await desk.submit("g", "h", "i")
    ends = [ending(worker, job) for job in await start(worker, 4)]
    desk.tick(1500)
    answers = await turns(desk, *ends)
    assert [answer.next and answer.next.text("job_id") for answer in answers] == ["g", "h", "i", ""]
    assert (desk.field("e", "error_code"), desk.field("f", "error_code")) == ("expired", "expired")
    await is_sound(desk, connection)


async def crowd(desk: Desk, seed: int) -> list[Worker]:
    """Jobs of several tenants, classes and priorities, caps, models; three workers with many slots."""
    draw = random.Random(seed)
    await desk.queue.call("tenant", [("tenant", "eve"), ("max_running", 3)])
    await desk.queue.call("tenant", [("tenant", "bob"), ("weight", 3)])
    for number in range(90):
        models = draw.choice([[], [], ["A"], ["B"]])
        job = new_job(f"{number:02}", models=models, kind=models, priority=draw.choice([0, 0, 0, 5]))
        await desk.submit_all(draw.choice(["ann", "ann", "bob", "eve"]), [job])
    names = (("w1", ("A",)), ("w2", ("A", "B")), ("w3", ()))
    return [await desk.worker(name, slots=6, profile=profile(models)) for name, models in names]


async def play(desk: Desk, seed: int, together: Call | None = None) -> list[str]:
    """Drain the crowd in rounds, in which all that runs ends; who got what, in order."""
    workers, order, draw = await crowd(desk, seed), list[str](), random.Random(seed)
    held = [(worker, job) for worker in workers for job in await start(worker, 6)]
    while held:
        loaded = {worker.name: draw.choice(["", "A", "B"]) for worker in workers}
        ends = [ending(worker, job, loaded=loaded[worker.name]) for worker, job in held]
        if together:
            answers = await together(desk, *ends)
        else:
            for worker, job in held:
                await worker.finish(job)
            answers = [Answer("ok", next=await claim(worker, end)) for (worker, _), end in zip(held, ends, strict=True)]
        got = [answer.next or Answer("none") for answer in answers]
        held = [(worker, worker.took(one).text("job_id")) for (worker, _), one in zip(held, got, strict=True)]
        order += [f"{worker.name} {job}" for worker, job in held]
        held = [(worker, job) for worker, job in held if job]
        for worker, job in held:
            await worker.report(job)
        desk.tick(700)
    return order


async def claim(worker: Worker, end: dict[str, Value | None]) -> Answer:
    return await worker.call("claim", token=end["claim_token"], loaded=end["loaded"])


@pytest.mark.parametrize("seed", range(4))
async def test_who_gets_what_is_as_if_all_called_one_after_another(
    desk: Desk, queue: Any, turns: Call, seed: int
) -> None:
    alone = await play(desk, seed)
    keys = desk.client.keys(f"{queue.prefix}*")
    desk.client.delete(*keys)
    await queue.configure(lease_ms=30_000, backoff_ms=2000, max_queued=1000)
    together = await play(Desk(queue, desk.client), seed, turns)
    assert together == alone
    assert len(set(alone)) > 50, "what a cap or a model that nobody has holds back is less than this"


async def test_a_job_that_all_rows_share_is_not_claimed_by_name(desk: Desk, turns: Call) -> None:
    worker = await desk.worker(slots=2)
    await desk.submit(*"abcd")
    one, _ = await start(worker, 2)
    answers = await turns(desk, ending(worker, one), ending(worker, one), ending(worker, one))
    assert [answer.text("repeated") for answer in answers] == ["0", "1", "1"]
    assert [answer.next and answer.next.text("job_id") for answer in answers] == ["c", "", ""]
    assert [answer.next and answer.next.outcome for answer in answers] == ["job", "busy", "busy"]


async def test_each_answer_has_what_it_has_alone(desk: Desk, turns: Call) -> None:
    """Of an ordinary job and of one that is not, of ends that are ``ok`` and of others."""
    worker, other = await desk.worker("w", slots=5), await desk.worker("v")
    await desk.queue.call("tenant", [("tenant", "eve"), ("rules", '{"keep":1}')])
    await desk.submit(*"abcdefgh")
    await desk.submit_all("eve", [replace(new_job("odd"), timeout_s=7, trace="00-1-2-01", priority=-1)])
    await desk.queue.watch("odd", px=256)
    jobs = await start(worker, 5)
    desk.tick(1234)
    ends = [ending(worker, job) for job in jobs]
    for at in (1, 3):
        ends[at] = ending(worker, jobs[at], turn="executed", result=None, timings="{}")
    ends[4] |= {"instance": "before"}
    answers = await turns(desk, *ends, ending(other, jobs[0], token="0" * 32))
    assert [answer.outcome for answer in answers] == ["ok"] * 5 + ["stale_lease"]
    assert [sorted(answer.pairs) for answer in answers[:4]] == [["repeated", "status"], ["repeated"]] * 2
    claims = [answer.next or Answer("none") for answer in answers]
    assert [claim.text("job_id", claim.outcome) for claim in claims] == ["f", "g", "h", "odd", "superseded", "none"]
    for claim, end in zip(claims[:4], ends, strict=False):
        assert claim == await worker.call("claim", token=end["claim_token"])
    assert [claims[3].text(name) for name in ("timeout_s", "rules", "watch")] == ["7", '{"keep":1}', "256"]


async def test_ends_of_all_kinds_and_workers_are_told_apart() -> None:
    """Names are said once for those that follow each other and have the same; what these share is said once as well."""
    ends: list[tuple[str, list[bytes | str]]] = [
        ("finish", ["job", "a", "worker", "w", "result", "{}"]),
        ("finish", ["job", "b", "worker", "w", "result", b"{}"]),
        ("executed", ["job", "c", "worker", "v"]),
        ("finish", ["job", "d", "worker", "v"]),
        ("finish", ["job", "d", "worker", "v"]),
    ]
    assert sections(ends) == [
        "ends", "2", "2", "2", "turn", "finish", "worker", "w", "job", "result", "a", "{}", "b", b"{}",
        "ends", "3", "1", "2", "worker", "v", "turn", "job", "executed", "c", "finish", "d", "finish", "d",
    ]  # fmt: skip


ROWS = ["ends", "2", "1", "2", "turn", "finish", "job", "token", "a", "t", "b", "t"]


def changed(at: int, value: str) -> list[str]:
    return [*ROWS[:at], value, *ROWS[at + 1 :]]


@pytest.mark.parametrize(
    "args",
    [
        ["job", "a"], ["turn", "claim"], ["turn", "finish", "job", "a"] * 33, ["job", "a", "turn", "finish"],
        ["ends"], ["ends", "1"], ROWS[:4], ROWS[:-1], [*ROWS, "more"], [*ROWS, *ROWS[:5]], [*ROWS, "turn", "finish"],
        ROWS * 17, changed(1, "33"), changed(1, "3"), changed(1, "1"), changed(1, "-1"), changed(1, "2.5"),
        changed(2, "2"), changed(2, "nan"), changed(2, "0.5"), changed(2, "-1"), changed(2, "9" * 30), changed(3, "3"),
        changed(3, "1"), changed(3, "-2"), changed(3, "inf"), changed(3, ""), changed(4, "kind"), changed(5, "claim"),
        changed(6, "turn"),
    ],
)  # fmt: skip
async def test_what_is_no_turn_is_refused(desk: Desk, args: list[str]) -> None:
    await desk.submit("a")
    before = dump(desk.client, desk.queue.prefix)
    raw = await desk.queue._caller.fcall("emq_turns", desk.queue.prefix, args)
    assert parse(raw).outcome == "invalid"
    assert not before.differences(dump(desk.client, desk.queue.prefix))


async def test_the_rows_of_the_malformed_are_sound_themselves(desk: Desk) -> None:
    raw = await desk.queue._caller.fcall("emq_turns", desk.queue.prefix, ROWS * 16)
    assert raw == [[], [], *[[b"stale_lease"]] * 32]


class Server:
    """Notes calls and answers them when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Sequence[bytes | str]]] = []
        self.error: Exception | None = None
        self.open = asyncio.Event()

    async def fcall(self, function: str, prefix: str, args: Sequence[bytes | str]) -> Any:
        self.calls.append((function, args))
        await self.open.wait()
        if self.error:
            raise self.error
        if function != "emq_turns":
            return [b"alone"]
        ends = sum(int(args[at + 1]) for at, name in enumerate(args) if name == "ends")
        return [[], [], *[[b"ok"]] * ends]


async def test_what_comes_in_one_turn_of_the_loop_goes_together() -> None:
    server = Server()
    server.open.set()
    both = Turns(server.fcall, "p")
    assert await both.call("finish", ["job", "a"]) == [b"alone"]
    await asyncio.gather(both.call("finish", ["job", "b"]), both.call("executed", ["job", "c"]))
    await asyncio.gather(*(both.call("finish", ["job", str(n)]) for n in range(MOST + 1)))
    assert [call[0] for call in server.calls] == ["emq_finish", *["emq_turns"] * 3]
    assert server.calls[1][1] == ["ends", "2", "0", "2", "turn", "job", "finish", "b", "executed", "c"]
    assert [args[1] for _, args in server.calls[2:]] == [str(MOST // 2 + 1), str(MOST // 2)]


async def test_a_second_call_is_made_when_the_first_is_on_its_way() -> None:
    now, made = 0, list[int]()

    async def fcall(function: str, prefix: str, args: Sequence[bytes | str]) -> Any:
        made.append(now)
        return [[], [], *[[b"ok"]] * int(args[1])]

    async def watch() -> None:
        nonlocal now
        while len(made) < 2:
            now += 1
            await asyncio.sleep(0)

    turns = Turns(fcall, "p")
    await asyncio.gather(watch(), *(turns.call("finish", ["job", str(n)]) for n in range(2 * MOST)))
    assert made[1] - made[0] >= GAP


async def test_all_hear_of_an_error_and_nobody_of_a_cancel() -> None:
    server = Server()
    both = Turns(server.fcall, "p")
    calls = [asyncio.ensure_future(both.call("finish", ["job", name])) for name in "abc"]
    await asyncio.sleep(0)
    calls[0].cancel()
    server.error = Unavailable("away")
    server.open.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [server.error, server.error]
    server.error = None
    assert await both.call("finish", ["job", "d"]) == [b"alone"]


async def test_all_hear_of_an_answer_that_does_not_fit() -> None:
    async def fcall(*_: Any) -> Any:
        return [[], [], [b"ok"]]

    both = Turns(fcall, "p")
    calls = [both.call("finish", ["job", name]) for name in "ab"]
    results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 10)
    assert all(isinstance(result, ValueError) for result in results)


async def test_ends_go_alone_where_an_older_library_was_loaded() -> None:
    called: list[str] = []

    async def fcall(function: str, prefix: str, args: Sequence[bytes | str]) -> Any:
        called.append(f"{function} {args}")
        return [b"invalid", b"argument", b"turn"] if function == "emq_turns" else [b"ok", b"job", args[1]]

    both = Turns(fcall, "p")
    first, second = await asyncio.gather(both.call("finish", ["job", "a"]), both.call("executed", ["job", "b"]))
    assert [first, second] == [[b"ok", b"job", "a"], [b"ok", b"job", "b"]]
    assert called[1:] == ["emq_finish ['job', 'a']", "emq_executed ['job', 'b']"]
