"""A simulated worker behind the gateway: it speaks the messages a real one speaks, but runs no ComfyUI."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.api.conftest import Broker, Client, submit
from tests.support.waiting import PATIENCE_S, wait_until

NODES = ("EmptyImage", "SaveImage")


def capabilities(nodes: tuple[str, ...] = NODES, **more: Any) -> dict[str, Any]:
    """What a worker can do that runs the small graph of the tests."""
    return {
        "version": "0.1.0", "comfyui_version": "0.3.75", "supported_job_types": ["comfyui"],
        "node_classes": list(nodes), "models": {}, "gpus": [{"name": "simulated", "vram_mb": 24_000}], "tags": [],
        "slots": 1, **more,
    }  # fmt: skip


@dataclass
class GatewayWorker:
    """One socket of a simulated worker, with everything that it heard."""

    ws: aiohttp.ClientWebSocketResponse
    worker_id: str = "gw-1"
    heard: list[dict[str, Any]] = field(default_factory=list)
    unread: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0

    async def send(self, kind: str, **fields: Any) -> None:
        """Send a message without a ``message_id``."""
        await self.ws.send_str(json.dumps({"type": kind, **fields}))

    async def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a message and wait for its direct reply."""
        self.asked += 1
        message_id = f"q{self.asked}"
        await self.send(kind, message_id=message_id, **fields)
        return await self.until(message_id=message_id)

    async def until(self, within: float = PATIENCE_S, **fields: Any) -> dict[str, Any]:
        """The first message, of those not taken yet, with these fields."""
        async with asyncio.timeout(within):
            while True:
                for message in self.unread:
                    if all(message.get(name) == value for name, value in fields.items()):
                        self.unread.remove(message)
                        return message
                frame = await self.ws.receive()
                assert frame.type is aiohttp.WSMsgType.TEXT, f"the socket ended: {frame}; heard {self.heard}"
                message = json.loads(frame.data)
                self.heard.append(message)
                self.unread.append(message)

    async def register(self, **more: Any) -> dict[str, Any]:
        """Say hello."""
        said = {"worker_id": self.worker_id, "machine_id": "m", "capabilities": capabilities(), **more}
        reply = await self.ask("register_worker", **said)
        assert reply["type"] == "worker_registered", reply
        return reply

    async def claim(self, **more: Any) -> dict[str, Any]:
        """Claim a job and expect one."""
        reply = await self.ask("claim_job", worker_id=self.worker_id, **more)
        assert reply["type"] == "job_assigned", reply
        return reply

    async def about(self, kind: str, job: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Ask something about a held job."""
        return await self.ask(kind, job_id=job["job_id"], lease=job["lease"], **more)

    async def progress(self, job: dict[str, Any], progress: float, **more: Any) -> None:
        """Report progress, which has no answer."""
        await self.send("update_job_progress", job_id=job["job_id"], lease=job["lease"], progress=progress, **more)

    async def heartbeat(self, *jobs: dict[str, Any], **more: Any) -> dict[str, Any]:
        """A sign of life that names jobs."""
        named = [{"job_id": job["job_id"], "lease": job["lease"]} for job in jobs]
        said = {"worker_id": self.worker_id, "status": "busy" if jobs else "idle", "jobs": named, **more}
        return await self.ask("worker_heartbeat", **said)

    async def preview(self, job: dict[str, Any], picture: bytes) -> None:
        """Send a preview frame in ComfyUI's format 4."""
        metadata = json.dumps({"job_id": job["job_id"], "node_id": "1", "image_type": "image/jpeg"}).encode()
        await self.ws.send_bytes(struct.pack(">II", 4, len(metadata)) + metadata + picture)


@contextlib.asynccontextmanager
async def worker_of(broker: Broker, worker_id: str = "gw-1", path: str = "/ws/worker") -> AsyncIterator[GatewayWorker]:
    async with broker.http.ws_connect(broker.url + path, max_msg_size=0) as ws:
        yield GatewayWorker(ws, worker_id)


async def job_of(broker: Broker, **fields: Any) -> str:
    status, body = await broker.json("POST", "/api/jobs", json={"payload": submit()["payload"], **fields})
    assert status == 201, body
    return str(body["job_id"])


async def status_of(broker: Broker, job_id: str) -> str:
    _, record = await broker.json("GET", f"/api/jobs/{job_id}")
    return str(record["status"])


async def becomes(broker: Broker, job_id: str, status: str, within: float = PATIENCE_S) -> None:
    async def there() -> bool:
        return await status_of(broker, job_id) == status

    await wait_until(there, within, f"job is {status}")


async def hears(client: Client, status: str) -> None:
    """Read until a followed job has been in this state, for however short a time."""
    while (await client.until("job_update"))["status"] != status:
        pass


async def fleet_state(broker: Broker, worker_id: str = "gw-1") -> str | None:
    _, body = await broker.json("GET", "/api/workers")
    return next((w["status"] for w in body["workers"] if w["worker_id"] == worker_id), None)
