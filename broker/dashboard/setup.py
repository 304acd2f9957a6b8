"""Puts the dashboard into an application: its routes, its middlewares, its live feeds."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

from aiohttp import web

from broker.access.identity import Role
from broker.api.services import SERVICES
from broker.dashboard import (
    actions,
    admin,
    cards,
    failures,
    fleet,
    gallery,
    guide,
    job,
    job_actions,
    job_files,
    jobs,
    login,
    metrics,
    models,
    previews,
    queue,
    stream,
    timeline,
    words,
    workers,
)
from broker.dashboard.frame import PAGES, Pages, View, folder
from broker.dashboard.live import Feeds
from broker.dashboard.parts import Parts
from broker.dashboard.previews import PREVIEWS, Previews
from broker.dashboard.roles import ROLES
from broker.dashboard.stream import FEEDS
from broker.jobs.failures import signature

PARTS = (
    fleet, queue, jobs, job, job_actions, job_files, workers, timeline, failures, gallery, models, metrics, admin,
    guide, stream, previews, actions, login,
)  # fmt: skip
"""Modules with routes; pages stand in the navigation in this order."""
CACHES = (*words.CACHES, cards.job_link, signature)
"""Caches whose keys name jobs, moments and messages."""


def add_to(app: web.Application) -> None:
    """Register everything of the dashboard."""
    app[PAGES], roles = Pages(), dict[tuple[str, str], Role]()
    app[ROLES] = roles
    for module in PARTS:
        module.add_to(app)
    app.router.add_static("/static", folder("static"))
    app.on_response_prepare.append(_cache_static)
    app.cleanup_ctx.append(_feeds)


async def _cache_static(request: web.Request, response: web.StreamResponse) -> None:
    """Static files may be kept, if asked about each time."""
    if request.path.startswith("/static/"):
        response.headers["Cache-Control"] = "no-cache"


async def _feeds(app: web.Application) -> AsyncIterator[None]:
    """The live feeds and previews."""

    async def render(view: View, before: Parts | None) -> Parts:
        found = Parts(before)
        await app[PAGES].render(app[SERVICES], view, found)
        return found

    async def glance(view: View, _: Parts | None) -> Parts:
        return await app[PAGES].glance(app[SERVICES], view)

    app[FEEDS] = Feeds(render, glance)
    app[PAGES].open = lambda view: app[FEEDS].latest(replace(view, live=True))
    app[PREVIEWS] = Previews(app[SERVICES].streams.hub)
    yield
    await app[FEEDS].stop()
    await app[PREVIEWS].stop()
