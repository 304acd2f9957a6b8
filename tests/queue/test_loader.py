"""The loader brings the functions to a server, and only forward."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from broker.queue import loader

PREFIX = "emq:{loader}:"


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    """A client of a server without the library."""
    client = Redis.from_url(redis_url, protocol=2)
    await client.function_flush()
    await client.delete(f"{PREFIX}meta")
    yield client
    await client.function_flush()
    await client.delete(f"{PREFIX}meta")
    await loader.load(client, PREFIX)
    await client.aclose()


async def version(client: Redis) -> int:
    answer = await client.fcall("emq_version", 0)
    return int(answer[2])


def library(number: int) -> str:
    return loader.library().text.replace(f"Q.VERSION = {loader.library().version}", f"Q.VERSION = {number}")


async def test_a_missing_library_is_loaded(client: Redis) -> None:
    assert await loader.load(client, PREFIX) == loader.library().version
    assert await version(client) == loader.library().version


async def test_many_brokers_may_load_at_once(client: Redis) -> None:
    versions = await asyncio.gather(*(loader.load(client, PREFIX) for _ in range(8)))
    assert set(versions) == {loader.library().version}


async def test_an_older_library_is_replaced(client: Redis) -> None:
    await client.function_load(library(0))
    assert await loader.load(client, PREFIX) == loader.library().version
    assert await version(client) == loader.library().version
    assert int(await client.hget(f"{PREFIX}meta", "library") or 0) == loader.library().version


async def test_a_newer_library_stays(client: Redis) -> None:
    await client.function_load(library(999))
    assert await loader.load(client, PREFIX) == 999
    assert await version(client) == 999


async def test_force_is_the_way_down(client: Redis) -> None:
    await client.function_load(library(999))
    assert await loader.load(client, PREFIX, force=True) == loader.library().version
    assert await version(client) == loader.library().version


async def test_errors_name_the_file_and_line(client: Redis) -> None:
    await loader.load(client, PREFIX)
    await client.set(f"{PREFIX}j:broken", "no hash")
    with pytest.raises(ResponseError) as caught:
        await client.fcall("emq_job", 1, PREFIX, "job", "broken")
    await client.delete(f"{PREFIX}j:broken")
    assert "_02_records.lua:" in loader.library().explain(str(caught.value))


def test_every_function_says_what_it_is() -> None:
    """Each command's file begins with its name, and names guarantee, arguments and answer."""
    for path in loader.FOLDER.glob("[a-z]*.lua"):
        head = path.read_text()
        assert head.startswith(f"-- emq_{path.stem}: "), path.name
        for word in ("-- Guarantee: ", "-- Arguments: ", "-- Answer: "):
            assert word in head, f"{path.name} lacks {word}"
        assert f"'emq_{path.stem}'" in head


def test_files_stay_small() -> None:
    sizes = {path.name: path.read_text().count("\n") for path in loader.FOLDER.glob("*.lua")}
    assert {name: lines for name, lines in sizes.items() if lines > 150} == {}


@pytest.mark.parametrize("function", ["submit", "retry"])
async def test_what_adds_work_is_refused_without_memory(client: Redis, function: str) -> None:
    """Only what adds work is refused at the memory limit; what ends it, and readers, still run."""
    await loader.load(client, PREFIX)
    listed = await client.function_list("emq")
    flags = {bytes(f[1]).decode(): {bytes(x) for x in f[5]} for f in listed[0][5]}
    assert flags.pop(f"emq_{function}") == set()
    rest = {name: f for name, f in flags.items() if not f & {b"allow-oom", b"no-writes"}}
    assert set(rest) == {"emq_submit", "emq_retry"} - {f"emq_{function}"}
