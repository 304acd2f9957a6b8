"""Files between the worker's own code and a broker, when connections break, disks are full and stores refuse."""

from __future__ import annotations

import asyncio
import io
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from comfyui_emq_node import carrier
from comfyui_emq_node.carrier import Errand
from comfyui_emq_node.files import Courier, Gathered, Output
from comfyui_emq_node.input_cache import InputCache
from comfyui_emq_node.inputs import Inputs
from comfyui_emq_node.queue import Claimed, StaleLease
from comfyui_emq_node.side import SideProcess
from tests.api.conftest import Broker, Start
from tests.support.comfyui import BrokerProcess
from tests.support.outputs import claimed, held_job, stored_files
from tests.support.processes import children
from tests.support.proxy import Proxy, proxy
from tests.support.s3 import Bucket
from tests.support.simulated import Held
from tests.support.waiting import wait_until

SIZE = 24 << 20


def digest(content: bytes) -> str:
    return f"blake3:{blake3(content).hexdigest()}"


@asynccontextmanager
async def courier(url: str) -> AsyncIterator[Courier]:
    """The worker's own, its files carried by a thread."""
    side = SideProcess()  # not started
    yield Courier(lambda _: [url], side.put)
    await side.close()


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A file that takes a while to pass."""
    path = tmp_path / "worker" / "a.mp4"
    path.parent.mkdir()
    path.write_bytes(b"\x00\x00\x00\x1cftypisom" + os.urandom(SIZE - 12))
    return path


async def delivered(url: str, held: Held, path: Path) -> dict[str, Any]:
    """What the broker says of a file that the worker has brought it."""
    async with courier(url) as way:
        (described,) = await way.deliver(claimed(held), Gathered([Output("2", str(path))]), lambda: True)
    assert described["hash"] == await asyncio.to_thread(lambda: digest(path.read_bytes()))
    return described


def cut_once(way: Proxy, after: int) -> Callable[[bytes], bytes]:
    """Breaks all connections when so many bytes have passed."""
    passed = 0

    def pass_on(data: bytes) -> bytes:
        nonlocal passed
        if passed < after <= passed + len(data):
            way.cut()
        passed += len(data)
        return data

    return pass_on


async def test_an_upload_that_breaks_off_is_sent_again(broker: Broker, tmp_path: Path, output: Path) -> None:
    async with held_job(broker) as (_, held), proxy(broker.server.port or 0, resp=False) as way:
        way.requests = cut_once(way, SIZE // 2)
        described = await delivered(f"http://127.0.0.1:{way.port}", held, output)
        assert way.connections == 2
        assert described["size"] == SIZE
        await wait_until(lambda: len(stored_files(tmp_path)) == 2, what="nothing is left of the first")


async def test_an_upload_to_the_bucket_that_breaks_off_is_sent_again(
    start_broker: Start, bucket: Bucket, output: Path
) -> None:
    async with proxy(bucket.server.port, resp=False) as way:
        broker = await start_broker(store_url=bucket.at(way.port), store_presign="put")
        async with held_job(broker) as (worker, held):
            way.requests = cut_once(way, SIZE // 2)
            described = await delivered(broker.url, held, output)
            assert len(bucket.listed()) == 2
            await worker.finish(held, {"outputs": [described]})
            async with broker.http.get(f"{broker.url}/api/jobs/{held.job_id}/outputs/{described['name']}") as answer:
                assert digest(await answer.read()) == described["hash"]


async def test_a_large_file_goes_once_and_only_where_it_is_wanted(
    start_broker: Start, bucket: Bucket, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is asked first: what it sends on to the bucket, or refuses, it does not get."""
    monkeypatch.setattr(carrier, "CONTINUE_S", 60.0)  # a broker that is slow to answer gets the file all the same
    passed = 0

    def count(data: bytes) -> bytes:
        nonlocal passed
        passed += len(data)
        return data

    broker = await start_broker(store_url=bucket.store_url, store_presign="put")
    async with held_job(broker) as (worker, held), proxy(broker.server.port or 0, resp=False) as way:
        way.requests = count
        url = f"http://127.0.0.1:{way.port}"
        assert (await delivered(url, held, output))["size"] == SIZE
        assert passed < 10_000
        await worker.release(held)
        with pytest.raises(StaleLease):
            await delivered(url, held, output)
        assert passed < 10_000


async def test_a_bucket_that_refuses_does_not_cost_the_job(
    start_broker: Start, bucket: Bucket, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its 404 (or a 403: a clock that is wrong, a key that was changed) says nothing about the lease."""

    def elsewhere_once(data: bytes) -> bytes:
        if b"X-Amz-Signature" not in data:
            return data
        way.requests = lambda data: data
        return data.replace(bucket.name.encode(), b"x" * len(bucket.name))

    async with proxy(bucket.server.port, resp=False) as way:
        broker = await start_broker(store_url=bucket.at(way.port), store_presign="put")
        async with held_job(broker) as (_, held):
            way.requests = elsewhere_once
            assert (await delivered(broker.url, held, output))["size"] == SIZE
    assert "the object store answers HTTP 404" in caplog.text


async def test_a_full_disk_of_the_broker_is_waited_for(
    start_broker: Start, small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await start_broker(data=small_disk)
    path = tmp_path / "a.bin"
    path.write_bytes(os.urandom(1_200_000))
    (small_disk / "other").write_bytes(bytes(1_200_000))
    async with held_job(broker) as (_, held):
        delivery = asyncio.create_task(delivered(broker.url, held, path))
        await wait_until(lambda: "disk is full" in caplog.text, what="the worker has heard of it")
        (small_disk / "other").unlink()
        described = await delivery
        assert described["size"] == 1_200_000


@pytest.mark.parametrize("status", [401, 403, 404, 409])
async def test_a_proxy_s_page_is_no_word_on_the_lease(tmp_path: Path, status: int) -> None:
    """Only a broker's own answer, which has a ``code``, ends a job that this worker holds."""
    path = tmp_path / "a.txt"
    path.write_text("x")
    answers: list[dict[str, Any]] = [{}, {"code": "conflict", "error": "The lease is not held any more."}]
    asked: list[Errand] = []

    async def carry(errand: Errand) -> dict[str, Any]:
        asked.append(errand)
        return {"status": status, "answer": answers[len(asked) - 1], "size": 1, "hash": "blake3:0"}

    courier, job = Courier(lambda _: ["http://broker"], carry), Claimed("default", "job1", 1, "t", b"{}")
    with pytest.raises(StaleLease, match="not held any more"):
        await courier.deliver(job, Gathered([Output("1", str(path))]), lambda: True)
    assert len(asked) == 2


async def test_a_download_from_the_bucket_goes_on_where_it_broke_off(
    start_broker: Start, bucket: Bucket, tmp_path: Path
) -> None:
    """The worker asks the broker again, which sends it on to the bucket again, for the rest alone."""
    content, folder, requests = os.urandom(SIZE), tmp_path / "input", bytearray()
    async with proxy(bucket.server.port, resp=False) as way:
        broker = await start_broker(store_url=bucket.at(way.port), store_presign="get")
        digest = blake3(content).hexdigest()
        async with broker.http.put(f"{broker.url}/api/assets/{digest}", data=io.BytesIO(content)) as answer:
            assert answer.status == 201

        def keep(data: bytes) -> bytes:
            requests.extend(data)
            return data

        def cut(data: bytes) -> bytes:
            if any(part.stat().st_size > 1 << 20 for part in (folder / "emq").glob(".part-*")):
                way.replies = lambda data: data
                way.cut()
            return data

        async with held_job(broker) as (_, held):
            way.requests, way.replies = keep, cut
            inputs = Inputs(lambda _: [broker.url], InputCache(lambda: str(folder), 10**9), lambda *_: None)
            graph: dict[str, Any] = {"1": {"class_type": "Any", "inputs": {"file": ""}}}
            await inputs.place(claimed(held), graph, {"1.file": {"asset": f"blake3:{digest}", "filename": "x.bin"}})
            assert (folder / str(graph["1"]["inputs"]["file"])).read_bytes() == content
            inputs.release(held.job_id)
            await inputs.close()
        asked = [line for line in requests.decode("latin-1").splitlines() if line.lower().startswith("range:")]
        assert [line for line in asked if not line.endswith("bytes=0-")], asked
        assert inputs.fetched_bytes < SIZE + (2 << 20)


# -- memory ------------------------------------------------------------------------------------------------------------


@contextmanager
def flat_memory(*pids: int) -> Iterator[None]:
    """No process may ever have 64 MB more than it has now."""

    def peak_mb(pid: int) -> float:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        assert found is not None
        return int(found[1]) / 1024

    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # the peak begins anew
    before = [peak_mb(pid) for pid in pids]
    yield
    more = [peak_mb(pid) - was for pid, was in zip(pids, before, strict=True)]
    assert max(more) < 64, more


@pytest.fixture
def large(tmp_path: Path) -> Iterator[Path]:
    """A file of 500 MB."""
    path = tmp_path / "worker" / "large.bin"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(500 << 20)
    yield path
    shutil.rmtree(path.parent)


@pytest.fixture
def own(valkey_url: str, pool: str, tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker in a process of its own, on the pool of the others."""
    settings = {"EMQ_REDIS_URL": valkey_url, "EMQ_POOL": pool}
    process = BrokerProcess(tmp_path / "log", data=tmp_path / "own", settings=settings).start()
    yield process
    process.end()
    shutil.rmtree(process.data)


async def test_500_mb_pass_with_flat_memory_on_both_sides(broker: Broker, own: BrokerProcess, large: Path) -> None:
    """Out of a worker, to a client, and into another worker; what runs in ComfyUI's place is this process."""
    others, side = children(os.getpid()), SideProcess()
    side.start()
    await wait_until(lambda: side.is_there, what="the side process runs")
    (carrier,) = (pid for pid, said in children(os.getpid()).items() if pid not in others and "emq.keeper" in said)
    gathered = Gathered([Output("2", str(large))])
    async with held_job(broker) as (worker, held):
        with flat_memory(own.pid, carrier, os.getpid()):
            outputs = await Courier(lambda _: [own.url], side.put).deliver(claimed(held), gathered, lambda: True)
        await worker.finish(held, {"outputs": outputs})
        path, size = f"{own.url}/api/jobs/{held.job_id}/outputs/{outputs[0]['name']}", 0
        async with broker.http.get(path) as answer:
            with flat_memory(own.pid):
                async for piece in answer.content.iter_chunked(1 << 20):
                    size += len(piece)
        assert size == 500 << 20
    await side.close()
    async with held_job(broker, "sim-2") as (_, next_held):
        inputs = Inputs(lambda _: [own.url], InputCache(lambda: str(large.parent), 10**10), lambda *_: None)
        graph: dict[str, Any] = {"1": {"class_type": "Any", "inputs": {"file": ""}}}
        source = {"output": {"job_id": held.job_id, "node_id": "2", "index": 0}}
        with flat_memory(own.pid, os.getpid()):
            await inputs.place(claimed(next_held), graph, {"1.file": source})
        assert inputs.fetched_bytes == (large.parent / str(graph["1"]["inputs"]["file"])).stat().st_size == 500 << 20
        inputs.release(next_held.job_id)
        await inputs.close()
