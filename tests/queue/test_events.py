"""Events: nothing missing, nothing twice, in order."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import deque
from typing import Any

import pytest
import redis

from broker.errors import NotFound
from broker.queue.connection import Connection
from broker.queue.events import EventHub, Preview, Reset, Subscription
from broker.queue.queue import Queue
from tests.support.desk import an_event, text
from tests.support.jobs import new_job
from tests.support.listeners import Split, StartHub, claim, names, submit, take
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import wait_until


class Counted(Split):
    """Counts the reads."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection, connection)
        self.reads = 0
        self.read = self._counted

    async def _counted(self, key: str, *commands: Any) -> list[Any]:
        self.reads += 1
        return await self._rest.read(key, *commands)


async def test_logs_that_many_wait_for_are_read_together(connection: Connection, queue: Queue) -> None:
    """Each gets its own, also beside one that is gone and somebody who gives up waiting."""
    some = [new_job() for _ in range(20)]
    await queue.submit("t", some)
    jobs, source = [job.job_id for job in some], Counted(connection)
    hub = EventHub(source, queue)
    asked = [asyncio.create_task(hub.read_log(job)) for job in jobs * 10]
    gone, impatient = asyncio.create_task(hub.read_log("gone")), asyncio.create_task(hub.read_log(jobs[0]))
    await asyncio.sleep(0)
    impatient.cancel()
    logs = await asyncio.gather(*asked)
    assert [(log.tenant, log.status, [event.type for event in log.events]) for log in logs] == [
        ("t", "pending", ["job_update"])
    ] * 200
    with pytest.raises(NotFound):
        await gone
    assert source.reads <= 5, "64 at once"
    await hub.stop()


LIFE = ["pending", "claimed", "processing", "update_job_progress", "update_job_progress", "completed", "completed"]


# -- the usual course -------------------------------------------------------------------------------------------------


async def test_a_listener_sees_a_jobs_whole_life(hub: EventHub, queue: Queue, worker: SimulatedWorker) -> None:
    job = await submit(queue)
    async with hub.subscribe(job) as listener:
        life = asyncio.create_task(take(listener, "complete_job"))
        held = await claim(worker, job)
        await worker.report(held, 40)
        await worker.finish(held, {"outputs": [{"node_id": "2"}]})
        got = await life
    assert names(got) == LIFE
    assert [event.n for event in got] == [1, 2, 3, 3, 4, 5, 6]
    assert got[3].data["progress"] == 40
    assert got[-1].data["result"]["outputs"] == [{"node_id": "2"}]
    epoch = (await queue.configure()).text("deployment")
    assert [event.event_id for event in got] == [f"{epoch}.{event.n}-{event.p}" for event in got]


async def test_a_late_listener_gets_the_log_and_the_latest_progress(
    hub: EventHub, queue: Queue, worker: SimulatedWorker
) -> None:
    job = await submit(queue)
    held = await claim(worker, job)
    for progress in (10, 20, 30):
        await worker.report(held, progress)
    await worker.report(held, 35, store=False)
    async with hub.subscribe(job) as listener:
        got = [an_event(await anext(listener)) for _ in range(4)]
        assert names(got) == ["pending", "claimed", "processing", "update_job_progress"]
        assert got[3].data["progress"] == 30
        await worker.report(held, 50, store=False)
        assert an_event(await anext(listener)).data["progress"] == 50


async def test_stored_progress_of_an_earlier_attempt_is_not_shown(
    hub: EventHub, queue: Queue, worker: SimulatedWorker
) -> None:
    job = await submit(queue)
    held = await claim(worker, job)
    await worker.report(held, 90)
    await worker.fail(held, hand_back=1)
    async with hub.subscribe(job) as listener:
        got = [await anext(listener) for _ in range(4)]
        assert names(got) == ["pending", "claimed", "processing", "pending"]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(listener)


async def test_every_id_continues_where_it_was(hub: EventHub, queue: Queue, worker: SimulatedWorker) -> None:
    job = await submit(queue)
    held = await claim(worker, job)
    await worker.report(held, 10, store=False)
    await worker.report(held, 20)
    await worker.finish(held)
    async with hub.subscribe(job, until_end=True) as listener:
        everything = [an_event(item) async for item in listener]
    assert names(everything) == ["pending", "claimed", "processing", "update_job_progress", "completed", "completed"]
    epoch = everything[0].event_id.rpartition(".")[0]
    for n, p in [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1), (3, 2), (3, 9), (4, 0), (5, 0), (6, 0)]:
        async with hub.subscribe(job, f"{epoch}.{n}-{p}", until_end=True) as listener:
            got = [item async for item in listener]
        assert got == [event for event in everything if (event.n, event.p) > (n, p)], (n, p)


async def test_a_finished_job_ends_the_listening_at_once(hub: EventHub, queue: Queue, worker: SimulatedWorker) -> None:
    job = await submit(queue)
    await queue.cancel(job)
    async with asyncio.timeout(5), hub.subscribe(job, until_end=True) as listener:
        got = [an_event(item) async for item in listener]
    assert names(got) == ["pending", "cancelled"]
    async with asyncio.timeout(5), hub.subscribe(job, got[-1].event_id, until_end=True) as listener:
        assert [item async for item in listener] == []


async def test_without_until_end_a_listener_stays_for_the_next_round(hub: EventHub, queue: Queue) -> None:
    job = await submit(queue)
    async with hub.subscribe(job) as listener:
        await queue.cancel(job)
        assert names([await anext(listener), await anext(listener)]) == ["pending", "cancelled"]
        await queue.retry(job)
        again = an_event(await anext(listener))
    assert again.data["status"] == "pending"
    assert again.data["reason"] == "forced_retry"


async def test_a_second_round_is_followed_to_its_own_end(hub: EventHub, queue: Queue, worker: SimulatedWorker) -> None:
    job = await submit(queue)
    await queue.cancel(job)
    await queue.retry(job)
    async with hub.subscribe(job, until_end=True) as listener:
        life = asyncio.create_task(take(listener, "complete_job"))
        held = await claim(worker, job)
        await worker.finish(held)
        got = await life
        with pytest.raises(StopAsyncIteration):
            await anext(listener)
    assert names(got)[:3] == ["pending", "cancelled", "pending"]
    assert got[-1].type == "complete_job"


# -- what can no longer be given --------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["0123456789abcdef.3-0", "nonsense", "1-0", ".", "x.1-x"])
async def test_ids_of_nowhere_get_a_reset(hub: EventHub, queue: Queue, worker: SimulatedWorker, after: str) -> None:
    job = await submit(queue)
    held = await claim(worker, job)
    await worker.report(held, 30)
    async with hub.subscribe(job, after) as listener:
        reset = await anext(listener)
        assert isinstance(reset, Reset)
        assert reset.record.text("status") == "processing"
        await worker.finish(held)
        got = await take(listener, "complete_job")
    assert names(got) == ["update_job_progress", "completed", "completed"]
    async with hub.subscribe(job, reset.event_id, until_end=True) as listener:
        assert [item async for item in listener] == got


async def test_id_from_a_lost_future_gets_a_reset(hub: EventHub, queue: Queue) -> None:
    job = await submit(queue)
    epoch = (await queue.configure()).text("deployment")
    async with hub.subscribe(job, f"{epoch}.7-0") as listener:
        assert isinstance(await anext(listener), Reset)
        await queue.cancel(job)
        assert names([await anext(listener)]) == ["cancelled"]


async def test_log_that_no_longer_reaches_back_gets_a_reset(
    hub: EventHub, queue: Queue, redis_client: redis.Redis
) -> None:
    job = await submit(queue)
    await queue.cancel(job)
    redis_client.ltrim(f"{queue.prefix}e:{job}", 1, -1)
    epoch = (await queue.configure()).text("deployment")
    async with hub.subscribe(job, until_end=True) as listener:
        assert names([item async for item in listener]) == ["Reset"]
    async with hub.subscribe(job, f"{epoch}.1-0", until_end=True) as listener:
        assert names([item async for item in listener]) == ["cancelled"]


async def test_unknown_job_is_not_found(hub: EventHub) -> None:
    with pytest.raises(NotFound):
        async with hub.subscribe("nobody"):
            pass


# -- slow listeners ---------------------------------------------------------------------------------------------------


async def test_progress_is_coalesced_for_a_slow_listener(hub: EventHub, queue: Queue, worker: SimulatedWorker) -> None:
    job = await submit(queue)
    held = await claim(worker, job)
    async with hub.subscribe(job) as slow, hub.subscribe(job) as quick:
        assert names([await anext(slow) for _ in range(2)]) == ["pending", "claimed"]
        for progress in range(500):
            await worker.report(held, progress / 5, store=False)
        await worker.finish(held)
        await take(quick, "complete_job")
        got = await take(slow, "complete_job")
    assert names(got) == ["processing", "update_job_progress", "update_job_progress", "completed", "completed"]
    assert got[1].data["progress"] == 99.8


async def test_state_events_are_never_dropped(hub: EventHub, queue: Queue, worker: SimulatedWorker) -> None:
    job = await submit(queue)
    async with hub.subscribe(job) as slow, hub.subscribe(job) as quick:
        assert names([await anext(slow)]) == ["pending"]
        for _ in range(180):
            await worker.release(await claim(worker, job))
        await queue.cancel(job)
        async for item in quick:
            if an_event(item).data["status"] == "cancelled":
                break
        got = [an_event(await anext(slow)) for _ in range(361)]
    assert [event.n for event in got] == list(range(2, 363))
    assert names(got) == ["claimed", "pending"] * 180 + ["cancelled"]


# -- coming and going -------------------------------------------------------------------------------------------------


def subscribed(client: redis.Redis, queue: Queue) -> list[str]:
    found = map(text, client.pubsub_shardchannels(f"{queue.prefix}*"))
    return [name for name in found if ":echo:" not in name]


def kept(root: Any) -> set[str]:
    """The texts that an object of the broker holds, with its parts."""
    seen, todo, found = {id(root)}, [root], set()
    while todo:
        each = todo.pop()
        if isinstance(each, str):
            found.add(each)
        elif isinstance(each, dict | list | set | tuple | deque) or type(each).__module__.startswith("broker."):
            names = each if isinstance(each, dict) else ()  # the collector leaves out keys that are texts
            new = [part for part in (*gc.get_referents(each), *names) if id(part) not in seen]
            seen.update(map(id, new))
            todo += new
    return found


async def test_a_job_is_subscribed_once_and_given_back(hub: EventHub, queue: Queue, redis_client: redis.Redis) -> None:
    job = await submit(queue)
    epoch = (await queue.configure()).text("deployment")
    channel = f"{queue.prefix}ev:{epoch}:{job}"
    async with hub.subscribe(job), hub.subscribe(job):
        assert subscribed(redis_client, queue) == [channel]
        assert redis_client.pubsub_shardnumsub(channel) == [(channel.encode(), 1)]
    await wait_until(lambda: not subscribed(redis_client, queue), what="the channel is given back")
    await wait_until(lambda: not [text for text in kept(hub) if job in text], what="nothing of the job is kept")
    async with hub.subscribe(job) as listener:
        await anext(listener)
        await queue.cancel(job)
        assert names([await anext(listener)]) == ["cancelled"]


async def test_stop_ends_the_listening(hub: EventHub, queue: Queue) -> None:
    job = await submit(queue)
    async with hub.subscribe(job) as listener:
        await anext(listener)
        waiting = asyncio.create_task(listener.__anext__())
        await asyncio.sleep(0)
        await hub.stop()
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(waiting, 10)


# -- previews ---------------------------------------------------------------------------------------------------------


async def test_previews_are_made_only_while_somebody_watches(
    hub: EventHub, queue: Queue, worker: SimulatedWorker, redis_client: redis.Redis
) -> None:
    job = await submit(queue)
    held = await claim(worker, job)
    await worker.report(held, 1)
    assert not (await worker.preview(held, b"unseen")).flag("watch")
    watch = f"{queue.prefix}watch:{job}"
    async with hub.subscribe(job) as blind:
        assert not redis_client.exists(watch)
        async with hub.subscribe(job, previews=True) as listener:
            await wait_until(lambda: redis_client.exists(watch), what="the job is watched")
            frame = random.Random(1).randbytes(100_000)
            assert (await worker.preview(held, frame, 2)).flag("watch")
            got = await until_preview(listener)
            assert got.data == frame
            assert hub.last_preview(job) == frame
            for number in range(3, 20):
                await worker.preview(held, b"%d" % number, number)
            await wait_until(lambda: hub.last_preview(job) == b"19", what="the last preview came")
            assert await until_preview(listener) == Preview(b"19")
        assert hub.last_preview(job) is None
        await worker.finish(held)
        assert "Preview" not in names(await take(blind, "complete_job"))


async def until_preview(listener: Subscription) -> Preview:
    async with asyncio.timeout(10):
        async for item in listener:
            if isinstance(item, Preview):
                return item
    raise AssertionError("the listening ended")


async def test_watching_is_said_again(
    start_hub: StartHub, queue: Queue, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.queue.events.KEEP_S", 0.1)
    hub = await start_hub()
    job = await submit(queue)
    watch = f"{queue.prefix}watch:{job}"
    async with hub.subscribe(job, previews=True):
        await wait_until(lambda: redis_client.delete(watch), what="the job is watched")
        await wait_until(lambda: redis_client.exists(watch), what="the job is watched again")
        assert 10 < redis_client.ttl(watch) <= 15


async def test_one_preview_can_be_asked_for(hub: EventHub, queue: Queue, worker: SimulatedWorker) -> None:
    job = await submit(queue)
    held = await claim(worker, job)
    await worker.report(held, 1)
    assert await hub.preview(job, 0.05) is None
    asked = asyncio.create_task(hub.preview(job, 5))

    async def sent() -> bool:
        return asked.done() or not await worker.preview(held, b"frame")

    await wait_until(sent, what="the preview arrives")
    assert await asked == b"frame"
    with pytest.raises(NotFound):
        await hub.preview("nobody")


async def test_parts_of_a_broken_frame_are_not_mixed(hub: EventHub, queue: Queue, redis_client: redis.Redis) -> None:
    job = await submit(queue)
    epoch = (await queue.configure()).text("deployment")
    channel = f"{queue.prefix}pv:{epoch}:{job}"

    def publish(*messages: bytes) -> None:
        for message in messages:
            redis_client.spublish(channel, message)

    async with hub.subscribe(job, previews=True) as listener:
        await wait_until(lambda: channel in subscribed(redis_client, queue), what="previews are heard")
        publish(b"1-1-2\nlost", b"2-2-2\nB", b"2-1-2\nA", b"nonsense", b"3-1-2\nold", b"3-1-2\nC", b"3-2-2\nD")
        await wait_until(lambda: hub.last_preview(job) == b"CD", what="the whole frame")
        assert await until_preview(listener) == Preview(b"CD")
