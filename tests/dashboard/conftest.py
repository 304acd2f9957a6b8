"""Pages are served by a broker like the API's, to clients that keep cookies as browsers do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api.conftest import Start, broker, brokers, own_valkey, receiver

__all__ = ["broker", "own_valkey", "receiver", "start_broker"]


@pytest.fixture
async def start_broker(valkey_url: str, pool: str, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts brokers on one pool; keyword arguments are settings."""
    async with brokers(keep_cookies=True, pool=pool, redis_url=valkey_url, data=tmp_path) as start:
        yield start
