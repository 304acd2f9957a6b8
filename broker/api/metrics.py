"""``GET /metrics``: the pool's, the Redis server's and this replica's figures as Prometheus text.

Figures of the pool and of Redis are the same from every replica; those that begin with ``emq_broker_`` are its own.
No label has a job, a tenant or any other text that a client chooses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder

from broker.access.identity import Scope, current
from broker.api.services import services
from broker.jobs.metrics import Snapshot
from broker.protocol.base import ACTIVE, TERMINAL, JobStatus
from broker.queue.queue import Answer

STATES = ("idle", "busy", "paused", "draining", "unhealthy")
COUNTERS = {
    "emq_jobs_submitted": ("submitted_total", "Jobs accepted."),
    "emq_attempts": ("attempts_total", "Claims of jobs by workers."),
    "emq_retries": ("retried_total", "Failed attempts after which the job was tried again."),
    "emq_jobs_lost_by_workers": ("lost_total", "Jobs taken back from workers that were lost."),
    "emq_lease_expiries": ("lapsed_total", "Leases of workers that ran out."),
    "emq_model_loads": ("loads_total", "Runs that had to load a model."),
    "emq_start_estimates": ("est_total", "Jobs whose predicted start can be judged."),
    "emq_start_estimates_within_p50": ("est_within_p50_total", "Of these, started by the predicted median."),
    "emq_start_estimates_within_p90": ("est_within_p90_total", "Of these, started by the predicted p90."),
}
TIMES = {
    "emq_job_wait_seconds": ("wait", "From when a job could be claimed to its first claim."),
    "emq_job_run_seconds": ("run", "Execution in ComfyUI."),
    "emq_job_upload_seconds": ("upload", "From the end of execution until the outputs were stored."),
}
# Name, field of INFO, help.
SERVER_GAUGES = (
    ("emq_redis_memory_used_bytes", "used_memory", "Memory that Redis uses."),
    ("emq_redis_memory_max_bytes", "maxmemory", "Memory that Redis may use; 0: no limit."),
    ("emq_redis_memory_resident_bytes", "used_memory_rss", "Memory of the Redis process."),
    ("emq_redis_clients", "connected_clients", "Connections to Redis."),
    ("emq_redis_blocked_clients", "blocked_clients", "Connections in a blocking read: idle workers."),
    ("emq_redis_replicas", "connected_slaves", "Replicas of Redis that are connected."),
    ("emq_redis_uptime_seconds", "uptime_in_seconds", "Age of the Redis process."),
    ("emq_redis_aof_enabled", "aof_enabled", "1: Redis keeps an append-only file."),
    ("emq_redis_aof_rewrite_in_progress", "aof_rewrite_in_progress", "1: the append-only file is being rewritten."),
    ("emq_redis_aof_size_bytes", "aof_current_size", "Size of the append-only file."),
    ("emq_redis_aof_delayed_fsyncs", "aof_delayed_fsync", "Writes that waited for the disk since the start of Redis."),
)
SERVER_COUNTERS = (
    ("emq_redis_commands", "total_commands_processed", "Commands that Redis processed."),
    ("emq_redis_evicted_keys", "evicted_keys", "Keys thrown away for want of memory: must stay 0."),
    ("emq_redis_rejected_connections", "rejected_connections", "Connections refused because of maxclients."),
)


def add_to(app: web.Application) -> None:
    """Register the route."""
    app.router.add_get("/metrics", metrics)


async def metrics(request: web.Request) -> web.Response:
    """The figures; a credential needs the scope ``read``."""
    current(request).require(Scope.READ)
    parts = services(request)
    snapshot = await parts.metrics.snapshot()
    parts.count()
    registry = CollectorRegistry()
    registry.register(_Collector(families(snapshot, parts.settings.pool, parts.version)))
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    text = await asyncio.to_thread(lambda: encode(registry) + encode(parts.tally.registry))
    return web.Response(body=text, headers={"Content-Type": content_type})


class _Collector:
    """Families that were put together before."""

    def __init__(self, found: Iterable[Metric]) -> None:
        self._found = list(found)

    def collect(self) -> Iterator[Metric]:
        return iter(self._found)


def families(snapshot: Snapshot, pool: str, version: str) -> Iterator[Metric]:
    """Everything but the replica's own counters."""
    yield _gauge("emq_broker_info", "The broker's version.", {(version,): 1}, ["version"])
    yield _gauge("emq_redis_up", "1: the queue in Redis answered this replica.", {(): int(snapshot.stats is not None)})
    if snapshot.stats is not None and snapshot.more is not None:
        yield from _pool(snapshot.stats, pool)
        yield from _depths(snapshot, pool)
        yield from _times(snapshot.more, pool)
        yield from _server(snapshot.server)


def _gauge(name: str, text: str, values: Mapping[Any, float], labels: Iterable[str] = ()) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for names, value in values.items():
        family.add_metric(names, value)
    return family


def _counter(name: str, text: str, values: Mapping[Any, float], labels: Iterable[str] = ()) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    for names, value in values.items():
        family.add_metric(names, value)
    return family


def _pool(stats: Answer, pool: str) -> Iterator[Metric]:
    counts = {status: stats.number(status.value) for status in JobStatus}
    states = {(pool, state): stats.number(f"workers_{state}") for state in STATES}
    ended = {(pool, status.value): stats.number(f"{status.value}_total") for status in sorted(TERMINAL)}
    yield _gauge("emq_jobs", "Jobs by status.", {(pool, s.value): n for s, n in counts.items()}, ["pool", "status"])
    running = sum(counts[status] for status in ACTIVE)
    yield _gauge("emq_jobs_running", "Jobs that workers hold.", {(pool,): running}, ["pool"])
    yield _gauge("emq_workers", "Live workers by state.", states, ["pool", "state"])
    yield _gauge(
        "emq_dead_letters", "Jobs that ended their workers too often.", {(pool,): stats.number("dead")}, ["pool"]
    )
    yield _gauge("emq_paused", "1: the pool is paused.", {(pool,): stats.number("paused")}, ["pool"])
    yield _counter("emq_jobs_finished", "Jobs that ended, by status.", ended, ["pool", "status"])
    for name, (field, text) in COUNTERS.items():
        yield _counter(name, text, {(pool,): stats.number(field)}, ["pool"])


def _depths(snapshot: Snapshot, pool: str) -> Iterator[Metric]:
    depths = snapshot.depths
    levels = {(pool, level): waiting for level, waiting in _levels(snapshot)}
    oldest = {(pool, str(level)): age for level, age in snapshot.oldest.items()}
    by_class = {(pool, d.job_class, str(d.priority)): d.waiting for d in depths}
    ages = {(pool, d.job_class, str(d.priority)): d.oldest_s for d in depths}
    age = snapshot.stats.number("oldest_ms") / 1000 if snapshot.stats else 0.0
    labels, classes = ["pool", "priority"], ["pool", "class", "priority"]
    yield _gauge("emq_queue_depth", "Jobs that could be claimed.", levels, labels)
    yield _gauge("emq_queue_oldest_seconds", "Age of the oldest job that could be claimed.", oldest, labels)
    yield _gauge("emq_class_depth", "The same of one class of jobs.", by_class, classes)
    yield _gauge("emq_class_oldest_seconds", "The same of one class of jobs.", ages, classes)
    yield _gauge(
        "emq_oldest_wait_seconds", "Age of the oldest waiting job, also a delayed one.", {(pool,): age}, ["pool"]
    )
    models = {(pool, name, files): 1.0 for name, files in snapshot.models.items()}
    yield _gauge("emq_class_info", "The heavy models of a class of jobs.", models, ["pool", "class", "models"])


def _levels(snapshot: Snapshot) -> Iterator[tuple[str, int]]:
    for line in snapshot.stats.lines("depth") if snapshot.stats else ():
        level, _, waiting = line.partition(" ")
        yield str(int(level)), int(float(waiting))


def _times(more: Answer, pool: str) -> Iterator[Metric]:
    bounds = [str(int(bound) / 1000) for bound in more.lines("buckets")] + ["+Inf"]
    for name, (what, text) in TIMES.items():
        family = HistogramMetricFamily(name, text, labels=["pool"])
        total, buckets = 0, []
        for bound, count in zip(bounds, more.lines(what), strict=True):
            total += int(count)
            buckets.append((bound, float(total)))
        family.add_metric([pool], buckets, more.number(f"{what}_ms") / 1000)
        yield family


def _server(info: Mapping[str, Any]) -> Iterator[Metric]:
    for name, field, text in SERVER_GAUGES:
        yield _gauge(name, text, {(): _number(info.get(field))})
    good = info.get("aof_last_write_status", "ok") == "ok" and info.get("aof_last_bgrewrite_status", "ok") == "ok"
    yield _gauge("emq_redis_aof_ok", "0: the last write or rewrite of the append-only file failed.", {(): int(good)})
    for name, field, text in SERVER_COUNTERS:
        yield _counter(name, text, {(): _number(info.get(field))})
    cpu = _number(info.get("used_cpu_user")) + _number(info.get("used_cpu_sys"))
    yield _counter("emq_redis_cpu_seconds", "Processor time of the Redis process.", {(): cpu})
    published = info.get("cmdstat_spublish", {}).get("calls", 0)
    yield _counter("emq_redis_published", "Events and previews published.", {(): _number(published)})
    name = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info.get("redis_version", ""))
    yield _gauge("emq_redis_info", "The server and its version.", {(name, version): 1}, ["server", "version"])


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return 0.0
