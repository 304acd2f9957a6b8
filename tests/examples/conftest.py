"""The example API server in front of real brokers."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer

from tests.api.conftest import Broker, Client, Start, broker, start_broker

__all__ = ["Broker", "Start", "broker", "start_broker"]

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "examples" / "api_server"
USERS = "a-token:ann:pro,b-token:bob:free"


class Front(Client):
    """A client of the API server."""

    async def of_job(self, job: str, *kinds: str) -> dict[str, Any]:
        """Read to a message of these types about the job."""
        while True:
            message = await self.next(30)
            if message.get("job") == job and message["type"] in kinds:
                return message


@pytest.fixture(scope="session")
def api_server() -> Iterator[Any]:
    """The example as it is imported by who runs it: its folder is the path."""
    sys.path.insert(0, str(FOLDER))
    import api_server

    yield api_server
    sys.path.remove(str(FOLDER))


Serve = Callable[..., Awaitable["Shop"]]


class Shop:
    """A running API server."""

    def __init__(self, server: TestServer, http: aiohttp.ClientSession) -> None:
        self.server = server
        self.http = http

    @asynccontextmanager
    async def client(self, token: str = "a-token") -> AsyncIterator[Front]:
        headers = {"Authorization": f"Bearer {token}"}
        async with self.http.ws_connect(self.server.make_url("/v1/ws"), headers=headers, max_msg_size=0) as ws:
            yield Front(ws)

    async def fetch(self, url: str) -> tuple[int, bytes]:
        async with self.http.get(self.server.make_url(url)) as answer:
            return answer.status, await answer.read()


@pytest.fixture
async def serve(api_server: Any) -> AsyncIterator[Serve]:
    """Starts API servers; keyword arguments are their environment."""
    async with AsyncExitStack() as stack:

        async def start(**environment: str) -> Shop:
            app = api_server.application(api_server.users_from(USERS), api_server.backend_from(environment))
            server = TestServer(app, host="127.0.0.1")
            await server.start_server()
            stack.push_async_callback(server.close)
            return Shop(server, await stack.enter_async_context(aiohttp.ClientSession()))

        yield start
