"""``/admin``: keys, people, tenants and their limits, and who did what."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from aiohttp import web

from broker.access.credentials import CREDENTIALS
from broker.access.identity import Role
from broker.access.keys import check_tenant
from broker.access.store import AccessStore
from broker.api.services import Services
from broker.dashboard.forms import Form, done, field, read_form
from broker.dashboard.frame import Page, View, add_action, add_page, render_plain
from broker.errors import BadMessage
from broker.protocol.access import TenantPolicy

SCOPES = ("submit", "read", "worker", "admin")
ROLES = ("viewer", "operator", "admin")
LIMITS = {
    "submits_per_s": "Jobs/s", "max_queued": "Waiting", "max_queued_mb": "Waiting MB", "max_running": "Running",
    "max_sockets": "Sockets", "max_subscriptions": "Followed jobs", "upload_mb_per_h": "Upload MB/h",
}  # fmt: skip
"""Limits that the page sets; 0 is none, empty is the default."""
COUNTS = frozenset({"max_queued", "max_running", "max_sockets", "max_subscriptions"})
AUDITED, MOST_KEPT = 50, 100
WHOLE_S = 3.0
"""After this all is read anew, such as when a key was used last."""


def add_to(app: web.Application) -> None:
    """Register the page and its actions."""
    page = Page("admin", "/admin", "Admin", "admin.html", partial(read, app, Decided()), nav="Admin", role=Role.ADMIN)
    add_page(app, page)
    add_action(app, "/ui/keys", create_key, Role.ADMIN)
    add_action(app, "/ui/keys/{key_id}/revoke", revoke_key, Role.ADMIN)
    add_action(app, "/ui/users", create_user, Role.ADMIN)
    add_action(app, "/ui/users/{user}/remove", remove_user, Role.ADMIN)
    add_action(app, "/ui/tenants/{tenant}/limits", set_limits, Role.ADMIN)


async def read(app: web.Application, decided: Decided, parts: Services, view: View) -> dict[str, Any]:
    """Everything that an administrator decides, and the newest of the audit log."""
    ring = app[CREDENTIALS].ring
    found = await decided.read(app[CREDENTIALS].store, view)
    # People type into the tenants' forms, so these stay as they are while the page is open.
    use = {} if view.live else {tenant: await _use(parts, tenant) for tenant in ring.tenants()}
    tenants = {name: _set(found["policies"].get(name)) for name in sorted({*use, *found["policies"]})}
    return {
        **found, "tenants": tenants, "use": use, "limits": LIMITS, "scopes": SCOPES, "roles": ROLES, "open": ring.open,
        "before": view.get("before"),
    }  # fmt: skip


class Decided:
    """What was decided and done, for open pages: all of it is read again when there is something new."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, float, dict[str, Any]]] = {}

    async def read(self, store: AccessStore, view: View) -> dict[str, Any]:
        """Keys, people, what is set for tenants, and a page of the audit log."""
        before, now = view.get("before"), time.monotonic()
        newest, _ = await store.audit(1)
        state = (await store.stamp(), newest)
        known = self._known.get(before)
        if view.live and known and known[0] == state and now - known[1] < WHOLE_S:
            return known[2]
        _, keys = await store.load()
        entries, older = await store.audit(AUDITED, before)
        found = {
            "keys": sorted((key.public() for key in keys.values()), key=lambda key: -key["created_at"]),
            "users": sorted((user.public() for user in (await store.users()).values()), key=lambda user: user["name"]),
            "policies": await store.tenants(), "entries": entries, "older": older,
        }  # fmt: skip
        if len(self._known) >= MOST_KEPT:
            self._known.clear()
        self._known[before] = state, now, found
        return found


async def _use(parts: Services, tenant: str) -> dict[str, int]:
    """What a tenant has waiting and running."""
    answer = await parts.operations.queue.tenant(tenant)
    return {"queued": answer.number("queued"), "running": answer.number("running")}


def _set(policy: TenantPolicy | None) -> dict[str, Any]:
    return {name: getattr(policy, name, None) for name in LIMITS}


async def create_key(request: web.Request) -> web.StreamResponse:
    """Make a key; the answer is a page that shows it, the one time."""
    form = await read_form(request)
    days = field(form, "days")
    expires_s = _number(days, "days") * 86_400 if days else None
    store = request.config_dict[CREDENTIALS].store
    key, text = await store.create(
        field(form, "tenant", "default"), form.get("scopes", []), expires_s=expires_s, name=field(form, "name")
    )
    await request.config_dict[CREDENTIALS].ring.refresh()
    return render_plain(request, "key_made.html", key=key.public(), text=text)


async def revoke_key(request: web.Request) -> web.StreamResponse:
    """End a key and what it has opened, on every replica."""
    form = await read_form(request)
    key = await request.config_dict[CREDENTIALS].store.revoke(request.match_info["key_id"])
    return done(request, form, f"The key {key.key_id} has ended; its connections are closed within 5 seconds.")


async def create_user(request: web.Request) -> web.StreamResponse:
    """Add a person."""
    form = await read_form(request)
    store = request.config_dict[CREDENTIALS].store
    name, tenant = field(form, "name"), field(form, "tenant", "default")
    password = form.get("password", [""])[0]
    user = await store.create_user(name, tenant, field(form, "role", "viewer"), password)
    return done(request, form, f"{user.name} may log in now.")


async def remove_user(request: web.Request) -> web.StreamResponse:
    """Remove a person."""
    form = await read_form(request)
    user = await request.config_dict[CREDENTIALS].store.remove_user(request.match_info["user"])
    return done(request, form, f"{user.name} is removed, and logged out everywhere.")


async def set_limits(request: web.Request) -> web.StreamResponse:
    """Set a tenant's limits; what else is set for it stays."""
    form = await read_form(request)
    credentials, tenant = request.config_dict[CREDENTIALS], check_tenant(request.match_info["tenant"])
    old = (await credentials.store.tenants()).get(tenant) or TenantPolicy()
    await credentials.store.set_tenant(tenant, old.model_copy(update=_limits(form)))
    await credentials.ring.refresh()
    return done(request, form, f"The limits of {tenant} hold at every replica within a second.")


def _limits(form: Form) -> dict[str, float | int | None]:
    found: dict[str, float | int | None] = {}
    for name, words in LIMITS.items():
        text = field(form, name)
        number = _number(text, words) if text else None
        found[name] = int(number) if number is not None and name in COUNTS else number
    return found


def _number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1e9:
        raise BadMessage(f"{what}: a number from 0, not {text[:40]!r}.")
    return number
