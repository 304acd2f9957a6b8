"""Browsers send along what other pages make them send: such requests are refused by where they come from."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from aiohttp import web

from broker.errors import ConfigurationError, Forbidden
from broker.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_OWN_SITES = frozenset({"same-origin", "none"})


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def no_key_for(host: str) -> ConfigurationError:
    """Why a broker without a key does not listen where others can connect."""
    return ConfigurationError(
        f"EMQ does not listen on {host} without a key: everybody who reaches that address could use the queue. "
        "Make a key first (python -m broker keys create --tenant default --scopes admin), or listen on 127.0.0.1."
    )


class OriginGuard:
    """Tells the broker's own pages and the configured ones from foreign ones."""

    def __init__(self, settings: Settings) -> None:
        self._allowed = {_origin(text) for text in settings.origins.split(",") if text.strip()}
        self._public = _origin(settings.public_url) if settings.public_url else None

    def check(self, request: web.Request, *, open_access: bool) -> None:
        """Raises ``Forbidden`` for a foreign page's request and another site's form.

        ``open_access``: no key is configured, so only the address protects the broker, and a foreign ``Host`` (a page
        whose name was re-bound to 127.0.0.1) is refused as well.
        """
        if open_access:
            self._check_host(request)
        origin = request.headers.get("Origin")
        if origin == "null" and _is_own_form(request):
            return
        if origin is not None:
            if not self._is_own(origin, request.host):
                raise Forbidden("This origin may not use the broker; add it to EMQ_ORIGINS.", origin=origin[:200])
        elif request.method not in SAFE_METHODS:
            site = request.headers.get("Sec-Fetch-Site")
            if site is not None and site not in _OWN_SITES:
                raise Forbidden("A page of another site may not change anything here.", site=site[:40])

    def _is_own(self, origin: str, host: str) -> bool:
        value = _origin(origin)
        if value is None:
            return False
        return value in self._allowed or value == self._public or value in (f"http://{host}", f"https://{host}")

    def _check_host(self, request: web.Request) -> None:
        name = urlsplit(f"//{request.host}").hostname or ""
        public = urlsplit(self._public).hostname if self._public else None
        if not is_loopback(name) and name != public:
            raise Forbidden(
                "Without a key the broker answers on loopback only; set EMQ_PUBLIC_URL if this name is its own.",
                host=name[:200],
            )


def _is_own_form(request: web.Request) -> bool:
    """Whether a browser says that a form of one of our own pages is posted.

    Under our ``Referrer-Policy: no-referrer`` browsers send such a form with ``Origin: null``. No page can set
    ``Sec-Fetch-Site`` itself, and a page in a sandbox counts as another site there.
    """
    return request.method == "POST" and request.headers.get("Sec-Fetch-Site") == "same-origin"


def _origin(text: str) -> str | None:
    """``scheme://host[:port]`` in one form, or ``None`` for what is none (``null`` among them)."""
    parts = urlsplit(text.strip())
    if parts.scheme not in ("http", "https") or not parts.netloc:
        return None
    return f"{parts.scheme}://{parts.netloc}".lower()
