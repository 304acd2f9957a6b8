"""WebSocket clients by the thousand: one small protocol object each, so that the generator is not what is measured."""

from __future__ import annotations

import asyncio
import itertools
import resource
import socket
from collections.abc import Callable, Iterable, Iterator

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
SOURCES = 8
"""Loopback addresses to connect from: one of them alone has some 28,000 ports for each destination."""
_UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
)


class Refused(ConnectionError):
    """The upgrade was answered with something else than 101, or with nothing (status 0)."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the upgrade was answered with {status}")
        self.status = status


class RawSocket(asyncio.Protocol):
    """One client's end: it upgrades, answers pings, and hands over each text as it came."""

    __slots__ = ("_buffer", "_on_text", "_request", "answers", "close_code", "closed", "opened", "transport")

    def __init__(self, request: bytes, on_text: Callable[[bytes], None] | None = None) -> None:
        """``on_text`` is called with every text frame; without it they are dropped."""
        loop = asyncio.get_running_loop()
        self._request = request
        self._on_text = on_text
        self._buffer = b""
        self.transport: asyncio.Transport | None = None
        self.opened: asyncio.Future[None] = loop.create_future()
        """Done when the broker has answered 101; ``Refused`` otherwise."""
        self.closed: asyncio.Future[int] = loop.create_future()
        """Done when the connection has ended, with its close code (1006: there was none)."""
        self.close_code = 1006
        self.answers = True
        """Whether a close frame is answered."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Read the answer to the upgrade, then frames."""
        data = self._buffer + data if self._buffer else data
        if not self.opened.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._buffer = head
                return
            status = int(head[9:12])
            if status != 101:
                self.opened.set_exception(Refused(status))
                self.abort()
                return
            self.opened.set_result(None)
        self._buffer = self._frames(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, by whomever."""
        if not self.opened.done():
            self.opened.set_exception(Refused(0))
        if not self.closed.done():
            self.closed.set_result(self.close_code)

    @property
    def address(self) -> tuple[str, int]:
        """Where it comes from."""
        assert self.transport is not None
        host, port = self.transport.get_extra_info("sockname")
        return host, port

    def send(self, text: bytes) -> None:
        """Send one text message."""
        assert self.transport is not None
        self.transport.write(frame(TEXT, text))

    def leave(self) -> None:
        """Say goodbye; ``closed`` is done once the broker has said so too."""
        if self.transport is not None:
            self.transport.write(frame(CLOSE, (1000).to_bytes(2, "big")))

    def stop_reading(self) -> None:
        """Take nothing any more, as a client that hangs: not even pings are answered."""
        assert self.transport is not None
        self.transport.pause_reading()

    def abort(self) -> None:
        """End the connection without a farewell."""
        if self.transport is not None:
            self.transport.abort()

    def _frames(self, data: bytes) -> bytes:
        """Take the complete frames; what is left over comes back. Brokers neither mask nor fragment."""
        start, size = 0, len(data)
        while size - start >= 2:
            length, body = data[start + 1] & 0x7F, start + 2
            if length >= 126:
                body += 2 if length == 126 else 8
                length = int.from_bytes(data[start + 2 : body], "big")
            if size < body + length:
                break
            self._frame(data[start] & 0x0F, data[body : body + length])
            start = body + length
        return data[start:]

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == TEXT:
            if self._on_text is not None:
                self._on_text(payload)
        elif kind == PING and self.transport is not None:
            self.transport.write(frame(PONG, payload))
        elif kind == CLOSE and self.transport is not None:
            self.close_code = int.from_bytes(payload[:2], "big") or 1005
            if not self.answers:
                return
            self.transport.write(frame(CLOSE, payload[:2]))
            self.transport.close()


def frame(kind: int, payload: bytes) -> bytes:
    """A client's frame: masked, by zeroes, which leave it as it is."""
    size = len(payload)
    if size < 126:
        return bytes([0x80 | kind, 0x80 | size, 0, 0, 0, 0]) + payload
    long = (126, size.to_bytes(2, "big")) if size < 1 << 16 else (127, size.to_bytes(8, "big"))
    return bytes([0x80 | kind, 0x80 | long[0]]) + long[1] + bytes(4) + payload


def bearer(key: str | None) -> dict[str, str]:
    """The header that shows a key."""
    return {"Authorization": f"Bearer {key}"} if key else {}


async def connect(
    port: int,
    *,
    key: str | None = None,
    path: str = "/ws",
    source: str = "127.0.0.1",
    on_text: Callable[[bytes], None] | None = None,
    receive_buffer: int | None = None,
) -> RawSocket:
    """An open socket to the broker at ``127.0.0.1:port``; raises ``Refused`` or what connecting raises.

    ``receive_buffer``: the kernel's buffer for what is not read yet; small for clients that are to stop reading.
    """
    loop = asyncio.get_running_loop()
    headers = "".join(f"{name}: {value}\r\n" for name, value in bearer(key).items())
    request = _UPGRADE.format(path=path, host="127.0.0.1", port=port, headers=headers).encode()
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.bind((source, 0))
        await loop.sock_connect(sock, ("127.0.0.1", port))
        _, made = await loop.create_connection(lambda: RawSocket(request, on_text), sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        await made.opened
    except BaseException:
        made.abort()
        raise
    return made


async def connect_many(
    ports: Iterable[int],
    *,
    key: str | None = None,
    path: str = "/ws",
    at_once: int = 100,
    on_text: Callable[[bytes], None] | None = None,
) -> list[RawSocket]:
    """A socket to each of the ports (name one as often as it is to have sockets), from several addresses."""
    room = asyncio.Semaphore(at_once)

    async def one(port: int, source: str) -> RawSocket:
        async with room:
            return await connect(port, key=key, path=path, source=source, on_text=on_text)

    return list(await asyncio.gather(*map(one, ports, sources())))


def sources() -> Iterator[str]:
    """Loopback addresses to connect from, in turn, for ever."""
    return itertools.cycle(f"127.0.0.{number}" for number in range(1, SOURCES + 1))


def allow_open_files(count: int) -> None:
    """Raise this process's limit of open files, which its children inherit; ``OSError`` where that may not be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        top = hard if hard == resource.RLIM_INFINITY or hard >= count else count
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (count, top))
        except (ValueError, OSError) as error:
            raise OSError(f"This needs {count} open files; raise the limit (ulimit -n {count}).") from error
