"""Keys for administrators, and tickets for browsers, over HTTP."""

from __future__ import annotations

from aiohttp import web

from broker.access.credentials import CREDENTIALS
from broker.access.identity import Identity, Scope, current
from broker.access.limits import KeyLimits
from broker.access.store import TICKET_S, AccessStore
from broker.api.rest import answer, read_message
from broker.protocol.access import NewKey, RotateKey


def add_to(app: web.Application) -> None:
    """Register the routes."""
    app.add_routes([
        web.get("/api/keys", list_keys),
        web.post("/api/keys", create_key),
        web.delete("/api/keys/{key_id}", revoke_key),
        web.post("/api/keys/{key_id}/rotate", rotate_key),
        web.post("/api/tickets", make_ticket),
    ])  # fmt: skip


def _admin(request: web.Request) -> tuple[AccessStore, Identity]:
    return request.config_dict[CREDENTIALS].store, current(request).require(Scope.ADMIN)


async def list_keys(request: web.Request) -> web.Response:
    """Every key, the newest first."""
    store, _ = _admin(request)
    _, found = await store.load()
    keys = sorted(found.values(), key=lambda key: (key.created_at, key.key_id), reverse=True)
    return answer({"keys": [key.public() for key in keys]})


async def create_key(request: web.Request) -> web.Response:
    """Make a key; this answer alone has it."""
    store, _ = _admin(request)
    msg = await read_message(request, NewKey)
    limits = KeyLimits(msg.submits_per_s or 0, msg.max_sockets or 0)
    key, text = await store.create(msg.tenant, msg.scopes, expires_s=msg.expires_s, name=msg.name, limits=limits)
    return answer({**key.public(), "key": text}, 201, headers={"Location": f"/api/keys/{key.key_id}"})


async def revoke_key(request: web.Request) -> web.Response:
    """End a key and what it has opened, on every replica."""
    store, _ = _admin(request)
    key = await store.revoke(request.match_info["key_id"])
    return answer(key.public())


async def rotate_key(request: web.Request) -> web.Response:
    """Give a key another secret."""
    store, _ = _admin(request)
    msg = await read_message(request, RotateKey)
    key, text = await store.rotate(request.match_info["key_id"], msg.grace_s)
    return answer({**key.public(), "key": text})


async def make_ticket(request: web.Request) -> web.Response:
    """A ticket with which a browser opens one WebSocket or event stream as who asks for it."""
    ticket = await request.config_dict[CREDENTIALS].store.make_ticket(current(request))
    return answer({"ticket": ticket, "expires_s": TICKET_S}, 201)
