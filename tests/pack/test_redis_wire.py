"""The worker's and the side process' own connections reach Redis wherever redis-py does."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from comfyui_emq_node.keeper import Server
from comfyui_emq_node.queue import QueueAway
from comfyui_emq_node.redis_client import close_client, open_client, open_wire, server_of
from comfyui_emq_node.redis_queue import RedisQueue
from comfyui_emq_node.redis_wire import Wire
from comfyui_emq_node.resp import Incomplete, ReplyError, pack, parse
from tests.support.servers import RedisServer, free_port, redis7_binary
from tests.support.waiting import wait_until

KEY = "emq:{default}:"
LIBRARY = "#!lua name=t\nredis.register_function('emq_bye', function(k, a) return { 'ok', a[1], a[2] } end)"


def certificates(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that is its own authority."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
         str(key), "-out", str(certificate), "-days", "2", "-subj", "/CN=emq", "-addext",
         "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, certificate


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    made = Path(tempfile.mkdtemp(prefix="emq-wire-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def server(folder: Path) -> Iterator[RedisServer]:
    made = RedisServer("wire", redis7_binary(), folder)
    yield made
    made.kill()


@pytest.fixture(params=["tcp", "unix", "user", "tls", "sentinel", "cluster"])
async def url(request: pytest.FixtureRequest, server: RedisServer, folder: Path) -> AsyncIterator[str]:
    """The address of a server, in each form."""
    kind = request.param
    if kind == "tls":
        key, certificate = certificates(folder)
        port = free_port()
        server.start("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
                     "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no")  # fmt: skip
        yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
    elif kind == "cluster":
        server.start("--cluster-enabled", "yes")
        with redis.Redis.from_url(server.url) as admin:
            admin.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            await wait_until(lambda: admin.execute_command("CLUSTER INFO")["cluster_state"] == "ok", 20, "it is whole")
        yield f"redis+cluster://127.0.0.1:{server.port}"
    elif kind == "sentinel":
        server.start()
        config, port = folder / "sentinel.conf", free_port()
        config.write_text(f"port {port}\nsentinel monitor main 127.0.0.1 {server.port} 1\n")
        with subprocess.Popen([redis7_binary(), str(config), "--sentinel"], stdout=subprocess.DEVNULL) as sentinel:  # noqa: ASYNC220
            client = redis.Redis(port=port)
            await wait_until(lambda: _knows(client), 20, "the sentinel knows its server")
            yield f"redis+sentinel://127.0.0.1:{port}/main/2"
            client.close()
            sentinel.kill()
    else:
        server.start()
        if kind == "user":
            with redis.Redis.from_url(server.url) as admin:
                admin.acl_setuser("worker", enabled=True, passwords=["+p:w"], keys=["*"], commands=["+@all"])
        yield {
            "tcp": f"redis://127.0.0.1:{server.port}/3",
            "unix": f"{server.socket_url}?db=1",
            "user": f"redis://worker:p%3Aw@127.0.0.1:{server.port}/0",
        }[kind]


def _knows(client: redis.Redis) -> bool:
    try:
        return client.sentinel_get_master_addr_by_name("main") is not None
    except redis.RedisError:
        return False


async def test_every_address_is_reached(url: str) -> None:
    client = open_client(url, 5.0, 2)
    wire = await open_wire(client, KEY)
    try:
        big = os.urandom(3 << 20)
        replies = await wire.ask([pack(["SET", f"{KEY}big", big]), pack(["NOT", "a", "command"])])
        assert replies[0] == b"OK"
        assert isinstance(replies[1], ReplyError)
        many = [pack(["SET", f"{KEY}{n}", n]) for n in range(50)]
        asked = [wire.ask([command, pack(["GET", f"{KEY}big"])]) for command in many]
        assert [replies[1] == big for replies in await asyncio.gather(*asked)] == [True] * 50
        # The side process, by what the client found: the same server, the same database.
        side = Server(server_of(client, KEY))
        assert await asyncio.to_thread(side.call, "GET", f"{KEY}49") == b"49"
        with pytest.raises(ReplyError, match="unknown command"):
            side.call("NOT", "a", "command")
        assert side.call("FUNCTION", "LOAD", LIBRARY) == b"t"
        assert side.call("FCALL", "emq_bye", 1, KEY, "x", "y") == [b"ok", b"x", b"y"]
        side.close()
    finally:
        await wire.close()
        await close_client(client)


async def test_an_unknown_certificate_is_refused(server: RedisServer, folder: Path) -> None:
    key, certificate = certificates(folder)
    port = free_port()
    server.start("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key),
                 "--tls-ca-cert-file", str(certificate), "--tls-auth-clients", "no")  # fmt: skip
    client = open_client(f"rediss://127.0.0.1:{port}/0", 5.0, 0)
    with pytest.raises(OSError, match="certificate"):
        await asyncio.to_thread(Server(server_of(client, KEY)).call, "PING")
    unchecked = open_client(f"rediss://127.0.0.1:{port}/0?ssl_cert_reqs=none", 5.0, 0)
    side = Server(server_of(unchecked, KEY))
    assert await asyncio.to_thread(side.call, "PING") == b"PONG"
    side.close()
    await close_client(client)
    await close_client(unchecked)


async def test_a_queue_outlives_its_server(server: RedisServer) -> None:
    """A call on a connection that has died is made again on a new one; without a server it says what is wrong."""
    server.start()
    queue = RedisQueue(lambda: server.url, "default", "w", "i")
    try:
        with pytest.raises(QueueAway, match="start a broker on it"):
            await queue.bye()
        for _ in range(2):
            with redis.Redis.from_url(server.url) as admin:
                admin.function_load(LIBRARY, replace=True)
            await queue.bye()
            server.kill()
            with pytest.raises(QueueAway):
                await queue.bye()
            server.start()
    finally:
        await queue.close()


async def test_no_answer_ends_a_connection(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comfyui_emq_node.redis_wire.LIMIT_S", 0.3)
    server.start()
    client = open_client(server.url, 5.0, 0)
    wire: Wire = await open_wire(client, KEY)
    with pytest.raises(ConnectionError, match="does not answer"):
        await wire.ask([pack(["BLPOP", "nothing", 0])])
    assert wire.is_closed
    with pytest.raises(ConnectionError):
        await wire.ask([pack(["PING"])])
    await wire.close()
    await close_client(client)


async def test_a_patient_call_goes_with_the_next_and_before_it(server: RedisServer) -> None:
    server.start()
    client = open_client(server.url, 5.0, 0)
    wire: Wire = await open_wire(client, KEY)
    assert await wire.ask([pack(["SET", f"{KEY}a", 1])], 0.01) == [b"OK"]  # nothing follows: it goes by itself
    patient = asyncio.ensure_future(wire.ask([pack(["SET", f"{KEY}a", 2]), pack(["INCR", f"{KEY}a"])], 3600))
    await asyncio.sleep(0)
    assert await wire.ask([pack(["GET", f"{KEY}a"])]) == [b"3"]
    assert await patient == [b"OK", 3]
    unsent = asyncio.ensure_future(wire.ask([pack(["PING"])], 3600))
    await asyncio.sleep(0)
    await wire.close()
    with pytest.raises(ConnectionError):
        await unsent
    await close_client(client)


def test_replies_are_read_piece_by_piece() -> None:
    text = b"*5\r\n$2\r\nok\r\n:7\r\n$-1\r\n*1\r\n+in\r\n-ERR no\r\n+next\r\n"
    whole, at = parse(text)
    assert whole[:4] == [b"ok", 7, None, [b"in"]]
    assert str(whole[4]) == "ERR no"
    assert parse(text, at) == (b"next", len(text))
    for end in range(at):
        with pytest.raises(Incomplete):
            parse(text[:end])
    with pytest.raises(ValueError, match="no reply"):
        parse(b"?\r\n")
    assert pack(["a", 1, b"\r\n"]) == b"*3\r\n$1\r\na\r\n$1\r\n1\r\n$2\r\n\r\n\r\n"
