"""Tenants' limits over HTTP: administrators set them, a tenant sees its own."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from aiohttp import web

from broker.access.credentials import CREDENTIALS, Credentials
from broker.access.identity import Scope, current
from broker.access.keys import check_tenant
from broker.access.limits import Bucket
from broker.access.policies import Policies
from broker.api.rest import answer, read_message
from broker.api.services import services
from broker.errors import NotFound, RateLimited
from broker.protocol.access import TenantPolicy
from broker.queue.queue import Queue


def add_to(app: web.Application) -> None:
    """Register the routes."""
    app.add_routes([
        web.get("/api/tenants", list_tenants),
        web.get("/api/tenants/{tenant}", show_tenant),
        web.put("/api/tenants/{tenant}", set_tenant),
    ])  # fmt: skip


async def list_tenants(request: web.Request) -> web.Response:
    """Every tenant that has a key, a person or limits of its own."""
    current(request).require(Scope.ADMIN)
    ring = request.config_dict[CREDENTIALS].ring
    return answer({"tenants": [await _shown(request, tenant) for tenant in ring.tenants()]})


async def show_tenant(request: web.Request) -> web.Response:
    """A tenant's limits and what it has; others' are there for administrators only."""
    who, tenant = current(request).require(Scope.READ), request.match_info["tenant"]
    if who.sees not in ("", tenant):
        raise NotFound("There is no such tenant.")
    return answer(await _shown(request, check_tenant(tenant)))


async def set_tenant(request: web.Request) -> web.Response:
    """Set a tenant's limits, in place of what was set; they hold at every replica within a second."""
    current(request).require(Scope.ADMIN)
    credentials, tenant = request.config_dict[CREDENTIALS], request.match_info["tenant"]
    await credentials.store.set_tenant(tenant, await read_message(request, TenantPolicy))
    await credentials.ring.refresh()
    return answer(await _shown(request, tenant))


async def _shown(request: web.Request, tenant: str) -> dict[str, Any]:
    policies = request.config_dict[CREDENTIALS].ring.policies
    given = policies.policy(tenant).model_dump(exclude_none=True, exclude={"type", "message_id", "timestamp"})
    has = await services(request).operations.queue.tenant(tenant)
    use = {"queued": has.number("queued"), "queued_bytes": has.number("bytes"), "running": has.number("running")}
    return {"tenant": tenant, "set": given, "limits": asdict(policies.limits(tenant)), "use": use}


class TenantShares:
    """Tells the queue what it must know of tenants when a worker claims: their weights, caps and rules."""

    def __init__(self, queue: Queue, policies: Policies) -> None:
        self._queue = queue
        self._policies = policies
        self._told: dict[str, tuple[object, ...]] = {}

    async def push(self) -> None:
        """Tell it of what has changed."""
        for tenant, policy in self._policies.tenants.items():
            running = "default" if policy.max_running is None else policy.max_running
            share = (policy.weight or 1, running, self._policies.rules(tenant).text())
            if self._told.get(tenant) != share:
                await self._queue.tenant(tenant, weight=share[0], max_running=share[1], rules=share[2])
                self._told[tenant] = share


async def charge_upload(credentials: Credentials, tenant: str, size: int) -> None:
    """Count bytes that a tenant uploads; raises ``RateLimited`` for too many in an hour."""
    limit = credentials.ring.policies.limits(tenant).upload_mb_per_h * 1e6
    if limit:
        wait = await credentials.store.throttle(f"upload:{tenant}", Bucket(limit / 3600, limit), size)
        if wait:
            raise RateLimited(
                f"Your tenant may upload {limit / 1e6:g} million bytes an hour; wait, or ask for more.",
                retry_after_s=round(wait, 3),
            )
