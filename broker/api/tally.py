"""What a replica counts about itself, for ``/metrics``: one registry an application."""

from __future__ import annotations

import sys

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

CALL_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Tally:
    """Counters of one replica since its start."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.redis_calls = Histogram(
            "emq_broker_redis_call_seconds",
            "Time of this replica's calls of queue functions, waiting for a connection included.",
            buckets=CALL_BUCKETS,
            registry=self.registry,
        )
        self.events = Counter(
            "emq_broker_events", "Events of jobs given to this replica's listeners.", ["type"], registry=self.registry
        )
        self.previews = Counter(
            "emq_broker_previews", "Preview pictures given to this replica's listeners.", registry=self.registry
        )
        self.sockets = Gauge(
            "emq_broker_sockets", "Open connections of clients, event streams and workers.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self.tasks = Gauge(
            "emq_broker_tasks", "Tasks of this replica: they grow and shrink with its connections.",
            registry=self.registry,
        )  # fmt: skip
        Gauge(
            "emq_broker_allocated_blocks", "Blocks of memory that this replica's objects have (Python's own count).",
            registry=self.registry,
        ).set_function(sys.getallocatedblocks)  # fmt: skip
        for kind in ("client", "events", "worker"):
            self.sockets.labels(kind)
