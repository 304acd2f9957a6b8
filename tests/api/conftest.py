"""A broker in this process, listening on loopback, on a pool of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from broker.app import QUEUE, create_app
from broker.queue.queue import Queue
from broker.settings import Settings
from tests.support.jobs import profile
from tests.support.servers import RedisServer, valkey_binary
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import PATIENCE_S
from tests.support.webhooks import Receiver

GRAPH: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
}
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
NODES = ("EmptyImage", "SaveImage")


def submit(graph: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """A ``submit_job`` of a small graph."""
    return {"type": "submit_job", "payload": {"workflow": GRAPH if graph is None else graph}, **fields}


@dataclass
class Client:
    """A client's socket that keeps what it heard."""

    ws: aiohttp.ClientWebSocketResponse
    heard: list[dict[str, Any]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)
    unread: int = 0

    async def send(self, message: Any) -> None:
        await self.ws.send_str(message if isinstance(message, str) else json.dumps(message))

    async def next(self, timeout: float = PATIENCE_S) -> dict[str, Any]:  # noqa: ASYNC109
        """The next text frame."""
        async with asyncio.timeout(timeout):
            while True:
                frame = await self.ws.receive()
                if frame.type is aiohttp.WSMsgType.BINARY:
                    self.previews.append(frame.data)
                    continue
                assert frame.type is aiohttp.WSMsgType.TEXT, f"the socket ended: {frame}"
                message: dict[str, Any] = json.loads(frame.data)
                self.heard.append(message)
                return message

    async def until(self, *types: str, timeout: float = PATIENCE_S) -> dict[str, Any]:  # noqa: ASYNC109
        """Read until a message of one of these types."""
        while True:
            message = await self.next(timeout)
            if message["type"] in types:
                return message

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Send a message and read to its direct reply."""
        marked = {"message_id": f"m{len(self.heard)}-{id(message)}", **message}
        await self.send(marked)
        while True:
            reply = await self.next()
            if reply.get("message_id") == marked["message_id"]:
                return reply

    def of(self, job_id: str) -> list[dict[str, Any]]:
        """The events of a job that were heard."""
        return [m for m in self.heard if m.get("job_id") == job_id and "event_id" in m]


@dataclass
class Broker:
    """A running broker and ways to talk to it."""

    url: str
    http: aiohttp.ClientSession
    queue: Queue
    server: TestServer

    @property
    def serving(self) -> web.Server:
        """What serves each of its connections."""
        assert self.server.runner is not None
        assert self.server.runner.server is not None
        return self.server.runner.server

    def handles(self) -> int:
        """In the middle of how many requests it is, or another one of this process."""
        return sum("_handle_request" in repr(task.get_coro()) for task in asyncio.all_tasks())

    @contextlib.asynccontextmanager
    async def client(self, path: str = "/ws", **options: Any) -> AsyncIterator[Client]:
        async with self.http.ws_connect(self.url + path, max_msg_size=0, **options) as ws:
            yield Client(ws)

    @contextlib.asynccontextmanager
    async def raw_socket(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """An upgraded connection without a WebSocket client on it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port, limit=1024)
        try:
            writer.write(UPGRADE)
            await reader.readuntil(b"\r\n\r\n")
            yield reader, writer
        finally:
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def worker(self, worker_id: str = "sim-1", nodes: tuple[str, ...] = NODES, **more: Any) -> SimulatedWorker:
        """A simulated worker that can run the small graph."""
        return SimulatedWorker(self.queue, worker_id, profile=profile(nodes=nodes, **more))

    async def json(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """Status and JSON body of a request."""
        async with self.http.request(method, self.url + path, **options) as response:
            return response.status, await response.json()


Start = Callable[..., Awaitable[Broker]]


@contextlib.asynccontextmanager
async def brokers(keep_cookies: bool = False, **common: Any) -> AsyncIterator[Start]:
    """Starts brokers with these settings; keyword arguments are more. A browser would keep cookies, a test may not."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**settings: Any) -> Broker:
            chosen = {"port": 0, **common, **settings}
            app = create_app(Settings().model_copy(update=chosen))
            server = TestServer(app, host="127.0.0.1", port=chosen["port"] or None)
            await server.start_server()
            stack.push_async_callback(server.close)
            jar = aiohttp.CookieJar(unsafe=keep_cookies)  # the broker's host is an address
            http = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
            broker = Broker(str(server.make_url("")).rstrip("/"), http, app[QUEUE], server)
            # aiohttp's test server would cancel the handler of a connection that is lost, which a broker's does not.
            broker.serving.handler_cancellation = False
            return broker

        yield start


@pytest.fixture
async def start_broker(valkey_url: str, pool: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts brokers on one pool; keyword arguments are settings."""
    async with brokers(pool=pool, redis_url=valkey_url, data=tmp_path) as start:
        yield start


@pytest.fixture
async def broker(start_broker: Start) -> Broker:
    return await start_broker()


@pytest.fixture
def own_valkey() -> Iterator[RedisServer]:
    """A server of the test's own, to be killed and started again."""
    folder = Path(tempfile.mkdtemp(prefix="emq-own-"))
    server = RedisServer("own", valkey_binary(), folder).start("--appendfsync", "always")
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver of webhooks on this machine."""
    one = Receiver()
    app = web.Application()
    app.router.add_post("/hook", one.take)
    async with TestServer(app, host="127.0.0.1") as server:
        one.url = str(server.make_url("/hook"))
        yield one
