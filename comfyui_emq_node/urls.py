"""Which URLs input files may come from: the broker's rule, checked before a request and again at each connection.

A name is resolved once, every address it has is judged, and the connection goes to those very addresses: a name that
answers otherwise a moment later leads nowhere. Redirects, proxies and logins in URLs are no way around it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver
from yarl import URL

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PORTS = frozenset({80, 443, 8443})
"""Where public web servers are; other ports need a rule that names the host."""
CONNECT_S, SILENT_S = 5.0, 30.0
MAX_URL = 8192
STRANGE = re.compile(r"[\x00-\x20\x7f\\]")
NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48",
        "2001::/32", "2002::/16", "fec0::/10",
    )
)  # fmt: skip
"""Ranges that lead elsewhere than they say (mapped, translated, tunnelled); not every Python counts them as local."""


class UrlRefused(Exception):
    """The rule does not let this URL be fetched; the message says why."""


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, and nothing but that."""
    odd = address.is_multicast or address.is_unspecified or address.is_reserved or address.is_link_local
    return address.is_global and not odd and not any(address in net for net in NEVER if net.version == address.version)


class UrlRule:
    """``EMQ_INPUT_URLS``: ``off``, ``public``, ``any``, or ``allow:host,host:port,…`` (hosts by their exact name)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._kind, _, names = text.partition(":")
        self._hosts = {name.strip().lower().rstrip(".") for name in names.split(",") if name.strip()}

    def check(self, text: str) -> URL:
        """The URL to fetch. Names are judged again by their addresses, in :meth:`check_address`.

        Raises:
            UrlRefused: the rule forbids it, or it cannot be read.
        """
        if self._kind == "off":
            raise UrlRefused("this queue fetches no URLs (EMQ_INPUT_URLS is off); upload the file as an asset")
        url = _parsed(text)
        host, port = _host(url), url.port
        if self._kind == "allow" and host not in self._hosts and f"{host}:{port}" not in self._hosts:
            raise UrlRefused(f"host {host} is not on this queue's list (EMQ_INPUT_URLS)")
        literal = _literal(host)
        if literal is not None:
            self.check_address(host, str(literal))
        if self._kind == "public" and port not in PORTS:
            raise UrlRefused(f"port {port} is none of {', '.join(map(str, sorted(PORTS)))} (EMQ_INPUT_URLS)")
        return url

    def check_address(self, host: str, text: str) -> None:
        """Judge an address that ``host`` stands for.

        Raises:
            UrlRefused: nothing is fetched from there.
        """
        if self._kind == "any":
            return
        address = ipaddress.ip_address(text.partition("%")[0])
        if self._kind == "public" and not is_public(address):
            raise UrlRefused(f"{host} is no public address")
        if self._kind == "allow" and host != str(address) and (address.is_link_local or address.is_multicast):
            raise UrlRefused(f"{host} stands for an address that no server has")


def _parsed(text: str) -> URL:
    if len(text) > MAX_URL or STRANGE.search(text):
        raise UrlRefused("the URL has spaces, backslashes or control characters, or is too long")
    try:
        url = URL(text)
    except ValueError as error:
        raise UrlRefused(f"the URL cannot be read: {error}") from None
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise UrlRefused("only http and https URLs are fetched")
    if url.user is not None or url.password is not None or "@" in url.raw_authority:
        raise UrlRefused("a URL with a login is not fetched")
    return url


def _host(url: URL) -> str:
    host = (url.raw_host or "").lower().rstrip(".")
    if not host or "%" in host:
        raise UrlRefused("the URL's host cannot be read")
    return host


def _literal(host: str) -> Address | None:
    """The address that a host is, in any of the forms that the system's resolver takes (``127.1``, ``0x7f000001``)."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


class CheckedResolver(AbstractResolver):
    """Resolves names, and refuses those with any address that the rule forbids."""

    def __init__(self, rule: UrlRule, real: AbstractResolver) -> None:
        self._rule, self._real = rule, real

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[Any]:
        """The addresses of a name; raises :class:`UrlRefused`."""
        found = await self._real.resolve(host, port, family)
        for each in found:
            self._rule.check_address(host, each["host"])
        return list(found)

    async def close(self) -> None:
        """Close the real resolver."""
        await self._real.close()


def open_session(
    rule: UrlRule | None, resolver: Callable[[], AbstractResolver] = ThreadedResolver
) -> aiohttp.ClientSession:
    """An HTTP client for input files: under ``rule``, or with none for the brokers, whose word is trusted.

    It keeps no cookies, knows no proxies, and takes bytes as they are: a compressed answer could be of any size.
    """
    if rule is None:
        connector = aiohttp.TCPConnector(limit=16)
    else:
        connector = aiohttp.TCPConnector(limit=16, resolver=CheckedResolver(rule, resolver()))
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENT_S),
        headers={"Accept-Encoding": "identity", "User-Agent": "EMQ"},
        auto_decompress=False,
        trust_env=False,
    )
