"""People for administrators, and the audit log, over HTTP."""

from __future__ import annotations

from aiohttp import web

from broker.access.credentials import CREDENTIALS
from broker.access.identity import Scope, current
from broker.access.store import AccessStore
from broker.access.users import new_password
from broker.api import commands
from broker.api.rest import answer, read_message
from broker.protocol.access import AuditQuery, NewPassword, NewUser


def add_to(app: web.Application) -> None:
    """Register the routes."""
    app.add_routes([
        web.get("/api/users", list_users),
        web.post("/api/users", create_user),
        web.delete("/api/users/{user}", remove_user),
        web.post("/api/users/{user}/password", set_password),
        web.get("/api/audit", audit),
    ])  # fmt: skip


def _store(request: web.Request) -> AccessStore:
    current(request).require(Scope.ADMIN)
    return request.config_dict[CREDENTIALS].store


async def list_users(request: web.Request) -> web.Response:
    """Every person, by name."""
    found = await _store(request).users()
    return answer({"users": [user.public() for user in found.values()]})


async def create_user(request: web.Request) -> web.Response:
    """Add a person; a password that is not given is drawn, and told in this answer alone."""
    store = _store(request)
    msg = await read_message(request, NewUser)
    password = msg.password or new_password()
    user = await store.create_user(msg.name, msg.tenant, msg.role, password)
    told = {} if msg.password else {"password": password}
    return answer({**user.public(), **told}, 201, headers={"Location": f"/api/users/{user.name}"})


async def set_password(request: web.Request) -> web.Response:
    """Change a person's password, which ends their sessions; without one in the body it is drawn and told."""
    store = _store(request)
    msg = await read_message(request, NewPassword)
    password = msg.password or new_password()
    user = await store.set_password(request.match_info["user"], password)
    return answer({**user.public(), **({} if msg.password else {"password": password})})


async def remove_user(request: web.Request) -> web.Response:
    """Remove a person and end what they have opened."""
    return answer((await _store(request).remove_user(request.match_info["user"])).public())


async def audit(request: web.Request) -> web.Response:
    """Who did what, newest first; ``?before=`` goes on from a page's ``next``."""
    store = _store(request)
    query = {
        name: int(value) if value.isdecimal() and name == "limit" else value for name, value in request.query.items()
    }
    msg = commands.read(AuditQuery, query)
    entries, following = await store.audit(msg.limit, msg.before)
    return answer({"entries": entries, "next": following})
