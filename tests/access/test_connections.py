"""Connections that are too many, silent, slow or endless are cut; those who behave do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from broker.api.doorman import MAX_HEADER, MAX_SILENT, Hall
from broker.api.seats import MOST, RESERVED, socket_limit
from broker.errors import ConfigurationError
from tests.access.conftest import Guarded, bearer, handshake
from tests.api.conftest import Broker, submit
from tests.support.waiting import wait_until

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def door(broker: Broker, header_s: float) -> AsyncIterator[int]:
    """The port of a listener as ``serve`` has it, before a broker of this process."""
    hall = Hall(broker.serving, header_s)
    server = await asyncio.get_running_loop().create_server(hall, "127.0.0.1", 0, backlog=1024)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@contextlib.asynccontextmanager
async def connected(port: int, count: int, first: bytes = b"") -> AsyncIterator[list[Streams]]:
    """Connections that have sent ``first`` and say no more."""
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for _, writer in streams:
        writer.write(first)
    try:
        yield streams
    finally:
        for _, writer in streams:
            writer.transport.abort()


async def ended(streams: Streams, within: float = 10.0) -> bytes:
    """What comes until the broker ends the connection."""
    async with asyncio.timeout(within):
        with contextlib.suppress(ConnectionError):
            return await streams[0].read()
        return b""


HEADER_S = 2.0
"""Long enough for a header that is sent at once, also where this process has to wait for its turn."""


@pytest.mark.parametrize(
    "first",
    [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: a\r\nX: y\r\n", b"\r\n\r\n", b"\r\n\r\nGET /health HT"],
)
async def test_a_header_that_does_not_come_is_not_waited_for(guarded: Guarded, first: bytes) -> None:
    async with door(guarded.broker, HEADER_S) as port, connected(port, 99, first) as silent:
        started = time.monotonic()  # before the last one comes, whose time begins when it is let in
        async with connected(port, 1, first) as last:
            async with guarded.broker.http.get(f"http://127.0.0.1:{port}/health/live") as response:
                assert response.status == 200
            for streams in (*silent, *last):
                assert await ended(streams) == b""
            assert time.monotonic() - started >= HEADER_S * 0.9


async def test_of_many_silent_connections_the_oldest_go(guarded: Guarded) -> None:
    async with door(guarded.broker, 60) as port, connected(port, MAX_SILENT) as silent:
        await asyncio.sleep(1.1)  # they are silent from then on
        async with connected(port, 5):
            gone = await asyncio.gather(*(ended(streams) for streams in silent[:5]))
            assert gone == [b""] * 5
            async with guarded.broker.http.get(f"http://127.0.0.1:{port}/health/live") as response:
                assert response.status == 200


async def test_a_header_without_end_is_cut(guarded: Guarded) -> None:
    lines = b"".join(b"X-%d: %s\r\n" % (n, b"y" * 1000) for n in range(MAX_HEADER // 1000 + 2))
    async with door(guarded.broker, 60) as port:
        async with connected(port, 1, b"GET /health HTTP/1.1\r\nHost: a\r\n" + lines) as (streams,):
            assert await ended(streams) == b""
        long = b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 9000 + b"\r\n\r\n"
        async with connected(port, 1, long) as (streams,):
            assert b" 400 " in (await ended(streams))[:20]


async def test_a_connection_serves_on_behind_the_door(guarded: Guarded) -> None:
    key = await guarded.key("submit", "read")
    async with door(guarded.broker, HEADER_S) as port:
        base = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession(base, headers=bearer(key)) as http, http.ws_connect("/ws") as ws:
            for _ in range(2):
                async with http.post("/api/jobs", json=submit()) as response:
                    assert response.status == 201
            async with connected(port, 1) as (silent,):
                assert await ended(silent) == b"", "longer than a header may take"
            await ws.send_json({"type": "request_stats"})
            assert (await ws.receive_json())["type"] == "response_stats"


async def test_a_replica_that_is_full_says_so(guarded: Guarded) -> None:
    key = await guarded.key("submit", "read", "worker")
    broker = await guarded.another(max_sockets=2)
    await guarded.honoured(broker, key)
    async with guarded.client(key, broker), guarded.client(key, broker, "/ws/worker"):
        for path in ("/ws", "/ws/client/a", "/ws/monitor/m", "/ws/worker"):
            assert await handshake(broker, path, headers=bearer(key)) == 503
        async with broker.http.get(broker.url + "/ws", headers=bearer(key)) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
        job = (await broker.json("POST", "/api/jobs", json=submit(), headers=bearer(key)))[1]["job_id"]
        assert (await broker.json("GET", f"/api/jobs/{job}/events", headers=bearer(key)))[0] == 503
        assert await handshake(guarded.broker, headers=bearer(key)) == 101, "another replica has room"

    async def room() -> bool:
        return await handshake(broker, headers=bearer(key)) == 101

    await wait_until(room, 5, "a closed socket makes room")


def test_the_limit_of_open_files_is_raised_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    limits = {"now": (1024, 4096)}
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda _, pair: asked.append(pair))
    assert socket_limit(1000) == 1000
    assert asked == [(1000 + RESERVED, 4096)]
    assert socket_limit(None) == 4096 - RESERVED
    with pytest.raises(ConfigurationError, match="EMQ_MAX_SOCKETS is 4000, but this process may have 4096 open files"):
        socket_limit(4000)
    limits["now"] = (1 << 20, 1 << 20)
    assert socket_limit(None) == MOST
    assert len(asked) == 3


async def test_what_a_client_never_reads_harms_nobody_else(guarded: Guarded) -> None:
    """Twenty clients ask and take nothing; another's answers come as before."""
    key = await guarded.key("submit", "read")
    upgrade = (
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Authorization: Bearer {key}\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    )
    text = b'{"type":"list_jobs"}'
    frame = bytes([0x81, 0x80 | len(text), 0, 0, 0, 0]) + text
    async with connected(guarded.broker.server.port or 0, 20, upgrade.encode()) as deaf, guarded.client(key) as client:
        for _, writer in deaf:
            writer.write(frame * 2000)
        for _ in range(20):
            started = time.monotonic()
            assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"
            assert time.monotonic() - started < 5
