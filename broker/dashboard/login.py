"""Logging in with a password or a key, and out again: plain forms, sessions in Redis, cookies hidden from scripts."""

from __future__ import annotations

import asyncio
import contextlib
from urllib.parse import parse_qs

from aiohttp import web

from broker.access.audit import AUDIT
from broker.access.credentials import CREDENTIALS, SECURE_COOKIE, Credentials
from broker.access.identity import IDENTITY, Identity, Scope
from broker.access.proxies import client_ip
from broker.dashboard.forms import is_htmx
from broker.dashboard.frame import render_plain
from broker.errors import EmqError, Forbidden, PayloadTooLarge, RateLimited, Unauthorized

MAX_FORM = 4096
FORM_S = 10.0


def add_to(app: web.Application) -> None:
    """Register the pages."""
    app.router.add_get("/login", show)
    app.router.add_post("/login", log_in)
    app.router.add_post("/logout", log_out)


async def show(request: web.Request) -> web.Response:
    """The form; a broker without keys needs none."""
    if request.config_dict[CREDENTIALS].ring.open:
        return _to("/")
    page = render_plain(request, "login.html", problem=None)
    if is_htmx(request):  # a page's script cannot log in: the browser has to come here
        page.headers["HX-Redirect"] = "/login"
    return page


async def log_in(request: web.Request) -> web.Response:
    """Begin a session for a person, or for the key's owner."""
    credentials = request.config_dict[CREDENTIALS]
    if credentials.ring.open:
        return _to("/")
    form: dict[str, str] = {}
    try:
        name = _cookie(credentials, request)
        form = await _posted(request)
        who = (await _who(credentials, client_ip(request), form)).require(Scope.READ)
        session = await _renew(credentials, request, name, who)
    except EmqError as error:
        target = form.get("user", "")[:64]
        await request.config_dict[AUDIT].note(None, client_ip(request), "failed log-in", target, why=error.code)
        page = render_plain(request, "login.html", error.http_status, problem=error.message)
        if isinstance(error, RateLimited):
            page.headers["Retry-After"] = str(max(1, round(error.details["retry_after_s"])))
        return page
    await request.config_dict[AUDIT].note(who, client_ip(request), "log-in")
    response = _to("/")
    secure = name == SECURE_COOKIE
    response.set_cookie(name, session, path="/", httponly=True, secure=secure, samesite="Strict")
    return response


async def log_out(request: web.Request) -> web.Response:
    """End the session, and every connection that it has opened."""
    credentials = request.config_dict[CREDENTIALS]
    response = _to("/login")
    name = credentials.cookie(request)
    if name in request.cookies:
        await credentials.store.close_session(request.cookies[name])
        await request.config_dict[AUDIT].note(request.get(IDENTITY), client_ip(request), "log-out")
        response.del_cookie(name, path="/", httponly=True, secure=name == SECURE_COOKIE, samesite="Strict")
    return response


def _to(place: str) -> web.Response:
    return web.Response(status=303, headers={"Location": place})


async def _posted(request: web.Request) -> dict[str, str]:
    """The form's fields; what is no form has none."""
    raw = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FORM_S):
            async for chunk in request.content.iter_any():
                raw += chunk
                if len(raw) > MAX_FORM:
                    raise PayloadTooLarge("The form is too large.")
    fields = parse_qs(raw.decode("utf-8", "replace"), max_num_fields=10)
    return {name: values[0].strip() for name, values in fields.items()}


async def _who(credentials: Credentials, ip: str, form: dict[str, str]) -> Identity:
    """Whose key, or name and password, this is. Raises ``Unauthorized``, ``RateLimited`` for too many wrong ones."""
    name = form.get("user", "")
    await credentials.attempts.log_in(ip, name or "a key")
    if name:
        user = credentials.ring.user(name)
        if not await credentials.passwords.match(form.get("password", ""), user) or user is None:
            raise Unauthorized("Name and password do not match.")
        who = user.identity()
    else:
        who = credentials.ring.find(form.get("key", ""))
    await credentials.attempts.logged_in(ip, name or "a key")
    return who


async def _renew(credentials: Credentials, request: web.Request, name: str, who: Identity) -> str:
    """A new session, never one that the browser came with."""
    if name in request.cookies:
        await credentials.store.close_session(request.cookies[name])
    return await credentials.store.open_session(who)


def _cookie(credentials: Credentials, request: web.Request) -> str:
    """The cookie's name, or ``Forbidden`` where browsers would send it in the clear."""
    name = credentials.cookie(request)
    if not name:
        raise Forbidden("Logging in needs https://, or a browser on the broker's own machine (http://127.0.0.1).")
    return name
