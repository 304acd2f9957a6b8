"""A whole site for a benchmark: NGINX with ``deploy/nginx.conf`` before two broker processes on one Redis."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.targets import Target
from tests.support.comfyui import BrokerProcess
from tests.support.nginx import nginx
from tests.support.servers import free_port

MOST_CPU = 0.8


@dataclass(frozen=True, slots=True)
class Site:
    """The running parts."""

    url: str
    """NGINX's."""
    port: int
    brokers: Sequence[BrokerProcess]


@asynccontextmanager
async def site(folder: Path, redis_url: str, *, nginx_workers: int = 1, **settings: str) -> AsyncIterator[Site]:
    """Run one; ``settings`` are more environment variables of the brokers."""
    edits = {"worker_processes 1;": f"worker_processes {nginx_workers};"}
    ports = [free_port(), free_port()]
    async with nginx("nginx.conf", folder / "nginx", [f"127.0.0.1:{port}" for port in ports], **edits) as front:
        env = {"EMQ_REDIS_URL": redis_url, "EMQ_PUBLIC_URL": front.url, "EMQ_TRUSTED_PROXIES": "127.0.0.1", **settings}
        brokers = [
            BrokerProcess(folder / f"{port}.log", data=folder / "data", port=port, settings=env) for port in ports
        ]
        try:
            for broker in brokers:
                await asyncio.to_thread(broker.start)
            yield Site(front.url, front.port, brokers)
        finally:
            for broker in brokers:
                await asyncio.to_thread(broker.end)


def machine() -> str:
    """What the machine does beside, for the head of a report."""
    return f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"


def counted(cpu: float, targets: list[Target]) -> list[Target]:
    """The targets of a run, none if its generator was too busy; says how busy it was."""
    if cpu <= MOST_CPU:
        print(f"the generator used {cpu:.0%} of a core", flush=True)
        return targets
    print(f"DOES NOT COUNT: the generator used {cpu:.0%} of a core", flush=True)
    return []
