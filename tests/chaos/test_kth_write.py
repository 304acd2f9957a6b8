"""The k-th write of a function fails, for every k: the caller is told, no job is lost, and ``fsck --repair`` mends it.

No check comes after a function's first write, so a write can fail only where the server itself is broken, or a key was
made by others; Lua takes nothing back then. What does not come again is an event that was not written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from broker.errors import EmqError, NotFound
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.loader import library
from broker.queue.queue import Queue
from broker.queue.repair import repair
from tests.support.desk import Desk
from tests.support.jobs import new_job, profile
from tests.support.proxy import proxy
from tests.support.servers import RedisServer, valkey_binary
from tests.support.simulated import SimulatedWorker

POOL = "default"
JOBS = ("runs", "held", "dead", "waits", "later", "child")
SERVES = profile(models=["A"])
COUNTING = """
local left = 0
local writes = { WRITES }
local function real() return redis end -- another table while the library is loaded than when it runs
local redis = {
  sha1hex = function(text) return real().sha1hex(text) end,
  setresp = function(version) return real().setresp(version) end,
  call = function(name, ...)
    if writes[string.lower(name)] then
      left = left - 1
      if left == 0 then error('planted: ' .. name .. ' fails') end
    end
    return real().call(name, ...)
  end,
  register_function = function(one)
    local callback = one.callback
    one.callback = function(keys, argv)
      left = tonumber(real().call('GET', 'fail-at') or 0)
      return callback(keys, argv)
    end
    real().register_function(one)
  end,
}
"""


def counting(client: redis.Redis) -> str:
    """The library, its writes counted: what the server calls so, and what tells others."""
    head, line, rest = library().text.partition("local Q = {}\n")
    assert line
    writes = ["spublish", *map(str, client.acl_cat("write"))]
    return head + line + COUNTING.replace("WRITES", ", ".join(f"['{name}'] = true" for name in writes)) + rest


@pytest.fixture(scope="module")
def failing() -> Iterator[RedisServer]:
    """A server of its own: the library is global to a server, and here it fails."""
    folder = Path(tempfile.mkdtemp(prefix="emq-kth-"))
    server = RedisServer("kth", valkey_binary(), folder).start()
    with redis.Redis.from_url(server.socket_url) as client:
        client.function_load(counting(client), replace=True)
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


class Site:
    """A pool of two workers and two tenants: a job runs, one is held, one is dead, and others wait."""

    def __init__(self, connection: Connection, client: redis.Redis) -> None:
        self.connection, self.client = connection, client
        self.queue = Queue(connection, POOL)
        self.desk = Desk(self.queue, client)

    async def furnish(self) -> None:
        """Everything anew."""
        self.client.flushdb()
        await self.queue.configure(lease_ms=10_000, backoff_ms=1000)
        self.desk = desk = Desk(self.queue, self.client)
        self.worker, self.other = [await desk.worker(name, profile=SERVES, slots=2) for name in ("w1", "w2")]
        await desk.add("runs", models=["A"], group="g", labels=["c0ffee00"])
        assert await self.worker.start() == "runs"
        await desk.add("held", models=["A"])
        assert await self.worker.take() == "held"
        await desk.add("dead", models=["A"])
        assert await self.other.start() == "dead"
        await self.other.fail("dead", "validation_failed")
        await desk.add("waits", models=["A"], tenant="bob", priority=3)
        await desk.add("later", delay_ms=5_000, group="g")
        await desk.add("child", depends_on=["runs", "held"])

    async def fails(self, call: Call, number: int) -> bool:
        """Call; the write of that number fails. Whether there was one."""
        self.client.set("fail-at", number)
        try:
            await call(self)
        except EmqError:
            return True
        finally:
            self.client.delete("fail-at")
        return False

    async def works_off(self) -> None:
        """Another worker comes that can run everything; each job ends."""
        last = await self.desk.worker("last", profile=profile(models=["A", "B"]))
        for _ in range(60):
            await self.desk.live(3000, last)
            while (answer := await last.claim()).outcome == "job":
                await last.report(answer.text("job_id"))
                await last.finish(answer.text("job_id"))
            found = await self.statuses(*JOBS, "new")
            if set(found.values()) <= {"completed", "failed", "cancelled", "gone"}:
                return
        raise AssertionError(f"some wait for ever: {found}")

    async def statuses(self, *jobs: str) -> dict[str, str]:
        """Where each of some jobs is; one that is not there is ``gone``."""
        found = {}
        for job in jobs:
            try:
                found[job] = await self.desk.status(job)
            except NotFound:
                found[job] = "gone"
        return found


Call = Callable[[Site], Awaitable[object]]
CALLS: dict[str, Call] = {
    "submit": lambda s: s.queue.submit("ann", [new_job("new", models=["A"], group="g", idempotency_key="k")]),
    "submit, of a new class": lambda s: s.queue.submit("ann", [new_job("new", models=["A", "B"])]),
    "submit, dependent": lambda s: s.queue.submit("ann", [new_job("new", depends_on=["runs", "later"])]),
    "submit, delayed": lambda s: s.queue.submit("eve", [new_job("new", delay_ms=1000, labels=["c0ffee01"])]),
    "claim": lambda s: s.other.claim(token="c" * 32),
    "report, started": lambda s: s.worker.report("held"),
    "executed": lambda s: s.worker.executed("runs"),
    "finish": lambda s: s.worker.finish("runs"),
    "finish, and claim": lambda s: s.worker.finish("runs", claim=1, claim_token="d" * 32, loaded=""),
    "fail, for a retry": lambda s: s.worker.fail("runs"),
    "fail, for ever": lambda s: s.worker.fail("runs", "validation_failed"),
    "release": lambda s: s.worker.held("release", "held", reason="shutdown"),
    "cancel, waiting": lambda s: s.queue.cancel("waits", "bob"),
    "cancel, running": lambda s: s.queue.cancel("runs", "ann"),
    "cancel, a group": lambda s: s.queue.cancel_group("ann", "g"),
    "retry": lambda s: s.queue.retry("dead", "ann"),
    "delete": lambda s: s.queue.delete("dead", "ann"),
    "bye": lambda s: s.worker.call("bye"),
    "register": lambda s: s.desk.worker("w3", instance="i", profile=profile(models=["A", "B"])),
    "register, as another": lambda s: s.desk.worker("w2", instance=s.other.instance, profile=profile(models=["B"])),
    "priority": lambda s: s.queue.set_priority("waits", "bob", priority=9),
}


@pytest.mark.parametrize("name", CALLS)
async def test_a_write_that_fails_loses_no_job(failing: RedisServer, name: str) -> None:
    connection = Connection(failing.socket_url)
    with redis.Redis.from_url(failing.socket_url) as client:
        site, call, number = Site(connection, client), CALLS[name], 1
        await site.furnish()
        while await site.fails(call, number):
            said = f"{name}, write {number}"
            _, left = await repair(site.queue, connection)
            assert {finding.rule for finding in left} <= {"log"}, f"{said}: {left}"
            with suppress(NotFound):  # a job that was deleted
                await call(site)
            gone = {job for job, status in (await site.statuses(*JOBS)).items() if status == "gone"}
            assert gone == ({"dead"} if name == "delete" else set()), said
            _, left = await repair(site.queue, connection)
            assert {finding.rule for finding in left} <= {"log"}, f"{said}, and again: {left}"
            await site.works_off()
            left = await Check(connection, site.queue.prefix).run()
            assert {finding.rule for finding in left} <= {"log"}, f"{said}, at the end: {left}"
            number += 1
            await site.furnish()
        assert number > 2, "some writes failed"
    await connection.close()


def keep(data: bytes) -> bytes:
    """Nothing is lost."""
    return data


async def life(url: str, pool: str) -> None:
    """Jobs from submit to end over one connection."""
    connection = Connection(url)
    try:
        queue = Queue(connection, pool)
        await queue.configure(backoff_ms=1)
        worker = SimulatedWorker(queue, "w", slots=2)
        await worker.register()
        await queue.submit("t", [new_job(job, idempotency_key=job, max_attempts=5) for job in "abcd"])
        await queue.cancel("d", "t")
        for job in "ab":
            held = await worker.claim(job)
            assert held is not None, job
            await worker.report(held, 50)
            await worker.executed(held)
            await worker.finish(held)
        held = await worker.claim("c")
        assert held is not None
        await worker.heartbeat()
        await worker.report(held, 50)
        await worker.fail(held, "validation_failed")
        await worker.bye()
    finally:
        await connection.close()


async def ends(connection: Connection, pool: str) -> list[tuple[str, int]]:
    """How each job ended, and at which attempt; the pool is in order."""
    queue = Queue(connection, pool)
    assert not await Check(connection, queue.prefix).run()
    ended = [await queue.job(job, "t") for job in "abcd"]
    return [(job.text("status"), job.number("attempt")) for job in ended]


@pytest.mark.parametrize("way", ["request", "answer"])
async def test_a_connection_that_breaks_at_any_call_changes_nothing(failing: RedisServer, way: str) -> None:
    """With the k-th request lost, or with its answer, for every k: what was called is done once."""
    straight = Connection(failing.url)
    async with proxy(failing.port) as between:
        left, number = 0, 0

        def lose(data: bytes) -> bytes:
            nonlocal left
            left -= 1
            if left == 0:
                between.cut()
                return b""
            return data

        between.requests, between.replies = (lose, keep) if way == "request" else (keep, lose)
        while left <= 0:
            left = number
            await life(between.url, f"{way}-{number}")
            wanted = [("completed", 1), ("completed", 1), ("failed", 1), ("cancelled", 0)]
            assert await ends(straight, f"{way}-{number}") == wanted, f"{way} {number}"
            number += 1
    assert number > 15
    await straight.close()
