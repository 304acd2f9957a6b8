"""What the tests of a fleet share: brokers in this process, keys."""

from __future__ import annotations

from tests.access.conftest import guarded
from tests.api.conftest import broker, own_valkey, start_broker

__all__ = ["broker", "guarded", "own_valkey", "start_broker"]
