"""Logging in with a key, and out again: plain forms, a session in Redis, a cookie that scripts cannot read."""

from __future__ import annotations

import logging
from urllib.parse import parse_qs

from aiohttp import web

from broker.access.credentials import CREDENTIALS, SECURE_COOKIE, Credentials
from broker.access.identity import Identity, Scope
from broker.dashboard.views import render
from broker.errors import EmqError, Forbidden, PayloadTooLarge

log = logging.getLogger(__name__)

MAX_FORM = 4096


def add_to(app: web.Application) -> None:
    """Register the pages."""
    app.router.add_get("/login", show)
    app.router.add_post("/login", log_in)
    app.router.add_post("/logout", log_out)


async def show(request: web.Request) -> web.Response:
    """The form; a broker without keys needs none."""
    if request.config_dict[CREDENTIALS].ring.open:
        return _to("/")
    return render(request, "login.html", problem=None)


async def log_in(request: web.Request) -> web.Response:
    """Begin a session for the key's owner."""
    credentials = request.config_dict[CREDENTIALS]
    if credentials.ring.open:
        return _to("/")
    try:
        name = _cookie(credentials, request)
        who = credentials.ring.find(await _posted_key(request)).require(Scope.READ)
        session = await _renew(credentials, request, name, who)
    except EmqError as error:
        log.info("A log-in from %s failed: %s", request.remote, error.code)
        return render(request, "login.html", error.http_status, problem=error.message)
    log.info("Log-in by key %s of tenant %s from %s", who.key_id, who.tenant, request.remote)
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
        response.del_cookie(name, path="/", httponly=True, secure=name == SECURE_COOKIE, samesite="Strict")
    return response


def _to(place: str) -> web.Response:
    return web.Response(status=303, headers={"Location": place})


async def _posted_key(request: web.Request) -> str:
    """The form's key; what is no form has none."""
    raw = b""
    async for chunk in request.content.iter_any():
        raw += chunk
        if len(raw) > MAX_FORM:
            raise PayloadTooLarge("The form is too large.")
    return parse_qs(raw.decode("utf-8", "replace")).get("key", [""])[0].strip()


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
