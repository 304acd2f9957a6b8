"""The first page: how much waits, who works, what happened last."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jinja2
from aiohttp import web

from broker.access.identity import IDENTITY, Scope, current
from broker.api.services import services
from broker.errors import EmqError
from broker.protocol.messages import ListJobs

PAGES = web.AppKey("pages", jinja2.Environment)
LAST_JOBS = 20
_PACKAGE = Path(__file__).resolve().parent.parent


def folder(name: str) -> Path:
    """``templates`` or ``static``: inside the installed package, or beside it in a checkout."""
    packed = _PACKAGE / f"_{name}"
    return packed if packed.is_dir() else _PACKAGE.parent / name


def environment() -> jinja2.Environment:
    """Templates that escape everything and know no undefined names."""
    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters["ago"] = ago
    return pages


def add_to(app: web.Application) -> None:
    """Register the page and the static files."""
    app[PAGES] = environment()
    app.router.add_get("/", overview)
    app.router.add_static("/static", folder("static"), append_version=False)


def ago(moment_ms: int | None) -> str:
    """How long ago something was, in one unit; empty for a moment that is not known."""
    if not moment_ms:
        return ""
    seconds = max(0, int(time.time() - moment_ms / 1000))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"


async def overview(request: web.Request) -> web.Response:
    """Depth, workers, the last jobs; says what is wrong while Redis is away."""
    who = current(request).require(Scope.READ)
    ops = services(request).operations
    shown: dict[str, Any] = {"stats": None, "workers": [], "jobs": [], "problem": None}
    status = 200
    try:
        shown["stats"] = await ops.stats(who.sees)
        shown["workers"] = await ops.workers()
        shown["jobs"] = (await ops.list_jobs(who.sees, ListJobs(limit=LAST_JOBS)))["jobs"]
    except EmqError as error:
        shown["problem"], status = error.message, error.http_status
    return render(request, "overview.html", status, **shown)


def render(request: web.Request, template: str, status: int = 200, **context: Any) -> web.Response:
    """A page."""
    who = request.get(IDENTITY)
    context |= {"version": services(request).version, "address": f"{request.scheme}://{request.host}"}
    context["signed_in"] = who is not None and who.session != ""
    text = request.config_dict[PAGES].get_template(template).render(context)
    return web.Response(text=text, status=status, content_type="text/html")
