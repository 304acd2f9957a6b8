"""Which credential a request brings, and who that is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from aiohttp import hdrs, web

from broker.access.attempts import Attempts
from broker.access.identity import IDENTITY, Identity
from broker.access.keyring import Close, KeyRing
from broker.access.keys import holds_key
from broker.access.origin import SAFE_METHODS, is_loopback
from broker.access.store import AccessStore
from broker.access.users import Passwords
from broker.errors import BadMessage, Forbidden, Unauthorized
from broker.settings import Settings

BEARER_PROTOCOL = "emq.bearer."
SECURE_COOKIE = "__Host-emq"
PLAIN_COOKIE = "emq"
_PUBLIC = frozenset({"/health", "/health/live", "/login"})


def is_public(path: str) -> bool:
    """Whether a path needs no credential."""
    return path in _PUBLIC or path.startswith("/static/")


class Credentials:
    """Tells who sends a request: by header, session cookie, subprotocol or ticket, in this order."""

    def __init__(self, ring: KeyRing, store: AccessStore, settings: Settings) -> None:
        self.ring = ring
        self.store = store
        self.attempts = Attempts(store, settings.auth_failures_per_min, settings.logins_per_min)
        self.passwords = Passwords()
        self._https = (settings.public_url or "").lower().startswith("https://")

    async def identify(self, request: web.Request) -> Identity:
        """Who sent this request; raises ``Unauthorized``, ``Forbidden`` for a session where a foreign page may be."""
        if self.ring.open:
            return Identity()
        header = request.headers.get(hdrs.AUTHORIZATION)
        if header is not None:
            return self.ring.find(_bearer(header))
        found = await self._by_session(request) or self._by_protocol(request) or await self._by_ticket(request)
        if found is None:
            raise Unauthorized("This needs a key. Send it as a header: Authorization: Bearer <key>.")
        return found

    async def _by_session(self, request: web.Request) -> Identity | None:
        text = request.cookies.get(self.cookie(request))
        if not text:
            return None
        found = await self.store.session(text)
        if found is None or not self.ring.holds(found):
            return None
        if not _from_own_page(request):
            raise Forbidden("A session counts for the broker's own pages only; send a key as a header instead.")
        return found

    def _by_protocol(self, request: web.Request) -> Identity | None:
        offered = [name.strip() for name in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")]
        for name in offered:
            if name.startswith(BEARER_PROTOCOL):
                return self.ring.find(name.removeprefix(BEARER_PROTOCOL))
        return None

    async def _by_ticket(self, request: web.Request) -> Identity | None:
        text = request.query.get("ticket")
        if text is None or not _takes_ticket(request):
            return None
        found = await self.store.take_ticket(text)
        if found is None or not self.ring.holds(found):
            raise Unauthorized("This ticket is not valid: it is unknown, older than 30 s, or has been used.")
        return found

    # -- cookies ------------------------------------------------------------------------------------------------------

    def is_secure(self, request: web.Request) -> bool:
        """Whether the browser speaks HTTPS, to this broker or to the proxy before it."""
        forwarded = request.headers.get(hdrs.X_FORWARDED_PROTO, "").strip().lower()
        return request.secure or self._https or forwarded == "https"

    def cookie(self, request: web.Request) -> str:
        """The name of the session's cookie; over plain HTTP there is one on loopback only."""
        if self.is_secure(request):
            return SECURE_COOKIE
        return PLAIN_COOKIE if is_loopback(request.url.host or "") else ""

    def shown(self, request: web.Request) -> bool:
        """Whether a request shows a credential at all, be it a right one or a wrong one."""
        return (
            hdrs.AUTHORIZATION in request.headers
            or BEARER_PROTOCOL in request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "")
            or (_takes_ticket(request) and "ticket" in request.query)
        )


CREDENTIALS = web.AppKey("credentials", Credentials)


def refuse_key_in_query(request: web.Request) -> None:
    """Raise ``BadMessage`` for a key in the URL, where logs and browsers would keep it."""
    if holds_key(request.query_string):
        raise BadMessage(
            "A key does not belong into a URL, where logs keep it: revoke it if others may have seen it. Send it as "
            "Authorization: Bearer <key>, or get a ticket for the URL from POST /api/tickets."
        )


@contextlib.contextmanager
def watched(request: web.Request, close: Close) -> Iterator[None]:
    """Around a connection that stays open: ``close`` is called when the request's credential ends."""
    with request.config_dict[CREDENTIALS].ring.watch(request[IDENTITY], close):
        yield


def _bearer(header: str) -> str:
    scheme, _, key = header.strip().partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("The Authorization header must be: Bearer <key>.")
    return key.strip()


def _takes_ticket(request: web.Request) -> bool:
    """Browsers' WebSockets and event streams can send no header."""
    return request.method == hdrs.METH_GET and (request.path.startswith("/ws") or request.path.endswith("/events"))


def _from_own_page(request: web.Request) -> bool:
    """Whether a browser says that one of the broker's own pages sends this; the guard has judged what it says."""
    if request.path.startswith("/ws"):
        return hdrs.ORIGIN in request.headers
    return request.method in SAFE_METHODS or hdrs.ORIGIN in request.headers or "Sec-Fetch-Site" in request.headers
