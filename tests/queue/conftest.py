"""Fixtures of the tests of single functions, and of events."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import redis

from broker.queue.connection import Connection
from broker.queue.events import EventHub
from broker.queue.queue import Queue
from tests.support.desk import LEASE_MS, Desk
from tests.support.listeners import Split, StartHub
from tests.support.servers import RedisServer, valkey_binary
from tests.support.simulated import SimulatedWorker


@pytest.fixture
async def desk(queue: Queue, redis_client: redis.Redis) -> Desk:
    """A fresh pool on a clock of its own, on each of the two servers in turn."""
    await queue.configure(lease_ms=LEASE_MS, backoff_ms=2000, max_queued=1000)
    return Desk(queue, redis_client)


@pytest.fixture
async def start_hub(connection: Connection, queue: Queue) -> AsyncIterator[StartHub]:
    """Starts hubs on the test's pool, each with a connection of its own (replicas), pub/sub by ``url``."""
    hubs, connections = [], []

    async def start(url: str = "") -> EventHub:
        wire = Connection(url) if url else connection
        connections.append(wire)
        hubs.append(EventHub(Split(wire, connection), queue))
        await hubs[-1].start()
        return hubs[-1]

    yield start
    for hub in hubs:
        await hub.stop()
    for one in connections:
        await one.close()


@pytest.fixture
async def hub(start_hub: StartHub) -> EventHub:
    return await start_hub()


@pytest.fixture
async def worker(queue: Queue) -> SimulatedWorker:
    worker = SimulatedWorker(queue)
    await worker.register()
    return worker


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server that the test may kill."""
    folder = Path(tempfile.mkdtemp(prefix="emq-own-"))
    server = RedisServer("own", valkey_binary(), folder).start()
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)
