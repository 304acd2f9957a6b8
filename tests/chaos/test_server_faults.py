"""What may become of the server and its files, one fault at a time; each ends with the rules of ``fsck``."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.errors import NotFound, Unavailable
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.queue import Queue
from tests.chaos.power import Power
from tests.support.jobs import new_job
from tests.support.servers import RedisServer, redis7_binary, valkey_binary
from tests.support.waiting import wait_until

POOL = "default"
PREFIX = f"emq:{{{POOL}}}:"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A Valkey that is not started yet."""
    folder = Path(tempfile.mkdtemp(prefix="emq-fault-"))
    server = RedisServer("fault", valkey_binary(), folder)
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def connected(server: RedisServer) -> AsyncIterator[tuple[Connection, Queue]]:
    connection = Connection(server.url)
    try:
        await connection.load(PREFIX)
        queue = Queue(connection, POOL)
        await queue.configure()
        yield connection, queue
    finally:
        await connection.close()


async def waiting(server: RedisServer) -> int:
    """How many jobs wait; the pool must be in order."""
    async with connected(server) as (connection, queue):
        assert not await Check(connection, PREFIX).run()
        return (await queue.stats()).number("pending")


def log_file(server: RedisServer) -> Path:
    return next((server.folder / "appendonlydir").glob("*.incr.aof"))


def refusal(server: RedisServer) -> str:
    """What a server says that ends at its start."""
    server._launch(("--appendfsync", "always"))
    assert server.process
    assert server.process.wait(30)
    return (server.folder / "log").read_text()


def mend(file: Path) -> None:
    """Cut off what comes after the damage, with the servers' own tool."""
    tool = Path(redis7_binary()).with_name("redis-check-aof")
    subprocess.run([tool, "--fix", file], input=b"y\n", stdout=subprocess.DEVNULL, check=True, timeout=60)


def make_larger(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)


async def fill(queue: Queue, taken: list[str]) -> None:
    """Submit until it is refused."""
    for number in range(3000):
        await queue.submit("t", [new_job(f"j{number}", payload=b"x" * 4096)])
        taken.append(f"j{number}")


async def test_a_torn_end_loses_the_last_call_and_nothing_else(server: RedisServer) -> None:
    """A call is in the file whole or not at all, wherever it is cut."""
    server.start("--appendfsync", "always")
    async with connected(server) as (_, queue):
        for number in range(5):
            await queue.submit("t", [new_job(f"j{number}")])
        before = log_file(server).stat().st_size
        await queue.submit("t", [new_job("last")])
    server.kill()
    whole = log_file(server).read_bytes()
    added = len(whole) - before
    assert added > 200
    for cut in (1, 2, 7, added // 3, added // 2, added - 1):
        log_file(server).write_bytes(whole[: len(whole) - cut])
        server.start("--appendfsync", "always")
        assert await waiting(server) == 5, f"cut by {cut}"
        server.kill()


async def test_a_damaged_middle_is_refused_and_cut_off_by_hand(server: RedisServer) -> None:
    """As ``docs/operations.md`` tells it: what comes after the damage is lost, what comes before is in order."""
    server.start("--appendfsync", "always")
    async with connected(server) as (_, queue):
        await queue.submit("t", [new_job(f"j{number}") for number in range(5)])
        middle = log_file(server).stat().st_size
        await queue.submit("t", [new_job(f"k{number}") for number in range(5)])
    server.kill()
    damaged = bytearray(log_file(server).read_bytes())
    damaged[damaged.index(b"*", middle)] = ord("!")
    log_file(server).write_bytes(damaged)
    assert "Bad file format" in refusal(server)
    mend(log_file(server))
    server.start("--appendfsync", "always")
    assert await waiting(server) == 5


@pytest.mark.parametrize("fsync", ["everysec", "always"])
async def test_a_full_disk_stops_work_and_loses_none(server: RedisServer, small_disk: Path, fsync: str) -> None:
    """``everysec``: writes are refused until there is room. ``always``: the server ends, and comes back with all."""
    server.folder = small_disk
    server.start("--appendfsync", fsync)
    taken: list[str] = []
    async with connected(server) as (connection, queue):
        with pytest.raises(Unavailable):
            await fill(queue, taken)
        assert taken, "some fitted"
        make_larger(small_disk)
        if fsync == "always":
            assert server.process
            assert await asyncio.to_thread(server.process.wait, 10)
            server.start("--appendfsync", fsync)

        async def taken_again() -> bool:
            try:
                await queue.submit("t", [new_job("after")])
            except Unavailable:
                return False
            return True

        await wait_until(taken_again, 20, "there is room again")
        there = [await queue.job(job, "t") for job in taken]
        assert {job.text("status") for job in there} == {"pending"}
        assert not await Check(connection, PREFIX).run()


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder in memory, where there is such a place: an fsync takes no time there, whatever keeps the disk busy."""
    place = "/dev/shm"
    with tempfile.TemporaryDirectory(prefix="emq-memory-", dir=place if os.access(place, os.W_OK) else None) as folder:
        yield Path(folder)


async def test_a_power_cut_with_everysec_takes_the_last_moments_only(
    in_memory: Path, server: RedisServer, tmp_path: Path
) -> None:
    """What is left is in order; a lost job is unknown, and comes with its next submit."""
    power = Power(tmp_path / "power")
    if not power.possible:
        pytest.skip("cutting the power needs a C compiler")
    server.folder = in_memory
    with power.shim():
        server.start("--appendfsync", "everysec")
    taken: list[tuple[str, float]] = []
    async with connected(server) as (_, queue):
        end = time.monotonic() + 4.5
        while time.monotonic() < end:
            job = f"j{len(taken)}"
            await queue.submit("t", [new_job(job, idempotency_key=job)])
            taken.append((job, time.monotonic()))
            await asyncio.sleep(0.01)
    cut_at = time.monotonic()
    server.kill()
    power.cut(server.folder)
    server.start("--appendfsync", "everysec")
    async with connected(server) as (connection, queue):
        assert not await Check(connection, PREFIX).run()
        lost = []
        for job, at in taken:
            try:
                await queue.job(job, "t")
            except NotFound:
                lost.append((job, at))
        assert len(lost) < len(taken)
        # A second by its name, until the server looks again, and what a busy machine keeps it from looking.
        assert all(cut_at - at < 3.0 for _, at in lost)
        for job, _ in (*lost, *taken[:3]):
            answers = await queue.submit("t", [new_job(f"{job}-again", idempotency_key=job)])
            assert answers[0].text("job_id") == (f"{job}-again" if (job, _) in lost else job)
        assert not await Check(connection, PREFIX).run()
