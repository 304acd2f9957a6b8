"""What the handlers work with, put together once in ``broker/app.py``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import web

from broker.access.audit import AuditLog
from broker.access.usage import Usage
from broker.api.client_socket import ClientSocket
from broker.api.figures import StatsFeed
from broker.api.streams import Streams
from broker.api.tally import Tally
from broker.jobs.history import History
from broker.jobs.metrics import PoolMetrics
from broker.jobs.operations import Operations
from broker.jobs.templates import Templates
from broker.queue.connection import Health
from broker.queue.group_events import GroupHub
from broker.settings import Settings


@dataclass(slots=True)
class Services:
    """The parts of one application."""

    settings: Settings
    operations: Operations
    templates: Templates
    streams: Streams
    figures: StatsFeed
    groups: GroupHub
    history: History
    health: Callable[[], Awaitable[Health]]
    """Whether Redis answers and has the functions."""
    version: str
    audit: AuditLog
    usage: Usage
    max_sockets: int
    """Connections that may stay open here at once."""
    metrics: PoolMetrics
    tally: Tally
    workers: Callable[[], int]
    """How many workers are connected to this replica's gateway."""
    seated: int = 0
    """How many do."""
    started: float = field(default_factory=time.monotonic)
    sockets: set[ClientSocket] = field(default_factory=set)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the stop: streams that would go on end."""
    event_streams: int = 0

    def count(self) -> None:
        """Bring the gauges of open connections and tasks up to date."""
        self.tally.tasks.set(len(asyncio.all_tasks()))
        for kind, count in (
            ("client", len(self.sockets)),
            ("events", self.event_streams),
            ("worker", self.workers()),
        ):
            self.tally.sockets.labels(kind).set(count)


SERVICES = web.AppKey("services", Services)


def services(request: web.Request) -> Services:
    """The application's parts."""
    return request.config_dict[SERVICES]
