"""A TCP proxy in front of a Redis, whose faults a test switches on and off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes bytes between clients and a server on the loopback interface.

    ``frozen`` holds everything back as a hung server would; ``replies`` may look at what the server sends and give
    back what the client gets; :meth:`cut` breaks every connection.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = 0
        self.frozen = False
        self.replies: Callable[[bytes], bytes] = lambda data: data
        self.connections = 0
        self._thaw = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def freeze(self) -> None:
        self.frozen = True
        self._thaw.clear()

    def thaw(self) -> None:
        self.frozen = False
        self._thaw.set()

    def cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

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
            there_reader, there = await asyncio.open_connection("127.0.0.1", self.target)
            pair = {writer, there}
            self._writers |= pair
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._pass(reader, there, lambda data: data))
                    # Looked up anew for each piece: a test may change it at any time.
                    tasks.create_task(self._pass(there_reader, writer, lambda data: self.replies(data)))  # noqa: PLW0108
            finally:
                self._writers -= pair
                for end in pair:
                    end.transport.abort()
        self._tasks.discard(task)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, change: Callable[[bytes], bytes]
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                while self.frozen:
                    await self._thaw.wait()
                writer.write(change(data))
                await writer.drain()
        writer.transport.abort()


@asynccontextmanager
async def proxy(port: int) -> AsyncIterator[Proxy]:
    """A proxy in front of a port."""
    one = Proxy(port)
    server = await one.serve()
    try:
        yield one
    finally:
        server.close()
        await one.close()
        await server.wait_closed()
