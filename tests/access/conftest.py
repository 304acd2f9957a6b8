"""Brokers with keys, on a server of the test's own: keys hold for all pools of a Redis."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from broker.access.keys import Key
from broker.access.store import AccessStore
from broker.logging import configure
from broker.queue.connection import Connection
from tests.api.conftest import Broker, Client, Start, own_valkey, start_broker
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

__all__ = ["own_valkey", "start_broker"]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@dataclass
class Guarded:
    """Brokers on one Redis, and its keys."""

    store: AccessStore
    start: Callable[..., Awaitable[Broker]]
    brokers: list[Broker] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)

    async def key(self, *scopes: str, tenant: str = "own", **more: Any) -> str:
        """Make a key and wait until every broker honours it."""
        key, text = await self.store.create(tenant, scopes, **more)
        self.keys.append(key)
        for broker in self.brokers:
            await self.honoured(broker, text)
        return text

    async def honoured(self, broker: Broker, key: str, status: int = 200, within: float = 20.0) -> None:
        async def found() -> bool:
            seen = [(await broker.json("GET", "/openapi.json", headers=h))[0] for h in (bearer(key), {})]
            return seen == [status, 401]

        await wait_until(found, within, f"the key is answered {status}")

    @property
    def broker(self) -> Broker:
        return self.brokers[0]

    async def another(self, **settings: Any) -> Broker:
        self.brokers.append(await self.start(**settings))
        return self.brokers[-1]

    async def instead(self, **settings: Any) -> Broker:
        """Another in place of those that are there: each tells the queue its own settings, again and again."""
        for broker in self.brokers:
            await broker.server.close()
        self.brokers.clear()
        return await self.another(**settings)

    async def ask(self, key: str | None, method: str, path: str, **options: Any) -> tuple[int, Any]:
        headers = {**(bearer(key) if key else {}), **options.pop("headers", {})}
        return await self.broker.json(method, path, headers=headers, **options)

    @contextlib.asynccontextmanager
    async def client(self, key: str, broker: Broker | None = None, path: str = "/ws") -> AsyncIterator[Client]:
        async with (broker or self.broker).client(path, headers=bearer(key)) as client:
            yield client


@pytest.fixture(params=["console", "json"])
def logged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a broker's log shows at its most talkative, in each of its forms."""
    root, shown = logging.getLogger(), io.StringIO()
    handlers, server = root.handlers[:], logging.getLogger("aiohttp.server")
    levels = {name: logging.getLogger(name).level for name in ("root", "aiohttp.access")}
    filters = server.filters[:]
    monkeypatch.setattr("sys.stderr", shown)
    configure("DEBUG", request.param)
    yield shown
    root.handlers[:], server.filters[:] = handlers, filters
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
async def guarded(own_valkey: RedisServer, start_broker: Start) -> AsyncIterator[Guarded]:
    """One broker on a Redis without keys yet."""
    connection = Connection(own_valkey.url)

    async def start(**settings: Any) -> Broker:
        return await start_broker(redis_url=own_valkey.url, **settings)

    made = Guarded(AccessStore(connection), start)
    await made.another()
    yield made
    await connection.close()


async def handshake(broker: Broker, path: str = "/ws", **options: Any) -> int:
    """The status that an upgrade is answered with; 101 for an open socket, which is closed again."""
    try:
        async with broker.http.ws_connect(broker.url + path, **options):
            return 101
    except aiohttp.WSServerHandshakeError as error:
        return error.status
