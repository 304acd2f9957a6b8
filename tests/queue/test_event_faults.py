"""Events: nothing missing and nothing twice though messages, connections and servers are lost."""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import redis

from broker.errors import NotFound, Unavailable
from broker.queue.connection import Connection
from broker.queue.events import Event, EventHub, Subscription
from broker.queue.queue import Queue
from tests.support.desk import an_event
from tests.support.listeners import StartHub, claim, names, submit
from tests.support.proxy import proxy
from tests.support.servers import RedisServer
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import until_it_answers


def check_order(items: list[Event]) -> None:
    """Nothing missing, nothing twice, in order."""
    ids = [(event.n, event.p) for event in items]
    assert ids == sorted(set(ids)), ids
    logged = [n for n, p in ids if p == 0]
    assert logged == list(range(1, logged[-1] + 1))


async def rough_life(queue: Queue, worker: SimulatedWorker, job: str, rng: random.Random) -> None:
    """Several attempts with progress, then the end."""
    for attempt in range(4):
        held = await claim(worker, job)
        progress = 0.0
        for _ in range(rng.randint(0, 20)):
            progress += rng.random()
            await worker.report(held, progress, store=rng.random() < 0.3)
            await asyncio.sleep(rng.random() * 0.1)
        if attempt < 3:
            if held.reports:
                await worker.fail(held, hand_back=1)
            else:
                await worker.release(held)
    await worker.finish(held)


async def follow(hubs: list[EventHub], job: str, rng: random.Random, patience: float) -> list[Event]:
    """Listens to the end, now here, now there, remembering only the last id; who is refused a channel tries again."""
    got: list[Event] = []
    while True:
        listener = rng.choice(hubs).subscribe(job, got[-1].event_id if got else None, until_end=True)
        with suppress(Unavailable):
            async with listener:
                if await hear(listener, got, rng.expovariate(1 / patience)):
                    return got


async def hear(listener: Subscription, got: list[Event], most: float) -> bool:
    """Add what a listener gets, about so many events; answers whether the listening has ended."""
    async for item in listener:
        assert isinstance(item, Event), item
        got.append(item)
        most -= 1
        if most < 0:
            return False
    return True


@pytest.mark.parametrize("seed", range(4))
async def test_lost_messages_and_reconnects_leave_no_gap_and_no_double(
    start_hub: StartHub, redis_server: RedisServer, queue: Queue, seed: int
) -> None:
    rng = random.Random(seed)
    async with proxy(redis_server.port) as between:
        dropped = 0

        def drop(reply: bytes) -> bytes:
            nonlocal dropped
            if b"smessage" in reply and b":echo:" not in reply and rng.random() < 0.15:
                dropped += 1
                return b""
            return reply

        between.replies = drop
        hubs = [await start_hub(between.url), await start_hub(between.url)]
        jobs = [await submit(queue) for _ in range(8)]
        listeners = [
            asyncio.create_task(follow(hubs, job, random.Random(f"{seed}-{job}-{i}"), 6 if i % 2 else 1e9))
            for job in jobs
            for i in range(4)
        ]
        cuts = asyncio.create_task(cut_now_and_then(between.cut, rng))
        workers = [SimulatedWorker(queue, f"w{i}") for i in range(8)]
        for worker in workers:
            await worker.register()
        await asyncio.gather(*(rough_life(queue, w, j, random.Random(j)) for w, j in zip(workers, jobs, strict=True)))
        cuts.cancel()
        async with asyncio.timeout(90):
            results = await asyncio.gather(*listeners)
        assert dropped > 0
    for got in results:
        check_order(got)
        assert got[-1].type == "complete_job"


async def cut_now_and_then(cut: Callable[[], None], rng: random.Random) -> None:
    while True:
        await asyncio.sleep(rng.uniform(0.3, 1.2))
        cut()


@asynccontextmanager
async def deaf(start_hub: StartHub, redis_server: RedisServer) -> AsyncIterator[EventHub]:
    """A hub whose way to the server loses every event."""
    async with proxy(redis_server.port) as between:
        between.replies = lambda reply: b"" if b"smessage" in reply and b":ev:" in reply else reply
        yield await start_hub(between.url)


async def test_loss_of_the_last_message_is_noticed(
    start_hub: StartHub, redis_server: RedisServer, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.queue.events.KEEP_S", 0.2)
    async with deaf(start_hub, redis_server) as hub:
        job = await submit(queue)
        async with hub.subscribe(job) as listener:
            assert names([await anext(listener)]) == ["pending"]
            await queue.cancel(job)
            async with asyncio.timeout(5):
                assert names([await anext(listener)]) == ["cancelled"]


async def test_a_loss_is_noticed_though_another_listener_has_read_the_log(
    start_hub: StartHub, redis_server: RedisServer, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.queue.events.KEEP_S", 1.0)
    async with deaf(start_hub, redis_server) as hub:
        job = await submit(queue)
        async with hub.subscribe(job) as listener:
            assert names([await anext(listener)]) == ["pending"]
            await queue.cancel(job)
            async with hub.subscribe(job, until_end=True) as late:
                assert names([item async for item in late]) == ["pending", "cancelled"]
            async with asyncio.timeout(5):
                assert names([await anext(listener)]) == ["cancelled"]


async def test_silent_connection_is_noticed_and_replaced(
    start_hub: StartHub, redis_server: RedisServer, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before counters are compared, which would show it as well."""
    monkeypatch.setattr("broker.queue.wire.ECHO_S", 0.2)
    monkeypatch.setattr("broker.queue.wire.SILENT_S", 0.6)
    monkeypatch.setattr("broker.queue.events.KEEP_S", 60.0)
    async with proxy(redis_server.port) as between:
        hub = await start_hub(between.url)
        job = await submit(queue)
        async with hub.subscribe(job) as listener:
            assert names([await anext(listener)]) == ["pending"]
            between.stall()
            await queue.cancel(job)
            async with asyncio.timeout(20):
                assert names([await anext(listener)]) == ["cancelled"]


async def test_restart_of_the_server_loses_nothing(own_server: RedisServer) -> None:
    async with own_hub(own_server) as (hub, queue):
        job = await submit(queue)
        async with hub.subscribe(job) as listener:
            assert names([await anext(listener)]) == ["pending"]
            waiting = asyncio.create_task(listener.__anext__())
            own_server.kill()
            await asyncio.sleep(0.5)
            own_server.start()
            await until_it_answers(queue)
            await queue.cancel(job)
            assert names([await asyncio.wait_for(waiting, 10)]) == ["cancelled"]


async def test_lost_data_ends_the_listening_and_new_jobs_are_heard(own_server: RedisServer) -> None:
    async with own_hub(own_server) as (hub, queue):
        job = await submit(queue)
        async with hub.subscribe(job) as listener:
            await anext(listener)
            waiting = asyncio.create_task(listener.__anext__())
            with redis.Redis.from_url(own_server.url) as admin:
                admin.flushall()
                await queue.configure(deployment="feed")
                admin.client_kill_filter(_type="pubsub")
            with pytest.raises(NotFound):
                await asyncio.wait_for(waiting, 10)
        job = await submit(queue)
        async with hub.subscribe(job) as listener:
            assert an_event(await anext(listener)).event_id == "feed.1-0"
            await queue.cancel(job)
            async with asyncio.timeout(10):
                assert names([await anext(listener)]) == ["cancelled"]


async def test_no_server_is_unavailable_in_time(own_server: RedisServer) -> None:
    async with own_hub(own_server) as (hub, queue):
        job = await submit(queue)
        own_server.kill()
        with pytest.raises(Unavailable):
            async with asyncio.timeout(13), hub.subscribe(job):
                pass


@asynccontextmanager
async def own_hub(server: RedisServer) -> AsyncIterator[tuple[EventHub, Queue]]:
    connection = Connection(server.url)
    queue = Queue(connection)
    await queue.configure(deployment=secrets.token_hex(8))
    hub = EventHub(connection, queue)
    await hub.start()
    try:
        yield hub, queue
    finally:
        await hub.stop()
        await connection.close()
