"""Pages are served by the broker that the API's tests use."""

from tests.api.conftest import broker, own_valkey, start_broker

__all__ = ["broker", "own_valkey", "start_broker"]
