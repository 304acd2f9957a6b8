"""Outputs as a worker that holds a job brings them, and files as anybody gets them, over HTTP."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from comfyui_emq_node.queue import Claimed
from tests.api.conftest import Broker, submit
from tests.support.simulated import Held, SimulatedWorker

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


@contextlib.asynccontextmanager
async def held_job(broker: Broker, worker_id: str = "sim-1") -> AsyncIterator[tuple[SimulatedWorker, Held]]:
    """A job that a simulated worker has claimed and started."""
    await broker.json("POST", "/api/jobs", json={"payload": submit()["payload"]})
    worker = broker.worker(worker_id)
    await worker.register()
    held = await worker.claim()
    assert held is not None
    await worker.report(held, 1)
    yield worker, held


def ticket(held: Held) -> dict[str, str]:
    """The header by which a worker shows its lease."""
    return {"Authorization": f"Lease {held.job_id}.{held.attempt}.{held.token}"}


def claimed(held: Held) -> Claimed:
    """The job as the worker's own code holds it."""
    return Claimed("default", held.job_id, held.attempt, held.token, b"{}")


async def put(
    broker: Broker,
    held: Held,
    number: int = 0,
    data: Any = PNG,
    *,
    name: str = "cat.png",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, Any]]:
    """Store an output: status and answer."""
    path = f"/api/jobs/{held.job_id}/outputs/{held.attempt}/{number}/{quote(name, safe='')}"
    return await broker.json("PUT", path, data=data, headers={**ticket(held), **(headers or {})})


async def fetch(broker: Broker, path: str, method: str = "GET", **headers: str) -> tuple[aiohttp.ClientResponse, bytes]:
    """Ask for a file by its path or its whole address: the answer and its body."""
    url = path if path.startswith("http") else broker.url + path
    async with broker.http.request(method, url, headers=headers) as response:
        return response, await response.read()


def stored_files(tmp_path: Path) -> list[Path]:
    """What a broker's store has on the disk."""
    # Not ``rglob``: Python 3.11's raises an error when the store takes away a folder that it is about to look into.
    return [Path(folder, name) for folder, _, names in os.walk(tmp_path / "objects") for name in names]
