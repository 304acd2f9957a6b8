"""Files go with their job, or before it where rules say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from broker.app import STORE
from broker.errors import ConfigurationError, NotFound
from broker.files.cleanup import Cleaner
from broker.files.meter import Expected
from broker.files.opening import open_store
from broker.files.retention import KeepRules, parse_rules
from broker.files.store import FileStore
from tests.api.conftest import Broker, Start
from tests.files.conftest import Stream, stream
from tests.support.outputs import held_job, put, stored_files
from tests.support.s3 import Bucket
from tests.support.servers import free_port
from tests.support.waiting import wait_until

__all__ = ["stream"]


async def completed(broker: Broker) -> str:
    async with held_job(broker) as (worker, held):
        _, stored = await put(broker, held)
        await worker.finish(held, {"outputs": [{"node_id": "2", "kind": "image", **stored}]})
        return held.job_id


async def test_a_deleted_job_takes_its_files_with_it(broker: Broker, tmp_path: Path) -> None:
    async with held_job(broker) as (worker, held):
        await put(broker, held)
        assert (await broker.json("DELETE", f"/api/jobs/{held.job_id}"))[0] == 409
        assert stored_files(tmp_path)
        await worker.finish(held)
    status, answer = await broker.json("DELETE", f"/api/jobs/{held.job_id}")
    assert (status, answer["deleted"]) == (200, True)
    assert stored_files(tmp_path) == []
    assert (await broker.json("GET", f"/api/jobs/{held.job_id}"))[0] == 404
    assert (await broker.json("DELETE", f"/api/jobs/{held.job_id}"))[0] == 404


async def test_a_deleted_job_takes_its_files_out_of_the_bucket(start_broker: Start, bucket: Bucket) -> None:
    broker = await start_broker(store_url=bucket.store_url)
    job, other = await completed(broker), await completed(broker)
    assert (await broker.json("DELETE", f"/api/jobs/{job}"))[0] == 200
    assert {key.split("/")[5] for key in bucket.listed()} == {other}


async def test_rules_remove_files_and_keep_the_record(broker: Broker, tmp_path: Path) -> None:
    job = await completed(broker)
    store = broker.server.app[STORE]

    async def cleaned(rules: str) -> int:
        return await Cleaner(store, broker.queue, 86_400, parse_rules(rules)).round()

    assert await cleaned("failed=0,other/*=0,default/completed=60") == 0
    assert await cleaned("*=0,default/completed=60") == 0, "the most exact rule counts"
    assert len(stored_files(tmp_path)) == 2
    assert await wait_until(lambda: cleaned("completed=0"), what="a moment has passed") == 1
    assert stored_files(tmp_path) == []
    _, record = await broker.json("GET", f"/api/jobs/{job}")
    assert record["status"] == "completed"
    assert (await broker.json("GET", record["result"]["outputs"][0]["url"]))[0] == 404


async def test_files_of_a_job_that_goes_on_stay(broker: Broker, tmp_path: Path) -> None:
    async with held_job(broker) as (_, held):
        await put(broker, held)
        assert await Cleaner(broker.server.app[STORE], broker.queue, 86_400, parse_rules("*=0")).round() == 0
        assert stored_files(tmp_path)


def test_the_rules_by_tenant_and_status() -> None:
    rules = parse_rules("completed=3600, shop/completed=60,shop/*=0,")
    found = [
        rules.seconds(*of) for of in (("a", "completed"), ("a", "failed"), ("shop", "completed"), ("shop", "failed"))
    ]
    assert found == [3600, None, 60, 0]
    assert (rules.shortest, KeepRules({}).shortest) == (0, None)


@pytest.mark.parametrize("text", ["x", "completed", "completed=-1", "completed=1h", "done=5", "/completed=5"])
def test_rules_that_are_none(text: str) -> None:
    with pytest.raises(ConfigurationError, match="EMQ_KEEP_OUTPUTS"):
        parse_rules(text)


# -- input files -------------------------------------------------------------------------------------------------------


async def uploaded(broker: Broker, content: bytes) -> str:
    """The path of an input file that was stored."""
    path = f"/api/assets/{blake3(content).hexdigest()}"
    assert (await broker.json("PUT", path, data=content))[0] == 201
    return path


def age(folder: Path) -> None:
    """Make everything below a folder look as if it were written long ago."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (0, 0))


async def status_of(broker: Broker, path: str) -> int:
    async with broker.http.get(broker.url + path) as answer:
        return answer.status


async def test_input_files_that_nobody_uses_go(tmp_path: Path, stream: Stream) -> None:
    """What was sent again or asked for since stays, whichever process it was that did so."""
    first, later = (open_store(tmp_path, "assets", keep_unused_s=100) for _ in range(2))

    async def sent(store: FileStore, content: bytes) -> str:
        file, _ = await store.put("t", None, stream(content), label="a", expected=Expected(100))
        return file.key

    unused, read, again = [await sent(first, content) for content in (b"unused", b"read", b"again")]
    age(tmp_path)
    await later.stat(read)
    await sent(later, b"again")
    assert await first.delete_unused("t") == 1
    with pytest.raises(NotFound):
        await first.stat(unused)
    assert {(await first.stat(key)).key for key in (read, again)} == {read, again}
    assert len(stored_files(tmp_path)) == 6, "two files, each with its document and a note of its use"
    age(tmp_path)
    assert await first.delete_unused("t") == 2
    assert stored_files(tmp_path) == []


async def test_a_use_is_not_written_down_each_time(tmp_path: Path, stream: Stream) -> None:
    store = open_store(tmp_path, "assets", keep_unused_s=100)
    file, _ = await store.put("t", None, stream(b"a file"), label="a", expected=Expected(100))
    await store.stat(file.key)
    age(tmp_path)
    await store.stat(file.key)
    assert {path.stat().st_mtime for path in stored_files(tmp_path)} == {0}


async def test_a_file_that_another_replica_asks_for_is_in_use(start_broker: Start, tmp_path: Path) -> None:
    has, asks = [
        await start_broker(data=tmp_path / name, port=free_port(), secret="the same at both") for name in ("a", "b")
    ]
    path = await uploaded(has, b"here")
    assert not any(file.name.endswith(".used") for file in stored_files(tmp_path / "a"))
    assert await status_of(asks, path) == 200
    assert [file.name for file in stored_files(tmp_path / "a") if file.suffix] == [path.rpartition("/")[2] + ".used"]


async def test_input_files_go_from_a_bucket(start_broker: Start, bucket: Bucket, pool: str, tmp_path: Path) -> None:
    broker = await start_broker(store_url=bucket.store_url)
    path = await uploaded(broker, b"a file")
    assert await status_of(broker, path) == 200
    assert len(bucket.listed()) == 3
    assets = open_store(tmp_path, f"{pool}/assets", bucket.store_url, keep_unused_s=1)

    async def is_gone() -> bool:
        return await assets.delete_unused("default") == 1

    await wait_until(is_gone, what="its time is over")
    assert await status_of(broker, path) == 404
    assert bucket.listed() == []
