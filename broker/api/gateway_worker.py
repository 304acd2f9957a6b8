"""One worker behind the gateway as the queue knows it: its name, its instance, its registration, its calls."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from broker.errors import Conflict, EmqError
from broker.jobs import strict
from broker.jobs.ranges import pack
from broker.protocol import gateway as g
from broker.queue.new_job import Value
from broker.queue.queue import Answer, Queue, require
from broker.queue.seal import TAG

log = logging.getLogger(__name__)


class GatewayWorker:
    """Calls functions for one worker. ``superseded`` is told once when another process has taken its name."""

    def __init__(self, queue: Queue, superseded: Callable[[], Awaitable[None]]) -> None:
        self.worker_id: str | None = None
        self.instance = secrets.token_hex(16)
        self.registration: g.RegisterWorker | None = None
        self.superseded = False
        self._queue = queue
        self._tell = superseded

    async def call(self, function: str, args: dict[str, Value | None]) -> Answer:
        """Call a function that needs no registration: the lease says who calls."""
        return await self._queue.worker_call(function, args)

    async def as_worker(self, function: str, args: dict[str, Value | None]) -> Answer:
        """A call of the registered worker; one that the queue has forgotten is registered again first."""
        registration = self.require_registered()
        answer = await self._as_worker(function, args)
        if answer.outcome == "unknown":
            self.require_registered()
            await self.enrol(registration.model_copy(update={"jobs": None}))
            answer = await self._as_worker(function, args)
        if answer.outcome == "superseded":
            await self.supersede()
            self.require_registered()
        if answer.outcome == "unknown":
            raise Conflict("The worker could not be registered again; try again.", reason="unknown_worker")
        return answer

    async def _as_worker(self, function: str, args: dict[str, Value | None]) -> Answer:
        return await self.call(function, {"worker": self.worker_id, "instance": self.instance, **args})

    def require_registered(self) -> g.RegisterWorker:
        """The registration; raises ``Conflict`` without one, and when another process has the name now."""
        if self.superseded:
            raise Conflict("Another process has taken this worker_id: stop, or use another id.", reason="superseded")
        if self.registration is None:
            raise Conflict("Send register_worker first.", reason="not_registered")
        return self.registration

    async def enrol(self, message: g.RegisterWorker) -> Answer:
        """Register; a process that comes back names the instance it was, and keeps the jobs that it names."""
        caps = message.capabilities
        digest, packed = pack(caps.ranges) if caps.ranges else (None, None)
        answer = await self.call(
            "register",
            {
                "ranges": packed,
                "worker": message.worker_id,
                "instance": self.instance,
                "machine": message.machine_id,
                "profile": strict.canonical({**_profile(caps), "ranges": digest}),
                "info": strict.dumps(_info(message)),
                "slots": caps.slots,
                "via": "gateway",
                "status": message.status,
                "previous": message.instance,
                "jobs": None if message.jobs is None else lease_lines(message.jobs),
            },
        )
        require(answer, f"worker {message.worker_id}")
        self.worker_id = message.worker_id
        self.registration = message
        return answer

    async def extend(self, *, awake: bool) -> None:
        """Keep the lease; never raises. ``awake``: the worker could have named its jobs all the time of a lease."""
        try:
            await self.as_worker("keep", {"awake": awake or None})
        except EmqError as error:
            log.info("the lease of worker %s was not extended: %s", self.worker_id, error.message)

    async def supersede(self) -> None:
        """Another process has this worker's name now."""
        if not self.superseded:
            self.superseded = True
            await self._tell()

    async def leave(self) -> None:
        """The connection is closed; never raises: without this the queue notices by the lease."""
        if self.registration is None or self.superseded:
            return
        self.registration = None
        try:
            await self.call("leave", {"instance": self.instance})
        except EmqError as error:
            log.warning("could not say that worker %s left: %s", self.worker_id, error.message)


def lease_lines(leases: list[g.HeldLease]) -> str:
    """Leases as the queue reads them."""
    return "\n".join(f"{lease.job_id} {lease.lease}" for lease in leases)


def name_lines(names: list[str] | None) -> str | None:
    """Names of files as the queue reads them; ``None`` leaves what it knows."""
    return None if names is None else "\n".join(name.replace("\\", "/") for name in names)


def _profile(caps: g.Capabilities) -> dict[str, Any]:
    """What the queue matches jobs against: in one order, so that equal workers share one profile."""
    return {
        "job_types": sorted(set(caps.supported_job_types)),
        "node_classes": sorted(set(caps.node_classes)),
        "models": {f: sorted({n.replace("\\", "/") for n in names}) for f, names in caps.models.items()},
        "model_inputs": caps.model_inputs,
        "tags": sorted({*caps.tags, TAG}),
        "vram_mb": max((gpu.vram_mb for gpu in caps.gpus), default=0),
        "gpu": caps.gpus[0].name if caps.gpus else "",
    }


def _info(message: g.RegisterWorker) -> dict[str, Any]:
    """What only people look at."""
    caps = message.capabilities
    return {
        "machine_id": message.machine_id,
        "version": caps.version,
        "comfyui_version": caps.comfyui_version,
        "manager_version": caps.manager_version,
        "manager_security": caps.manager_security,
        "python_version": caps.python_version,
        "torch_version": caps.torch_version,
        "gpus": [gpu.model_dump() for gpu in caps.gpus],
        "gpu_count": caps.gpu_count,
        "labels": caps.labels,
        "supported_job_types": caps.supported_job_types,
        "tags": caps.tags,
        **({"simulated": True} if caps.simulated else {}),
    }
