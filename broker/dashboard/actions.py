"""What the buttons in the frame do: pause everything, choose a theme."""

from __future__ import annotations

from aiohttp import web

from broker.access.identity import Role, current
from broker.api.services import services
from broker.dashboard.forms import done, field, local, read_form
from broker.dashboard.frame import THEME, THEMES, add_action

_YEAR_S = 31_536_000


def add_to(app: web.Application) -> None:
    """Register the actions."""
    add_action(app, "/ui/pause", pause, Role.ADMIN)
    add_action(app, "/ui/resume", resume, Role.ADMIN)
    add_action(app, "/ui/theme", choose_theme, Role.VIEWER)


async def pause(request: web.Request) -> web.Response:
    """Hand out no more jobs of this pool."""
    form = await read_form(request)
    await services(request).operations.pause("pool", "", True)
    return done(request, form, "The queue is paused: running jobs end, no new one starts.")


async def resume(request: web.Request) -> web.Response:
    """Hand out jobs again."""
    form = await read_form(request)
    await services(request).operations.pause("pool", "", False)
    return done(request, form, "The queue goes on.")


async def choose_theme(request: web.Request) -> web.Response:
    """Light, dark, or what the system has; kept in a cookie."""
    current(request)
    form = await read_form(request)
    chosen = field(form, "theme")
    response = web.Response(status=303, headers={"Location": local(field(form, "next"))})
    response.set_cookie(THEME, chosen if chosen in THEMES else "auto", path="/", max_age=_YEAR_S, samesite="Strict")
    return response
