"""What all workers do is read once for all who ask at the same moment, and only what has changed is made anew."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from broker.jobs.crew import Crew
from broker.queue.queue import Answer, Queue


class Fleet:
    """Workers as ``Queue.workers`` answers them."""

    def __init__(self) -> None:
        self.workers = {name: {"beat": "1", "step": 1} for name in ("b", "a")}
        self.readings = 0

    async def workers_now(self, *, jobs: bool) -> Answer:
        assert jobs
        self.readings += 1
        rows = [self._row(name, told) for name, told in self.workers.items()]
        await asyncio.sleep(0)
        return Answer("ok", rows=rows)

    def _row(self, name: str, told: dict[str, Any]) -> Answer:
        progress = json.dumps({"progress": told["step"]}).encode()
        job = Answer("ok", {"job_id": b"j-" + name.encode(), "status": b"processing", "progress": progress})
        return Answer("ok", {"worker_id": name.encode(), "beat": told["beat"].encode()}, [job])


def crew() -> tuple[Fleet, Crew]:
    fleet = Fleet()

    class Door:
        workers = staticmethod(fleet.workers_now)

    return fleet, Crew(cast(Queue, Door()))


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
