"""Workflow templates over HTTP. Templates for every tenant (``?shared=true``) are an administrator's."""

from __future__ import annotations

import logging

from aiohttp import web

from broker.access.identity import Identity, Scope, current
from broker.api import commands
from broker.api.rest import answer, read_body, read_json
from broker.api.services import services
from broker.errors import BadMessage
from broker.jobs.pictures import is_picture
from broker.jobs.templates import Templates, from_picture
from broker.protocol.templates import PutTemplate, TestTemplate
from broker.queue.templates import SHARED

log = logging.getLogger(__name__)


def add_to(app: web.Application) -> None:
    """Register the routes."""
    app.add_routes([
        web.get("/api/templates", list_templates),
        web.get("/api/templates/{template}", show_template),
        web.put("/api/templates/{template}", put_template),
        web.delete("/api/templates/{template}", remove_template),
        web.post("/api/templates/{template}/test", test_template),
    ])  # fmt: skip


def _asks(request: web.Request, scope: Scope) -> tuple[Templates, Identity]:
    return services(request).templates, current(request).require(scope)


def _owner(request: web.Request, who: Identity) -> str:
    """Whose template a change is about; raises ``BadMessage``, ``Forbidden``."""
    shared = request.query.get("shared", "false")
    if shared not in ("true", "false", "1", "0"):
        raise BadMessage("shared is true or false.")
    if shared in ("false", "0"):
        return who.tenant
    who.require(Scope.ADMIN)
    return SHARED


async def list_templates(request: web.Request) -> web.Response:
    """The tenant's own templates and the shared ones, by name."""
    templates, who = _asks(request, Scope.READ)
    return answer({"templates": await templates.listing(who.tenant)})


async def show_template(request: web.Request) -> web.Response:
    """A version (``name@3``), or the latest, with its workflow and JSON Schema."""
    templates, who = _asks(request, Scope.READ)
    return answer(await templates.show(who.tenant, request.match_info["template"]))


async def put_template(request: web.Request) -> web.Response:
    """Store a new version (201), unless the latest is just this one (200)."""
    templates, who = _asks(request, Scope.SUBMIT)
    owner = _owner(request, who)
    message = await _read(request)
    stored, new = await templates.put(owner, request.match_info["template"], message)
    if new:
        whose = "every tenant" if owner == SHARED else f"tenant {owner}"
        key = who.key_id or "none"
        log.info("Template %s@%s of %s was stored by key %s", stored.name, stored.version, whose, key)
    return answer(stored.wire(), 201 if new else 200)


async def _read(request: web.Request) -> PutTemplate:
    """The template of a body: JSON, or a picture with a workflow in it."""
    raw = await read_body(request)
    if is_picture(raw):
        message = from_picture(raw, services(request).settings.max_payload_kb * 1024)
        message.description = request.query.get("description", "")[:2000]
        return message
    if request.content_type.startswith("image/"):
        raise BadMessage("The picture is no PNG and no WebP.")
    return commands.read(PutTemplate, {**await read_json(request), "type": "put_template"})


async def remove_template(request: web.Request) -> web.Response:
    """Remove a version (``name@3``) or all of them."""
    templates, who = _asks(request, Scope.SUBMIT)
    owner = _owner(request, who)
    removed = await templates.remove(owner, request.match_info["template"])
    key = who.key_id or "none"
    log.info("Template %s of %s, versions %s, was removed by key %s", removed.name, owner, removed.removed, key)
    return answer(removed.model_dump(mode="json"))


async def test_template(request: web.Request) -> web.Response:
    """The workflow and inputs that a job with these parameters would have."""
    templates, who = _asks(request, Scope.READ)
    message = commands.read(TestTemplate, {**await read_json(request, empty=True), "type": "test_template"})
    found = await templates.test(who.tenant, request.match_info["template"], message.params)
    return answer(found.model_dump(mode="json"))
