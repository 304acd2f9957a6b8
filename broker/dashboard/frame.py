"""What every page has: its place in the navigation, who looks at it, the strip of figures, its way into HTML."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jinja2
from aiohttp import web

from broker.access.identity import IDENTITY, Identity, Role, current
from broker.api.services import Services, services
from broker.dashboard import cards, gantt, words
from broker.dashboard.addresses import Addresses
from broker.dashboard.forms import SAID, take_said
from broker.dashboard.kept import Kept
from broker.dashboard.parts import Parts
from broker.dashboard.roles import ROLES, includes
from broker.dashboard.strip import Strip, Strips
from broker.errors import EmqError

_PACKAGE = Path(__file__).resolve().parent.parent
THEMES = ("auto", "light", "dark")
THEME = "emq_theme"
SHARED_S = 0.2
"""How old a reading may be that open pages share: they look at the same moments."""
_METHODS = frozenset(dir(dict))


def folder(name: str) -> Path:
    """``templates`` or ``static``: inside the installed package, or beside it in a checkout."""
    packed = _PACKAGE / f"_{name}"
    return packed if packed.is_dir() else _PACKAGE.parent / name


class _Context(jinja2.runtime.Context):
    """What a drawing's templates know, noted by the environment that let it be drawn."""

    def __init__(self, environment: Environment, *args: Any, **kwargs: Any) -> None:
        super().__init__(environment, *args, **kwargs)
        environment.contexts.append(self)


class Environment(jinja2.Environment):
    """``each.name`` looks into a mapping first: jinja's own order raises an exception for each name that it finds.

    A mapping's methods stay what they are, whatever names somebody has put into it.
    """

    context_class = _Context

    def __init__(self, **options: Any) -> None:
        self.contexts: list[_Context] = []
        super().__init__(**options)

    def draw(self, template: str, about: dict[str, Any]) -> str:
        """A template's text.

        Its macros know the context that knows them: such rings would keep each drawn page until Python looks for them,
        and make it look all the time.
        """
        try:
            return self.get_template(template).render(about)
        finally:
            for context in self.contexts:
                context.vars.clear()
            self.contexts.clear()

    def getattr(self, obj: Any, attribute: str) -> Any:
        """What a template writes as ``obj.attribute``."""
        if type(obj) is dict and attribute in obj and attribute not in _METHODS:
            return obj[attribute]
        return super().getattr(obj, attribute)


def environment() -> Environment:
    """Templates that escape everything and know no undefined names."""
    pages = Environment(
        loader=jinja2.FileSystemLoader(folder("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        auto_reload=False,  # else each drawing asks the disk whether its templates are still the same
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= words.FILTERS | cards.FILTERS
    pages.globals |= {"element": words.element, "keep": Kept()} | cards.GLOBALS | gantt.GLOBALS
    return pages


@dataclass(frozen=True, slots=True)
class View:
    """What somebody looks at. Equal views show the same, so they are rendered once."""

    page: str
    query: tuple[tuple[str, str], ...]
    """The query string and what the path names, sorted."""
    sees: str
    """The tenant whose things are shown; empty: everybody's."""
    tenant: str
    role: Role
    read_only: bool
    address: str
    """The broker's URL as this browser sees it."""
    live: bool = False
    """An open page's changes, which may be read for several at once; a page that is asked for is of that moment."""

    @property
    def max_age_s(self) -> float:
        """How old a reading may be that it shares with others."""
        return SHARED_S if self.live else 0

    def get(self, name: str, default: str = "") -> str:
        """A value of the query."""
        return dict(self.query).get(name, default)


Read = Callable[[Services, View], Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Page:
    """One page: what it reads, and the template that shows it."""

    name: str
    path: str
    title: str
    template: str
    read: Read
    nav: str = ""
    """Its word in the navigation; empty: it is not there."""
    role: Role = Role.VIEWER
    every_s: float = 0.5
    """How often it is read while somebody has it open."""


@dataclass(frozen=True)
class Frame:
    """What the base template shows around a page."""

    page: Page
    pages: list[Page]
    view: View
    version: str
    strip: Strip
    user: str = ""
    theme: str = "auto"
    said: str = ""
    problem: str = ""
    signed_in: bool = False

    @property
    def now(self) -> int:
        """The server's time, epoch ms."""
        return round(time.time() * 1000)

    @property
    def may_operate(self) -> bool:
        """Whether jobs may be acted on."""
        return includes(self.view.role, Role.OPERATOR) and not self.view.read_only

    @property
    def may_admin(self) -> bool:
        """Whether the fleet may be acted on."""
        return includes(self.view.role, Role.ADMIN) and not self.view.read_only

    @cached_property
    def path(self) -> str:
        """The page's own address, for forms that come back to it."""
        query = dict(self.view.query)
        path = self.page.path
        for name in [name for name in query if f"{{{name}}}" in path]:
            path = path.replace(f"{{{name}}}", words.segment(query.pop(name)))
        return f"{path}?{urlencode(query)}" if query else path

    @property
    def stream(self) -> str:
        """Where the page's live changes come from."""
        return f"/ui/events?{urlencode([('page', self.page.name), *self.view.query])}"


class Pages:
    """The pages of an application, and how they become HTML."""

    def __init__(self) -> None:
        self.templates = environment()
        self.strips = Strips()
        self.addresses = Addresses()
        self.by_name: dict[str, Page] = {}
        self.open: Callable[[View], Parts | None] = lambda view: None
        """What an open page with this view shows now, if somebody has it open."""

    async def render(
        self, parts: Services, view: View, parts_of: Parts | None = None, **about: Any
    ) -> tuple[str, Parts, int]:
        """A page's HTML, its parts and its status; what is wrong stands on the page."""
        page, status, context, problem = self.by_name[view.page], 200, {}, ""
        strip = Strip()
        try:
            strip = await self.strips.read(parts, view.sees, view.max_age_s)
            context = await page.read(parts, view)
        except EmqError as error:
            problem, status = error.message, error.http_status
        frame = Frame(page, self.visible(view.role), view, parts.version, strip=strip, problem=problem, **about)
        found = parts_of or Parts()
        began = time.thread_time()
        template = "problem.html" if problem else page.template
        text = self.templates.draw(template, {**context, "frame": frame, "part": found})
        found.cost_s = time.thread_time() - began
        return text, found, status

    async def glance(self, parts: Services, view: View) -> Parts:
        """The strip of a page alone; raises ``Unavailable``."""
        strip = await self.strips.read(parts, view.sees, view.max_age_s)
        frame = Frame(self.by_name[view.page], [], view, parts.version, strip=strip)
        found = Parts()
        self.templates.draw("_strip.html", {"frame": frame, "part": found})
        return found

    def visible(self, role: Role) -> list[Page]:
        """The pages that a role finds in the navigation."""
        return [page for page in self.by_name.values() if page.nav and includes(role, page.role)]


PAGES = web.AppKey("pages", Pages)


def add_page(app: web.Application, page: Page) -> None:
    """Register a page: its address, its role, its place in the navigation, its live changes."""
    app[PAGES].by_name[page.name] = page
    app[ROLES]["GET", page.path] = page.role
    app.router.add_get(any_name(page.path), partial(show, page=page))


def add_action(
    app: web.Application, path: str, handler: Callable[[web.Request], Awaitable[web.StreamResponse]], role: Role
) -> None:
    """Register what a form posts to, and the least role that may."""
    app[ROLES]["POST", path] = role
    app.router.add_post(any_name(path), handler)


def any_name(path: str) -> str:
    """A route for names of any text; by itself it would not take those with braces."""
    return re.sub(r"\{(\w+)\}", r"{\1:[^/]+}", path)


def view_of(request: web.Request, page: str, who: Identity) -> View:
    """What a request looks at."""
    query = {**request.query, **request.match_info}
    query.pop("page", None)
    wanted = tuple(sorted((name, value[:500]) for name, value in query.items()))[:20]
    address = f"{request.scheme}://{request.host}"
    return View(page, wanted, who.sees, who.tenant, who.role, services(request).settings.dashboard_read_only, address)


def theme_of(request: web.Request) -> str:
    """The theme that the browser has chosen."""
    chosen = request.cookies.get(THEME, "auto")
    return chosen if chosen in THEMES else "auto"


def about(request: web.Request) -> dict[str, Any]:
    """What the frame shows of who asks."""
    who = request.get(IDENTITY)
    return {
        "user": who.key_id.removeprefix("user:") if who else "",
        "theme": theme_of(request),
        "said": take_said(request),
        "signed_in": who is not None and who.session != "",
    }


async def show(request: web.Request, page: Page) -> web.Response:
    """A page as it is now."""
    view = view_of(request, page.name, current(request))
    pages = request.config_dict[PAGES]
    text, parts, status = await pages.render(services(request), view, Parts(pages.open(view)), **about(request))
    response = web.Response(text=words.aged(parts.whole(text)), status=status, content_type="text/html")
    response.enable_compression()  # rows are much alike: 700 KB become 40 KB
    if SAID in request.cookies:
        response.del_cookie(SAID, path="/", httponly=True, samesite="Strict")
    return response


def render_plain(request: web.Request, template: str, status: int = 200, **context: Any) -> web.Response:
    """A page without navigation, strip and live changes."""
    context |= {"theme": theme_of(request), "version": services(request).version}
    text = request.config_dict[PAGES].templates.draw(template, context)
    return web.Response(text=text, status=status, content_type="text/html")
