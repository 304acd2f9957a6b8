"""Pages are served by the broker that the API's tests use."""

from tests.api.conftest import broker, start_broker

__all__ = ["broker", "start_broker"]
