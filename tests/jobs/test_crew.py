"""What all workers do is read once for all who ask at the same moment, and only what has changed is made anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, cast

from broker.errors import EmqError, Unavailable
from broker.jobs.crew import Crew
from broker.queue.queue import Caller, Queue, parse
from broker.queue.rows import Rows


class Fleet:
    """Workers as Redis answers them."""

    def __init__(self) -> None:
        self.workers = {name: {"beat": "1", "step": 1} for name in ("b", "a")}
        self.readings = 0
        self.fails: EmqError | None = None

    async def fcall(self, function: str, prefix: str, args: Sequence[bytes | str]) -> Any:
        await asyncio.sleep(0)
        given = dict(zip(args[::2], args[1::2], strict=True))
        if "names" in given:
            self.readings += 1
            if self.fails:
                raise self.fails
            return [b"ok", b"names", "\n".join(self.workers).encode()]
        rows = [self._row(name, self.workers[name]) for name in str(given["worker"]).split("\n")]
        return [b"ok", b"next", b"", *(value for row in rows for value in (b"worker", row))]

    def _row(self, name: str, told: dict[str, Any]) -> list[Any]:
        progress = json.dumps({"progress": told["step"]}).encode()
        job = [b"ok", b"job_id", b"j-" + name.encode(), b"status", b"processing", b"progress", progress]
        return [b"ok", b"worker_id", name.encode(), b"beat", told["beat"].encode(), b"job", job]


def crew() -> tuple[Fleet, Crew]:
    fleet = Fleet()
    return fleet, Crew(Queue(cast(Caller, fleet)))


async def test_what_has_not_changed_is_the_same_object() -> None:
    fleet, it = crew()
    first = await it.read(0)
    assert [worker["worker_id"] for worker in first] == ["a", "b"]
    fleet.workers["a"]["step"] = 2
    second = await it.read(0)
    assert second[1] is first[1]
    assert second[0]["record"] is first[0]["record"]
    assert (first[0]["doing"][0]["progress"], second[0]["doing"][0]["progress"]) == (1, 2)
    fleet.workers["a"]["beat"] = "7"
    third = await it.read(0)
    assert third[0]["last_heartbeat"] == third[0]["record"]["last_heartbeat"] == 7
    del fleet.workers["a"]
    assert [worker["worker_id"] for worker in await it.read(0)] == ["b"]


async def test_who_asks_at_the_same_moment_shares_a_reading_and_nobody_gets_an_older_one() -> None:
    fleet, it = crew()
    await asyncio.gather(*(it.read(60) for _ in range(20)))
    assert fleet.readings == 1
    fleet.workers["a"]["step"] = 2
    assert (await it.read(60))[0]["doing"][0]["progress"] == 1
    assert (await it.read(0))[0]["doing"][0]["progress"] == 2
    assert fleet.readings == 2


async def test_a_reading_that_fails_fails_for_all_that_wait_for_it() -> None:
    fleet, it = crew()
    fleet.fails = Unavailable("Redis is away.")
    found = await asyncio.gather(*(it.read(60) for _ in range(20)), return_exceptions=True)
    assert found == [fleet.fails] * 20
    assert fleet.readings == 1
    fleet.fails = None
    assert len(await it.read(0)) == 2


def test_rows_are_what_parse_makes_of_them_and_those_that_did_not_change_the_same() -> None:
    fleet, rows = Fleet(), Rows()
    raws = [[b"ok", b"worker", fleet._row("a", {"beat": beat, "step": step}), b"next", b""]
            for beat, step in (("1", 1), ("1", 1), ("1", 2), ("2", 2))]  # fmt: skip
    answers = []
    for raw in raws:
        rows.turn()
        answers.append(rows.parse(raw))
    assert answers == [parse(raw) for raw in raws]
    first, again, stepped, beaten = (answer.rows[0] for answer in answers)
    assert again is first
    assert stepped.pairs is first.pairs
    assert beaten.rows[0] is stepped.rows[0]
    rows.turn()
    rows.turn()
    assert rows.parse(raws[3]).rows[0] is not beaten, "what the last reading did not have is forgotten"
