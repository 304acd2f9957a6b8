"""The side process by itself: it ends with its parent, whatever holds its pipes, and it carries files."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from blake3 import blake3

from comfyui_emq_node.carrier import SMALL, Carrier, Errand
from comfyui_emq_node.side import SideProcess
from tests.support.processes import children, is_there, state
from tests.support.servers import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PARENT = """
import os, subprocess, sys, time
from comfyui_emq_node.side import _command
child = subprocess.Popen(_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
if os.fork() == 0:  # holds the pipes open, as forked children do
    time.sleep(60)
print(child.pid, flush=True)
time.sleep(60)
"""


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process has asked not to get a signal."""
    ignored = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored.split()[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_it_ends_with_its_parent_though_a_fork_holds_the_pipe(number: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE) as parent:  # noqa: ASYNC220
        assert parent.stdout is not None
        side = int(await asyncio.to_thread(parent.stdout.readline))
        forked = [pid for pid in children(parent.pid) if pid != side]
        for passing in (signal.SIGINT, signal.SIGTERM):
            await wait_until(partial(ignores, side, passing), 20, "the side process has begun")
            os.kill(side, passing)
        assert state(side)[0] not in {"", "Z"}
        parent.send_signal(number)
        await wait_until(lambda: not is_there(side), 10, "the side process has ended")
        for pid in forked:
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
async def taken() -> AsyncIterator[tuple[TestServer, list[tuple[str, str | None, bytes]]]]:
    """A web server that takes files, sends some elsewhere and refuses some."""
    got: list[tuple[str, str | None, bytes]] = []

    async def put(request: web.Request) -> web.Response:
        if request.path.startswith("/refused"):
            return web.json_response({"error": "no", "details": {"reason": "stale_lease"}}, status=409)
        body = await request.read()
        got.append((request.path, request.headers.get("Authorization"), body))
        if request.path.startswith("/elsewhere"):
            return web.json_response({"key": "k"}, status=307, headers={"Location": "/store/it?signed=1"})
        if request.path.startswith("/expired"):
            return web.json_response({"key": "k"}, status=307, headers={"Location": "/refused/by-the-store"})
        if request.path.startswith("/last"):
            response = web.json_response({"key": "k"}, status=201)
            response.force_close()
            return response
        return web.json_response({"key": "k"}, status=201)

    app = web.Application(client_max_size=1 << 30)
    app.router.add_put("/{rest:.*}", put)
    server = TestServer(app)
    async with server:
        yield server, got


@pytest.fixture(params=["side process", "thread"])
async def side(request: pytest.FixtureRequest) -> AsyncIterator[SideProcess]:
    """Files go by the side process, and by a thread where there is none."""
    made = SideProcess()
    if request.param == "side process":
        made.start()
        await wait_until(lambda: made.is_there, 20, "it runs")
    yield made
    await made.close()


async def test_files_are_carried(
    side: SideProcess, taken: tuple[TestServer, list[tuple[str, str | None, bytes]]], tmp_path: Path
) -> None:
    server, got = taken
    small, large, empty = (tmp_path / name for name in ("small", "large", "empty"))
    contents = {small: b"x" * 10, large: os.urandom(3 * SMALL), empty: b""}
    for path, content in contents.items():
        path.write_bytes(content)

    def errand(path: Path, place: str = "out", limit: int | None = None) -> Errand:
        return Errand(str(path), str(server.make_url(f"/{place}/{path.name}")), "Lease j.1.t", limit)

    for path, content in contents.items():
        said = await side.put(errand(path))
        assert (said["status"], said["answer"]) == (201, {"key": "k"})
        assert (said["size"], said["hash"]) == (len(content), f"blake3:{blake3(content).hexdigest()}")
        assert got.pop() == (f"/out/{path.name}", "Lease j.1.t", content)
    # The server closes the connection: the next file gets a new one.
    assert [(await side.put(errand(small, "last")))["status"] for _ in range(2)] == [201, 201]
    got.clear()
    # To the object store itself, without the lease.
    assert (await side.put(errand(large, "elsewhere")))["answer"] == {"key": "k"}
    assert [(path, ticket) for path, ticket, _ in got] == [("/elsewhere/large", "Lease j.1.t"), ("/store/it", None)]
    # The store's refusal is none of the broker's: the lease is not lost by it.
    assert (await side.put(errand(large, "expired"))) == {"again": "the object store answers HTTP 409"}
    # A refusal that comes before the end of a file is understood.
    refused = await side.put(errand(large, "refused"))
    assert (refused["status"], refused["answer"]["details"]) == (409, {"reason": "stale_lease"})
    assert await side.put(errand(small, limit=9)) == {"too_large": 10}
    assert "No such file" in (await side.put(errand(tmp_path / "none")))["unreadable"]
    away = Errand(str(small), f"http://127.0.0.1:{free_port()}/x", "Lease j.1.t")
    assert "refused" in (await side.put(away))["again"]
    # Many at once.
    many = await asyncio.gather(*(side.put(errand(large)) for _ in range(12)))
    assert {said["status"] for said in many} == {201}


async def test_errands_of_a_killed_side_process_are_to_be_tried_again(tmp_path: Path) -> None:
    others, side = children(os.getpid()), SideProcess()
    side.start()
    await wait_until(lambda: side.is_there, 20, "it runs")
    (first,) = children(os.getpid()).keys() - others.keys()
    file = tmp_path / "file"
    file.write_bytes(b"x")

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with_errand.set()
        while await reader.read(1024):
            pass
        writer.close()
        hung_up.set()

    with_errand, hung_up = asyncio.Event(), asyncio.Event()
    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    under_way = asyncio.ensure_future(side.put(Errand(str(file), f"http://127.0.0.1:{port}/x", "Lease j.1.t")))
    await asyncio.wait_for(with_errand.wait(), 20)
    os.kill(first, signal.SIGKILL)
    assert "has ended" in (await asyncio.wait_for(under_way, 20))["again"]
    await wait_until(lambda: side.is_there and first not in children(os.getpid()), 20, "there is another")
    await side.close()
    await wait_until(lambda: not children(os.getpid()).keys() - others.keys(), 20, "nothing is left")
    await asyncio.wait_for(hung_up.wait(), 10)
    server.close()


def test_a_carrier_never_raises(tmp_path: Path) -> None:
    assert "again" in Carrier().put(Errand(__file__, "http://[broken/x", "Lease j.1.t"))
