"""From settings to a Redis that may be trusted with jobs, and to the settings that the queue's functions read."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from broker.errors import ConfigurationError
from broker.jobs.rules import Rules
from broker.queue.address import url_from
from broker.queue.connection import Connection
from broker.queue.new_job import Value
from broker.queue.server import check_server, open_server
from broker.settings import Settings

log = logging.getLogger(__name__)


@asynccontextmanager
async def redis(settings: Settings, *, supervise: bool = True) -> AsyncIterator[Connection]:
    """A connection to the settings' Redis, checked; the embedded Valkey when they name none.

    ``supervise=False`` is for command lines: they use the embedded Valkey of a broker, or start one for their own
    time. Raises ``ConfigurationError`` saying what to change, ``Unavailable`` when the Redis does not answer.
    """
    async with AsyncExitStack() as stack:
        url = url_from(settings) or await _embedded(settings, supervise, stack)
        replicated = settings.durability == "replica"
        connection = Connection(url, replicated=replicated)
        stack.push_async_callback(connection.close)
        name = await check_server(connection, allow_volatile=settings.allow_volatile, replicated=replicated)
        if not settings.allow_open_redis and not connection.address.is_local and await connection.is_open():
            raise open_server(connection.address.shown)
        log.info("using %s at %s", name, connection.address.shown)
        yield connection


async def _embedded(settings: Settings, supervise: bool, stack: AsyncExitStack) -> str:
    if sys.platform == "win32":
        raise ConfigurationError("There is no embedded Valkey for Windows: set EMQ_REDIS_URL or REDIS_HOST.")
    # It uses file locks that Windows' Python does not have.
    from broker.queue.embedded import EmbeddedValkey  # noqa: PLC0415

    valkey = EmbeddedValkey(settings.data, appendfsync=settings.appendfsync, supervise=supervise)
    url = await valkey.start()
    stack.push_async_callback(valkey.stop)
    return url


def pool_config(
    settings: Settings, broker_url: str | None = None, replica_url: str | None = None
) -> dict[str, Value | None]:
    """The arguments of ``Queue.configure``: where workers reach this broker, and where other brokers do."""
    seconds = {
        "lease_ms": settings.lease_s, "affinity_max_wait_ms": settings.affinity_max_wait_s,
        "ttl_completed_ms": settings.ttl_completed_s, "ttl_failed_ms": settings.ttl_failed_s,
        "ttl_cancelled_ms": settings.ttl_cancelled_s, "backoff_ms": settings.backoff_s,
        "idem_ttl_ms": settings.idempotency_ttl_s, "hang_ms": settings.hang_s, "stall_ms": settings.stall_s,
        "aging_ms": settings.aging_s,
    }  # fmt: skip
    config: dict[str, Value | None] = {name: round(value * 1000) for name, value in seconds.items()}
    return config | {
        "rules": Rules.read(settings.node_allow, settings.node_deny, settings.model_allow).text(),
        "tenant_running": settings.tenant_max_running,
        "max_finished": settings.max_finished,
        "max_queued": settings.max_queued,
        "max_finishing": settings.max_finishing,
        "input_urls": settings.input_urls,
        "broker_url": broker_url,
        "replica_url": replica_url,
        "deployment": secrets.token_hex(8),
    }
