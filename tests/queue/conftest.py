"""Fixtures of the tests of single functions."""

from __future__ import annotations

import pytest
import redis

from broker.queue.queue import Queue
from tests.support.desk import LEASE_MS, Desk


@pytest.fixture
async def desk(queue: Queue, redis_client: redis.Redis) -> Desk:
    """A fresh pool on a clock of its own, on each of the two servers in turn."""
    await queue.configure(lease_ms=LEASE_MS, backoff_ms=2000, max_queued=1000)
    return Desk(queue, redis_client)
