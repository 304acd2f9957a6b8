"""Brokers for clients, and a proxy between the two."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.api.conftest import Broker, Start, broker, start_broker
from tests.support.proxy import Proxy, proxy

__all__ = ["Broker", "Start", "broker", "start_broker"]


@pytest.fixture
async def between(broker: Broker) -> AsyncIterator[Proxy]:
    """What stands between client and broker, to be cut, or to lead to another replica."""
    assert broker.server.port is not None
    async with proxy(broker.server.port, resp=False) as one:
        yield one
