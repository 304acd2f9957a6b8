"""fsck sees each kind of damage, repairs what can be, and keeps quiet about a pool that works."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Callable

import pytest

from broker.errors import Conflict
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.invariants import Finding
from broker.queue.queue import Queue
from broker.queue.repair import repair
from tests.support.desk import Desk, text
from tests.support.jobs import new_job, profile
from tests.support.simulated import SimulatedWorker

Damage = Callable[[Desk], object]


async def furnish(desk: Desk) -> None:
    """A pool with a job in every state: in lanes, delayed, blocked, backing off, held, and ended in each way."""
    worker = await desk.worker("w1", profile=profile(models=["A"]), slots=2)
    other = await desk.worker("w2", profile=profile(models=["A"]))
    await desk.submit("done", "failed", "retried", "running", "ahead", labels=["c0ffee00"])
    await desk.add("gone")
    await desk.queue.cancel("gone")
    for job in ("done", "failed", "retried"):
        assert await worker.start() == job
        if job == "done":
            await worker.finish(job)
        else:
            await worker.fail(job, "validation_failed" if job == "failed" else "node_error")
    assert await worker.start() == "running"
    assert await worker.take() == "ahead"
    await desk.submit("waits", "waits2", models=["A"], tenant="bob", labels=["c0ffee00"])
    await desk.add("urgent", models=["A"], priority=7, expires_ms=600_000, tenant="bob")
    await desk.add("later", delay_ms=500_000)
    await desk.add("blocked", depends_on=["running"], group="g")
    await desk.queue.pause("tenant", "bob", True)
    assert (await other.claim()).outcome in ("none", "again")
    await desk.add("free", models=["A"], tenant="eve")
    assert (await (await desk.worker("w3")).claim()).outcome == "none"


async def check(connection: Connection, desk: Desk) -> list[Finding]:
    return await Check(connection, desk.queue.prefix).run()


def arrival(desk: Desk, job: str) -> str:
    return f"{int(desk.field(job, 'arrival') or 0):012x}:{job}"


def lane(desk: Desk, job: str, tenant: str) -> str:
    return desk.key(f"n:{desk.field(job, 'class')}:{tenant}")


def ok(desk: Desk, name: str) -> str:
    return desk.key(f"ok:{worker(desk, name, 'profile')}")


def change(desk: Desk, job: str, **fields: str) -> int:
    return desk.client.hset(desk.key(f"j:{job}"), mapping=dict(fields.items()))


REPAIRED: dict[str, tuple[str, Damage]] = {
    "a waiting job fell out of its lane": (
        "state", lambda d: d.client.zrem(lane(d, "waits2", "bob"), arrival(d, "waits2")),
    ),
    "the only job of a lane fell out": ("state", lambda d: d.client.zrem(lane(d, "free", "eve"), arrival(d, "free"))),
    "a job is in its lane and in due": ("state", lambda d: d.client.zadd(d.key("due"), {"free": 1})),
    "a lane has the wrong score": ("state", lambda d: d.client.zadd(lane(d, "free", "eve"), {arrival(d, "free"): 5})),
    "a delayed job is not in due": ("state", lambda d: d.client.zrem(d.key("due"), "later")),
    "a retried job is not in due": ("state", lambda d: d.client.zrem(d.key("due"), "retried")),
    "an expiry was lost": ("state", lambda d: d.client.zrem(d.key("expiry"), "urgent")),
    "a tenant's waiting index lost a job": ("state", lambda d: d.client.zrem(d.key("w:bob"), "waits")),
    "a tenant's finished index lost a job": ("state", lambda d: d.client.zrem(d.key("f:ann:completed"), "done")),
    "retention does not know a job": ("state", lambda d: d.client.zrem(d.key("fin:failed"), "failed")),
    "the search index lost a label": (
        "state", lambda d: d.client.zrem(d.key("x:bob"), f"l:c0ffee00\n{arrival(d, 'waits')}"),
    ),
    "a held job is not with its instance": (
        "state", lambda d: d.client.zrem(d.key(f"held:{d.field('running', 'instance')}"), "running"),
    ),
    "an active job is not listed": ("state", lambda d: d.client.zrem(d.key("a:ann"), "running")),
    "an ended job is still active": ("state", lambda d: d.client.zadd(d.key("a:ann"), {"done": 1})),
    "an entry of a job that never was": ("state", lambda d: d.client.zadd(d.key("w:ann"), {"ghost": 1})),
    "a lane of a job that never was": (
        "state", lambda d: d.client.zadd(lane(d, "free", "eve"), {"000000000000:ghost": 1}),
    ),
    "another tenant's index has a job": ("state", lambda d: d.client.zadd(d.key("w:eve"), {"waits": 1})),
    "a dead letter that is none": ("state", lambda d: d.client.zadd(d.key("dead"), {"failed": 1})),
    "a lane's head is not known": ("order", lambda d: d.client.delete(d.key(f"h:{d.field('free', 'class')}"))),
    "a head has the wrong score": (
        "order", lambda d: d.client.zadd(d.key(f"h:{d.field('free', 'class')}"), {"eve": 5}),
    ),
    "the best heads lost a class": ("order", lambda d: d.client.zrem(d.key("i"), str(d.field("free", "class")))),
    "the kinds lost a class": ("order", lambda d: d.client.delete(d.key("k:A"))),
    "a parked lane has the wrong head": (
        "order", lambda d: d.client.zadd(d.key("parked:bob"), {str(d.field("waits", "class")): 5}),
    ),
    "an idle worker is not listed": ("order", lambda d: d.client.delete(d.key(f"idle:{worker(d, 'w3', 'profile')}"))),
    "a counter is wrong": ("count", lambda d: d.client.hincrby(d.key("count"), "completed", 1)),
    "a tenant's counter is wrong": ("count", lambda d: d.client.hincrby(d.key("count"), "bob:pending", -1)),
    "a cap's counter is wrong": ("count", lambda d: d.client.hincrby(d.key("count"), "ann:running", 3)),
    "a level miscounts": ("count", lambda d: d.client.hincrby(d.key("v:0"), "waiting", 2)),
    "a worker miscounts": ("count", lambda d: d.client.hset(d.key("wk:w1"), "running", 2)),
    "a lease was lost": ("lease", lambda d: d.client.zrem(d.key("leases"), str(d.field("running", "instance")))),
    "a held job has no token": ("lease", lambda d: d.client.hdel(d.key("j:running"), "token", "instance")),
    "a parent does not know who waits for it": ("dependency", lambda d: d.client.delete(d.key("kids:running"))),
    "a parent will tell nobody of its end": ("dependency", lambda d: d.client.hdel(d.key("j:running"), "kids")),
    "a waiting job is still in a phase": ("state", lambda d: change(d, "free", phase="running")),
    "a job waits for more than there is": ("dependency", lambda d: change(d, "blocked", deps="2")),
    "a class is not listed": ("match", lambda d: d.client.delete(d.key("classes"))),
    "a worker can run more than is known": ("match", lambda d: d.client.delete(ok(d, "w1"))),
    "a worker is thought to run what it cannot": (
        "match", lambda d: d.client.sadd(ok(d, "w3"), str(d.field("free", "class"))),
    ),
    "a worker's profile is not counted": ("count", lambda d: d.client.delete(d.key("profiles"))),
    "a worker that left is counted": ("count", lambda d: d.client.zadd(d.key("profiles"), {"nobody": 1})),
    "the states of workers are miscounted": ("count", lambda d: d.client.hincrby(d.key("states"), "busy", 2)),
    "an ended job stays for ever": ("life", lambda d: d.client.persist(d.key("j:done"))),
    "a body without a job": ("life", lambda d: d.client.set(d.key("b:ghost"), "{}")),
    "a key that nobody knows": ("life", lambda d: d.client.set(d.key("nonsense"), "1")),
}  # fmt: skip

TOLD: dict[str, tuple[str, Damage]] = {
    "a state that is none": ("state", lambda d: change(d, "waits", status="lost")),
    "more attempts than allowed": ("attempt", lambda d: change(d, "running", attempt="9")),
    "more crashes than allowed": ("attempt", lambda d: change(d, "running", crashes="9")),
    "an event is missing": ("log", lambda d: d.client.lpop(d.key("e:done"))),
    "an end was not told": ("log", lambda d: (d.client.rpop(d.key("e:done")), change(d, "done", events="4"))),
    "more jobs run than there are slots": ("load", lambda d: d.client.hset(d.key("wk:w1"), "slots", 0)),
}  # fmt: skip


def worker(desk: Desk, name: str, field: str) -> str:
    return text(desk.client.hget(desk.key(f"wk:{name}"), field) or b"")


async def test_a_pool_in_order_has_no_findings(desk: Desk, connection: Connection) -> None:
    await furnish(desk)
    assert not await check(connection, desk)


@pytest.mark.parametrize("name", REPAIRED)
async def test_damage_is_found_and_repaired(desk: Desk, connection: Connection, name: str) -> None:
    rule, damage = REPAIRED[name]
    await furnish(desk)
    damage(desk)
    found, left = await repair(desk.queue, connection)
    assert rule in {finding.rule for finding in found}, found
    assert not left, left
    assert not await check(connection, desk)
    desk.client.delete(desk.key("nonsense"), desk.key("b:ghost"))


@pytest.mark.parametrize("name", TOLD)
async def test_damage_that_cannot_be_repaired_is_told(desk: Desk, connection: Connection, name: str) -> None:
    rule, damage = TOLD[name]
    await furnish(desk)
    damage(desk)
    assert rule in {finding.rule for finding in await check(connection, desk)}


async def test_what_was_repaired_runs(desk: Desk, connection: Connection) -> None:
    """The jobs of a pool whose indexes are gone all run once they are built anew from the records."""
    await furnish(desk)
    indexes = ("w:*", "a:*", "f:*", "fin:*", "n:*", "h:*", "i", "k:*", "due", "expiry", "held:*", "parked:*")
    for pattern in indexes:
        for key in desk.client.keys(desk.key(pattern)):
            desk.client.delete(key)
    desk.client.delete(desk.key("count"), desk.key("leases"), desk.key("v:0"), desk.key("v:7"))
    _, left = await repair(desk.queue, connection)
    assert not left, left
    await desk.queue.pause("tenant", "bob", False)
    last = await desk.worker("last", profile=profile(models=["A"]))
    waiting = {"retried", "running", "ahead", "waits", "waits2", "urgent", "later", "blocked", "free"}
    for _ in range(400):
        await desk.live(3000, last)
        while (answer := await last.claim()).outcome == "job":
            await last.report(answer.text("job_id"))
            await last.finish(answer.text("job_id"))
        if all([await desk.status(job) == "completed" for job in waiting]):
            break
    assert {job: await desk.status(job) for job in waiting} == dict.fromkeys(waiting, "completed")
    assert not await check(connection, desk)


async def test_a_busy_pool_has_no_findings(queue: Queue, connection: Connection) -> None:
    """Checks beside submits, claims, failures and cancels by 8 workers see nothing wrong."""
    stop = asyncio.Event()

    async def work(number: int) -> None:
        worker = SimulatedWorker(queue, f"w{number}")
        await worker.register()
        while not stop.is_set():
            held = await worker.claim()
            if held is None:
                await worker.heartbeat()
                await asyncio.sleep(0.02)
                continue
            await worker.report(held)
            if held.attempt % 3 == 1 and number % 2:
                await worker.fail(held)
            else:
                await worker.finish(held)
        await worker.bye()

    async def feed(tenant: str) -> None:
        """No faster than the jobs are done: what is checked stays as large as it is."""
        while not stop.is_set():
            if (await queue.stats(tenant)).number("pending") < 20:
                jobs = [new_job(priority=n % 3, max_attempts=2, delay_ms=30 if n == 4 else None) for n in range(5)]
                await queue.submit(tenant, jobs)
                with contextlib.suppress(Conflict):  # a worker was quicker
                    await queue.cancel(jobs[3].job_id)
            await asyncio.sleep(0.02)

    async def sweep() -> None:
        while not stop.is_set():
            await queue.sweep()
            await asyncio.sleep(0.05)

    await queue.configure(backoff_ms=20, max_finished=200)
    tasks = [asyncio.create_task(task) for task in (*map(work, range(8)), feed("ann"), feed("bob"), sweep())]
    try:
        checks = 0
        while checks < 20 or (await queue.stats()).number("completed_total") < 300:
            findings = await Check(connection, queue.prefix).run()
            assert not findings, findings[:5]
            checks += 1
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    assert not await Check(connection, queue.prefix).run()


async def test_the_command_finds_and_repairs(desk: Desk, redis_url: str) -> None:
    async def fsck(*args: str) -> tuple[int, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "broker", "fsck", "--redis", redis_url, *args,
            env={**os.environ, "EMQ_POOL": desk.queue.pool}, stdout=PIPE, stderr=STDOUT,
        )  # fmt: skip
        out, _ = await process.communicate()
        return process.returncode or 0, out.decode()

    await furnish(desk)
    code, text = await fsck()
    assert code == 0, text
    assert "nothing is wrong" in text
    desk.client.hincrby(desk.key("count"), "completed", 1)
    code, text = await fsck()
    assert code == 1
    assert "count: count completed: it says 2, there are 1" in text
    code, text = await fsck("--repair", "--json")
    assert code == 0, text
    answer = json.loads(text.splitlines()[-1])
    assert [finding["rule"] for finding in answer["found"]] == ["count"]
    assert answer["left"] == []
