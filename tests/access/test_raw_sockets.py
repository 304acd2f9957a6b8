"""What no WebSocket client would send, and what none would fail to read: only the one who does it feels it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from aiohttp import StreamReader, web
from aiohttp.base_protocol import BaseProtocol

from broker.api import kernel, rest, sending, uploads
from broker.cli import serve
from broker.errors import BadMessage
from broker.settings import Settings
from tests.access.conftest import Guarded
from tests.api.conftest import UPGRADE, Broker, Start, broker
from tests.support.waiting import PATIENCE_S, wait_until

__all__ = ["broker"]

CONTINUED, TEXT, CLOSE, PING = 0, 1, 8, 9
ASKED = b'{"type":"unsubscribe_job","job_id":"none"}'


def frame(kind: int, data: bytes = b"", *, end: bool = True, masked: bool = True) -> bytes:
    """One frame; its mask is of zeroes, which leave the data as it is."""
    size, mask = len(data), 0x80 if masked else 0
    length = bytes([mask | size]) if size < 126 else bytes([mask | 127]) + size.to_bytes(8, "big")
    return bytes([0x80 * end | kind]) + length + bytes(4) * masked + data


def in_pieces(data: bytes) -> bytes:
    """A text in fragments of one byte, with a ping between them."""
    first, *rest = [data[n : n + 1] for n in range(len(data))]
    middle = b"".join(frame(CONTINUED, piece, end=False) + frame(PING) for piece in rest[:-1])
    return frame(TEXT, first, end=False) + middle + frame(CONTINUED, rest[-1])


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(port: int, first: bytes = UPGRADE, *, takes: int | None = None) -> AsyncIterator[Streams]:
    """A connection that has sent ``first``, and takes so many bytes before it is read."""
    sock = socket.socket()
    if takes is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, takes)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    try:
        writer.write(first)
        yield reader, writer
    finally:
        writer.transport.abort()


def port_of(broker: Broker) -> int:
    return broker.server.port or 0


async def others_are_well(broker: Broker) -> None:
    async with broker.client() as client:
        assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (in_pieces(ASKED), b'"subscription_confirmed"'),
        (
            frame(TEXT, ASKED[:9], end=False) + frame(CONTINUED, end=False) * 500 + frame(CONTINUED, ASKED[9:]),
            b'"subscription_confirmed"',
        ),
        (frame(PING, b"x" * 100) * 2000 + frame(TEXT, ASKED), b'"subscription_confirmed"'),
        (frame(TEXT, ASKED, masked=False), b'"subscription_confirmed"'),
        (frame(PING, b"x" * 126), b"\x88\x02\x03\xea"),
        (frame(PING, end=False), b"\x88\x02\x03\xea"),
        (frame(CONTINUED, ASKED), b"\x88\x02\x03\xea"),
        (frame(TEXT, ASKED[:9], end=False) + frame(TEXT, ASKED), b"\x88\x02\x03\xea"),
        (frame(CLOSE, b"x"), b"\x88\x02\x03\xea"),
        (frame(CLOSE, b"\x03\xe7"), b"\x88\x02\x03\xea"),
        (frame(CLOSE, b"\x03\xe8\xff"), b"\x88\x02\x03\xef"),
        (frame(CLOSE, b"\x03\xe8") + frame(TEXT, ASKED) * 5, b"\x88\x02\x03\xe8"),
        (b"GET / HTTP/1.1\r\n\r\n", b"\x88\x02\x03\xea"),
    ],
    ids=[
        "one byte each", "empty fragments", "pings", "unmasked", "long ping", "half a ping", "continued first",
        "text in text", "close of a byte", "close code", "close text", "after the close", "http",
    ],
)  # fmt: skip
async def test_frames_that_no_client_makes(
    broker: Broker, sent: bytes, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """They are read where they can be, and end their own connection where not."""
    async with connected(port_of(broker)) as (reader, writer):
        writer.write(sent)
        heard = b""
        async with asyncio.timeout(10):
            while answer not in heard:
                heard += (piece := await reader.read(65_536))
                assert piece, heard[-200:]
    await others_are_well(broker)
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_message_without_end_is_cut(start_broker: Start) -> None:
    broker = await start_broker(max_message_mb=0.25)
    async with connected(port_of(broker)) as (reader, writer):
        # 512 KiB, and a little: the end is no later than where the message that was cut off would still be readable.
        writer.write(frame(TEXT, b"x", end=False) + frame(CONTINUED, b"y" * 65_536, end=False) * 9)
        heard = b""
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):  # of what the broker did not take
                while piece := await reader.read(65_536):
                    heard += piece
        assert heard[-2:] == (1009).to_bytes(2, "big")
    await others_are_well(broker)


def open_connections(broker: Broker) -> int:
    return len(broker.serving.connections)


FLOODS = {
    "asks": frame(TEXT, json.dumps({"type": "make_coffee", "message_id": "x" * 60}).encode()),
    "pings": frame(PING, b"x" * 120),
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_what_waits_for_one_who_never_reads_keeps_no_connection(
    broker: Broker, flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither when the broker waits to send nor when it has closed: pongs are sent by nobody who would time out."""
    monkeypatch.setattr(kernel, "UNTAKEN_LIVE_S", 1)
    monkeypatch.setattr(sending, "STALLED_S", 600)
    before = open_connections(broker)
    async with connected(port_of(broker), takes=4096) as (reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def gone() -> bool:
            if not writer.transport.is_closing() and writer.transport.get_write_buffer_size() < 1 << 20:
                writer.write(FLOODS[flood] * 2000)
            return open_connections(broker) == before

        await wait_until(gone, 25, "the broker has the connection no more")
    await others_are_well(broker)


async def test_answers_that_are_not_taken_are_not_kept_for_ever(guarded: Guarded) -> None:
    """Of HTTP: a download that nobody reads ends as well."""
    listener = serve._listen(Settings().model_copy(update={"port": 0}))
    assert listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == kernel.UNTAKEN_S * 1000
    kernel.end_untaken(listener, 1)
    server = await asyncio.get_running_loop().create_server(guarded.broker.serving, sock=listener)
    before = open_connections(guarded.broker)
    try:
        asking = b"GET /static/htmx.min.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        async with connected(listener.getsockname()[1], asking * 500, takes=4096) as (reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.pause_reading()  # type: ignore[attr-defined]

            async def gone() -> bool:
                return open_connections(guarded.broker) == before

            await wait_until(gone, 25, "the broker has the connection no more")
    finally:
        server.close()


async def test_a_worker_s_host_that_is_gone_is_found(broker: Broker) -> None:
    """By what it does not confirm: the kernel asks for no sign of life while a ping is on its way."""
    async with broker.client("/ws/worker"):
        (one,) = broker.serving.connections
        held = one.transport.get_extra_info("socket")  # type: ignore[union-attr]
        assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == kernel.DEAD_S * 1000


@pytest.mark.parametrize("next_one", [b"", b"GET / HT"], ids=["nothing", "half a request"])
async def test_a_connection_does_not_idle_for_ever(next_one: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 60 < serve.BETWEEN_REQUESTS_S < 120, "NGINX keeps its own for 60 s"
    monkeypatch.setattr(serve, "BETWEEN_REQUESTS_S", 0.3)
    runner = serve.runner_of(web.Application())
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with connected(port, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") as (reader, writer):
            assert b" 404 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(next_one)
            async with asyncio.timeout(5):
                await reader.read()
    finally:
        await runner.cleanup()


FORM = b"Content-Type: multipart/form-data; boundary=x\r\n"
PART = b"--x\r\nContent-Disposition: form-data; name=a; filename=a.png\r\n\r\n"
BODIES = {
    "message": (b"POST /api/jobs", b"", b"{"),
    "template": (b"PUT /api/templates/a", b"", b"{"),
    "page's form": (b"POST /ui/theme", b"Sec-Fetch-Site: same-origin\r\n", b"theme="),
    "file": (b"PUT /api/assets/" + b"a" * 64, b"", b"\x89PNG"),
    "files": (b"POST /api/assets", FORM, PART + b"\x89PNG"),
    "files' names": (b"POST /api/assets", FORM, PART[:30]),
    "files' beginning": (b"POST /api/assets", FORM, b""),
}


def begun(what: str) -> bytes:
    """A request's header and the beginning of its body."""
    asked, header, first = BODIES[what]
    return asked + b" HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 999999\r\n" + header + b"\r\n" + first


@pytest.mark.parametrize("what", BODIES)
async def test_a_body_that_does_not_come_is_not_waited_for(
    broker: Broker, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "BODY_S", 0.2)
    monkeypatch.setattr(uploads, "IDLE_S", 0.2)
    async with connected(port_of(broker), begun(what)) as (reader, _), asyncio.timeout(PATIENCE_S):
        assert b" 400 " in await reader.readline()


@pytest.mark.parametrize("what", BODIES)
async def test_who_leaves_in_the_middle_of_a_body_leaves_nothing(
    broker: Broker, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(port_of(broker), begun(what)):
        await wait_until(broker.handles, what="the request is being handled")
    await wait_until(lambda: not broker.handles(), what="nobody waits for the rest")
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("what", ["file", "files", "files' names"])
async def test_an_upload_of_drops_is_not_waited_for(broker: Broker, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "IDLE_S", 0.5)
    async with connected(port_of(broker), begun(what)) as (reader, writer), asyncio.timeout(PATIENCE_S):
        answer = asyncio.ensure_future(reader.readline())
        while not answer.done():
            writer.write(b"x")
            await asyncio.wait([answer], timeout=0.01)
        assert b" 400 " in answer.result()


async def test_an_upload_that_is_slow_has_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has come counts, not how long all of it takes."""
    monkeypatch.setattr(uploads, "IDLE_S", 10.0)
    content = StreamReader(BaseProtocol(asyncio.get_running_loop()), 1 << 16)
    pace = uploads.Pace(content)

    async def piece(size: int, took_s: float) -> None:
        async def step() -> None:
            clock[0] += took_s
            content.feed_data(bytes(size))

        await pace.next(step())

    clock = [0.0]
    monkeypatch.setattr(uploads, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    for _ in range(20):
        await piece(uploads.LEAST // 2, 4)
    clock[0] += 1000  # the store's
    await piece(1, 4)
    await piece(1, 5)
    with pytest.raises(BadMessage, match="Nearly nothing"):
        await pace.next(asyncio.sleep(PATIENCE_S))
