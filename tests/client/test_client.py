"""The client against real brokers, with simulated workers."""

from __future__ import annotations

import asyncio
import io
import os
import struct
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from broker.app import STORE
from broker.client import BrokerUnreachable, Client, JobCancelled, JobFailed, JobHandle, Preview, link
from broker.client.client import absolute
from broker.errors import BadMessage, Conflict, EmqError, InvalidWorkflow, NotFound
from broker.protocol.events import JobProgress, JobUpdate
from tests.api.conftest import GRAPH, Broker, Start
from tests.support.outputs import held_job, put
from tests.support.proxy import Proxy, proxy
from tests.support.waiting import wait_until


async def heard(job: JobHandle) -> list[Any]:
    return [event async for event in job.events()]


def words(events: list[Any]) -> list[str]:
    return [event.status if isinstance(event, JobUpdate) else event.type for event in events]


async def test_job_from_submit_to_result(broker: Broker, valkey_url: str) -> None:
    async with Client(broker.url) as emq, broker.worker().running(valkey_url):
        job = await emq.submit(GRAPH, priority=7, metadata={"order": 5})
        assert job.accepted is not None
        assert job.accepted.job_id == job.id
        events = await heard(job)
        record = await job.record()
        result = await job.result()
    told = words(events)
    assert [word for word in told if word != "update_job_progress"] == [
        "pending", "claimed", "processing", "completed", "complete_job",
    ]  # fmt: skip
    assert any(isinstance(event, JobProgress) and event.progress == 100 for event in events)
    assert (record.priority, record.metadata, record.status) == (7, {"order": 5}, "completed")
    assert result.outputs == []


async def test_job_from_a_template(broker: Broker) -> None:
    async with Client(broker.url) as emq:
        params = {"size": {"bind": ["1.width"], "type": "integer"}}
        await emq.request("PUT", "/api/templates/square", {"workflow": GRAPH, "params": params})
        job = await emq.submit(template="square", params={"size": 8})
        assert job.accepted is not None
        record = await job.record()
        assert (record.template, record.params) == ("square@1", {"size": 8})
        with pytest.raises(BadMessage, match=r"payload\.params\.size"):
            await emq.submit(template="square", params={"size": "big"})


async def test_refusals_are_exceptions_of_their_code(broker: Broker) -> None:
    async with Client(broker.url) as emq:
        with pytest.raises(InvalidWorkflow) as refused:
            await emq.submit({"1": {"inputs": {}}})
        assert "node_errors" in refused.value.details or refused.value.details
        for ask in (emq.job("nothing"), emq.cancel("nothing"), heard(emq.handle("nothing"))):
            with pytest.raises(NotFound):
                await ask
        ended = await emq.submit(GRAPH)
        with pytest.raises(Conflict):
            await emq.retry(ended.id)
        await ended.cancel("enough")
        with pytest.raises(JobCancelled, match="enough"):
            await ended.result()


async def test_failed_job_raises_its_reason(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with Client(broker.url) as emq:
        job = await emq.submit(GRAPH, max_attempts=1)
        waiting = asyncio.create_task(job.result())
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 10)
        await worker.fail(held, "node_error", "The node broke.")
        with pytest.raises(JobFailed, match="The node broke") as failed:
            await waiting
        assert failed.value.failure.code == "node_error"


async def test_two_listeners_of_one_job_hear_the_same(broker: Broker, valkey_url: str) -> None:
    async with Client(broker.url) as emq:
        job = await emq.submit(GRAPH, follow=False)
        early = asyncio.create_task(heard(job))
        async with aclosing(job.events()) as events:
            assert words([await anext(events)]) == ["pending"]
            async with broker.worker().running(valkey_url):
                rest: list[Any] = [event async for event in events]
        late = await heard(job)
        first = [event.event_id for event in await early if not isinstance(event, JobProgress)]
        assert first[1:] == [event.event_id for event in rest if not isinstance(event, JobProgress)]
        assert first == [event.event_id for event in late if not isinstance(event, JobProgress)]
        with pytest.raises(NotFound):
            await heard(emq.handle("nothing"))


async def test_after_an_event_only_what_follows(broker: Broker, valkey_url: str) -> None:
    async with Client(broker.url) as emq, broker.worker().running(valkey_url):
        job = await emq.submit(GRAPH)
        events = await heard(job)
        claimed = events[words(events).index("claimed")]
        rest = [event async for event in job.events(after=claimed.event_id)]
        assert "claimed" not in words(rest)
        assert words(rest)[-1] == "complete_job"


async def test_previews_come_only_to_who_wants_them(broker: Broker) -> None:
    worker = broker.worker()
    await worker.register()
    async with Client(broker.url) as emq:
        job = await emq.submit(GRAPH)
        plain = asyncio.create_task(heard(job))
        async with aclosing(job.events(previews=True)) as events:
            held = await worker.claim()
            assert held is not None
            await worker.report(held, 10)
            about = f'{{"job_id": "{job.id}", "node_id": "2", "image_type": "image/jpeg"}}'.encode()
            frame = struct.pack(">II", 4, len(about)) + about + b"picture"

            async def send() -> None:
                for number in range(2, 1000):
                    await worker.preview(held, frame, number)
                    await asyncio.sleep(0.05)

            sending = asyncio.create_task(send())
            async with asyncio.timeout(20):
                async for event in events:
                    if isinstance(event, Preview):
                        break
            sending.cancel()
        assert event == Preview(job.id, "2", "image/jpeg", b"picture")
        await worker.finish(held)
        assert not any(isinstance(one, Preview) for one in await plain)


async def test_bulk_answers_each_job(broker: Broker) -> None:
    async with Client(broker.url) as emq:
        good, bad, other = await emq.submit_many(
            [{"payload": {"workflow": GRAPH}}, {"payload": {}}, {"payload": {"workflow": GRAPH}}], group="g"
        )
        assert isinstance(good, JobHandle)
        assert isinstance(bad, EmqError)
        assert isinstance(other, JobHandle)
        assert {job.job_id async for job in emq.jobs(group="g", limit=1)} == {good.id, other.id}
        assert (await emq.stats()).queued == 2


async def test_cut_connections_leave_no_gap_and_no_double(broker: Broker, between: Proxy) -> None:
    worker = broker.worker()
    await worker.register()
    async with Client(f"http://127.0.0.1:{between.port}") as emq:
        job = await emq.submit(GRAPH)
        hearing = asyncio.create_task(heard(job))
        held = await worker.claim()
        assert held is not None
        for progress in range(0, 100, 10):
            await worker.report(held, progress)
            between.cut()
        await worker.finish(held)
        events = await hearing
    ids = [event.event_id for event in events]
    assert len(ids) == len(set(ids))
    states = [word for word in words(events) if word != "update_job_progress"]
    assert states == ["pending", "claimed", "processing", "completed", "complete_job"]
    falling = [event.progress for event in events if isinstance(event, JobProgress)]
    assert falling == sorted(falling)


async def test_lost_answer_makes_no_second_job(broker: Broker, between: Proxy) -> None:
    async with Client(f"http://127.0.0.1:{between.port}") as emq:
        await emq.submit(GRAPH)
        lost = between.lose(b"job_accepted")
        job = await emq.submit(GRAPH, follow=False)
        assert lost
        assert job.accepted is not None
        assert job.accepted.duplicate
        assert (await emq.stats()).queued == 2


async def test_another_replica_takes_over(broker: Broker, start_broker: Start, between: Proxy, valkey_url: str) -> None:
    async with Client(f"http://127.0.0.1:{between.port}") as emq:
        job = await emq.submit(GRAPH)
        hearing = asyncio.create_task(heard(job))
        other = await start_broker()
        assert other.server.port is not None
        between.target = other.server.port
        await broker.server.close()
        between.cut()
        async with other.worker().running(valkey_url):
            assert words(await hearing)[-1] == "complete_job"


async def test_a_handshake_that_nobody_answers_is_tried_again(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that swallows everything, or a broker that stands still: the next connection may reach another."""
    monkeypatch.setattr(link, "HANDSHAKE_S", 0.3)
    met = asyncio.Event()
    async with proxy(broker.server.port or 0, resp=False) as between:

        async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            met.set()
            await reader.read()
            writer.close()

        silent = await asyncio.start_server(swallow, "127.0.0.1", 0)
        async with silent, Client(f"http://127.0.0.1:{between.port}") as emq:
            between.target = silent.sockets[0].getsockname()[1]
            submitting = asyncio.create_task(emq.submit(GRAPH))
            await met.wait()
            between.target = broker.server.port or 0
            assert (await submitting).id


async def test_nobody_there_is_said_in_time() -> None:
    async with Client("http://127.0.0.1:9", patience_s=0.3) as emq:
        with pytest.raises(BrokerUnreachable, match="No broker answered"):
            await emq.submit(GRAPH)
        with pytest.raises(BrokerUnreachable, match="cannot be reached"):
            await emq.stats()


async def test_what_is_no_broker_is_named(broker: Broker) -> None:
    async with Client(f"{broker.url}/static", patience_s=1) as emq:
        with pytest.raises(EmqError):
            await emq.submit(GRAPH)


async def test_closing_a_client_ends_what_waits(broker: Broker) -> None:
    emq = await Client(broker.url).__aenter__()
    job = await emq.submit(GRAPH)
    hearing = asyncio.create_task(heard(job))
    await wait_until(lambda: not hearing.done() and job.accepted)
    await asyncio.sleep(0)
    await emq.__aexit__(None, None, None)
    with pytest.raises(BrokerUnreachable):
        await hearing


async def test_a_file_travels_once(broker: Broker, between: Proxy, tmp_path: Path) -> None:
    asked = bytearray()

    def keep(data: bytes) -> bytes:
        asked.extend(data)
        return data

    between.requests = keep
    file = tmp_path / "in.bin"
    file.write_bytes(os.urandom(300_000))
    async with Client(f"http://127.0.0.1:{between.port}") as emq:
        names = {await emq.upload(file) for _ in range(3)}
    assert asked.count(b"PUT /api/assets/") == 1
    (name,) = names
    async with broker.http.get(f"{broker.url}/api/assets/{name}") as answer:
        assert await answer.read() == await asyncio.to_thread(file.read_bytes)


async def test_a_download_goes_on_where_it_broke_off(broker: Broker, between: Proxy, tmp_path: Path) -> None:
    content, asked, saved = os.urandom(24 << 20), bytearray(), tmp_path / "saved"
    async with held_job(broker) as (worker, held):
        _, stored = await put(broker, held, data=io.BytesIO(content), name="big.bin")
        await worker.finish(held, {"outputs": [{"node_id": "2", "kind": "file", **stored}]})

    def keep(data: bytes) -> bytes:
        asked.extend(data)
        return data

    def cut(data: bytes) -> bytes:
        if any(path.stat().st_size > 1 << 20 for path in saved.glob("*")):
            between.replies = lambda data: data
            between.cut()
        return data

    async with Client(f"http://127.0.0.1:{between.port}") as emq:
        outputs = (await emq.handle(held.job_id).result()).outputs
        between.requests, between.replies = keep, cut
        (path,) = await emq.save(outputs, saved)
        assert await asyncio.to_thread(path.read_bytes) == content
        ranges = [line for line in asked.decode("latin-1").splitlines() if line.startswith("Range: ")]
        assert len(ranges) == 1, "the second time for the rest alone"
        await broker.server.app[STORE].delete_folder(f"default/{held.job_id}")
        with pytest.raises(NotFound):
            await emq.save(outputs, saved)
        assert len(await asyncio.to_thread(lambda: list(saved.iterdir()))) == 1, "nothing of a failed one is left"


def test_an_output_s_path_is_below_the_broker_s_url() -> None:
    assert absolute("https://queue.example/queue", "/api/jobs/a") == "https://queue.example/queue/api/jobs/a"
    assert absolute("https://queue.example", "https://files.example/api/jobs/a") == "https://files.example/api/jobs/a"
