"""A TCP proxy whose faults a test switches on and off. In front of a Redis it knows replies (RESP 2) apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes bytes between clients and a server on the loopback interface.

    ``replies`` sees every whole reply (a pub/sub message too; of another protocol, ``resp`` false, whatever comes) and
    gives back what the client gets; ``requests`` sees what clients send, in pieces. :attr:`target` is where new
    connections go; :meth:`cut` breaks every connection, :meth:`lose` at a reply; :meth:`stall` lets the present ones
    hang for ever, as a network that swallows packets does.
    """

    def __init__(self, port: int, resp: bool = True) -> None:
        self.target = port
        self._resp = resp
        self.port = 0
        self.replies: Callable[[bytes], bytes] = lambda reply: reply
        self.requests: Callable[[bytes], bytes] = lambda data: data
        self.connections = 0
        self._stalled: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def stall(self) -> None:
        self._stalled |= self._writers

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def lose(self, mark: bytes) -> list[bytes]:
        """Swallow the first reply that has ``mark``, and break every connection; the list has it from then on."""
        lost: list[bytes] = []

        def look(reply: bytes) -> bytes:
            if lost or mark not in reply:
                return reply
            lost.append(reply)
            self.cut()
            return b""

        self.replies = look
        return lost

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def close(self) -> None:
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with suppress(OSError, asyncio.CancelledError):
            try:
                there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
            except OSError:
                writer.transport.abort()
                raise
            pair = {writer, there}
            self._writers |= pair
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass(reader, there, self._changed))
                    tasks.create_task(self._pass(there_reader, writer, self._splitter()))
            finally:
                self._writers -= pair
                for end in pair:
                    end.transport.abort()
        self._tasks.discard(task)

    def _changed(self, data: bytes) -> bytes:
        return self.requests(data)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if writer not in self._stalled:
                    writer.write(change(data))
                    await writer.drain()
        writer.transport.abort()

    def _splitter(self) -> Callable[[bytes], bytes]:
        """Cuts one connection's bytes into replies and hands each to ``replies``."""
        if not self._resp:
            return lambda data: self.replies(data)  # noqa: PLW0108 - a test may change it later
        kept = bytearray()

        def change(data: bytes) -> bytes:
            kept.extend(data)
            out = b""
            while end := reply_end(kept, 0):
                reply = bytes(kept[:end])
                del kept[:end]
                out += self.replies(reply)
            return out

        return change


def reply_end(data: bytearray, start: int) -> int:
    """Where the reply that begins at ``start`` ends; 0 while it is not whole."""
    line = data.find(b"\r\n", start)
    if line < 0:
        return 0
    end = line + 2
    kind, head = data[start : start + 1], bytes(data[start + 1 : line])
    if kind == b"$" and head != b"-1":
        end += int(head) + 2
    elif kind == b"*" and head != b"-1":
        for _ in range(int(head)):
            end = reply_end(data, end)
            if not end:
                return 0
    return end if end <= len(data) else 0


@asynccontextmanager
async def proxy(port: int, resp: bool = True) -> AsyncIterator[Proxy]:
    """A proxy in front of a port."""
    one = Proxy(port, resp)
    server = await one.serve()
    try:
        yield one
    finally:
        server.close()
        await one.close()
        await server.wait_closed()
