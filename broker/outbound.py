"""HTTP to addresses that clients name: which ones, checked when they are named and again at each connection.

A name is resolved once, every address that it has is judged, and the connection goes to one of those: a name that
answers otherwise a moment later leads nowhere. There are no redirects, no proxies and no logins in URLs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from dataclasses import dataclass

import httpx

from broker.errors import BadMessage, ConfigurationError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
CONNECT_S, TOTAL_S = 5.0, 15.0
LIMITS = httpx.Limits(max_connections=128, max_keepalive_connections=0)
ANSWER_BYTES = 64 << 10
"""The most that is read of an answer."""
STRANGE = re.compile(r"[\x00-\x20\x7f\\]")
NEVER = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48",
        "2001::/32", "2002::/16", "fec0::/10",
    )
)  # fmt: skip
"""Ranges that lead elsewhere than they say (mapped, translated, tunnelled); not every Python counts them as local."""


class UrlRefused(BadMessage):
    """The rule does not let this URL be called."""


def is_public(address: Address) -> bool:
    """Whether an address is of the public internet, and nothing but that."""
    odd = address.is_multicast or address.is_unspecified or address.is_reserved or address.is_link_local
    return address.is_global and not odd and not any(address in net for net in NEVER if net.version == address.version)


class UrlRule:
    """``off``, ``public``, ``any``, or ``allow:host,host:port,…`` (hosts by their exact name).

    ``public`` takes https on ``ports`` (comma-separated), at public addresses. Raises ``ConfigurationError``.
    """

    def __init__(self, text: str, ports: str = "443") -> None:
        self._kind, _, names = text.partition(":")
        self._hosts = {name.strip().lower().rstrip(".") for name in names.split(",") if name.strip()}
        if self._kind not in ("off", "public", "any", "allow") or (self._kind == "allow") != bool(self._hosts):
            raise ConfigurationError(f"{text!r} is no rule for URLs: off, public, any, or allow:host,host:port.")
        try:
            self._ports = frozenset(int(port) for port in ports.split(","))
        except ValueError:
            raise ConfigurationError(f"{ports!r} is no list of ports like 443,8443.") from None

    def check(self, text: str) -> httpx.URL:
        """The URL, as far as it can be judged without resolving its name. Raises ``UrlRefused``."""
        if self._kind == "off":
            raise UrlRefused("This queue calls no URLs of its clients.")
        url = _parsed(text)
        port = url.port or (443 if url.scheme == "https" else 80)
        if self._kind == "allow" and url.host not in self._hosts and f"{url.host}:{port}" not in self._hosts:
            raise UrlRefused(f"The host {url.host} is not on this queue's list.")
        if self._kind == "public" and (url.scheme != "https" or port not in self._ports):
            raise UrlRefused(f"Only https on port {', '.join(map(str, sorted(self._ports)))} is called.")
        literal = _literal(url.host)
        if literal is not None:
            self.check_address(url.host, literal)
        return url

    def check_address(self, host: str, address: Address) -> None:
        """Judge an address that ``host`` stands for. Raises ``UrlRefused``."""
        if self._kind == "public" and not is_public(address):
            raise UrlRefused(f"{host} is no public address.")
        if self._kind == "allow" and host != str(address) and (address.is_link_local or address.is_multicast):
            raise UrlRefused(f"{host} stands for an address that no server has.")


def _parsed(text: str) -> httpx.URL:
    if STRANGE.search(text) or "%" in text.split("://", 1)[-1].split("/", 1)[0]:
        raise UrlRefused("The URL has spaces, backslashes or control characters, or its host cannot be read.")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused(f"The URL cannot be read: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UrlRefused("Only http and https URLs are called.")
    if url.userinfo:
        raise UrlRefused("A URL with a login is not called.")
    return url.copy_with(host=url.host.rstrip("."))


def _literal(host: str) -> Address | None:
    """The address that a host is, in any of the forms that the system's resolver takes (``127.1``, ``0x7f000001``)."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


@dataclass(frozen=True, slots=True)
class Posted:
    """The answer to a request: its status, and how long it took in ms."""

    status: int
    ms: int


class Outbound:
    """Posts to URLs under a rule. Use it as a context manager."""

    def __init__(self, rule: UrlRule, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._rule = rule
        timeout = httpx.Timeout(TOTAL_S, connect=CONNECT_S)
        self._http = httpx.AsyncClient(
            timeout=timeout, follow_redirects=False, trust_env=False, transport=transport, limits=LIMITS
        )

    async def close(self) -> None:
        """End it."""
        await self._http.aclose()

    async def post(self, text: str, body: bytes, headers: dict[str, str]) -> Posted:
        """Post ``body``. Raises ``UrlRefused``, ``httpx.TransportError``, ``TimeoutError`` (after 15 s in all)."""
        clock = asyncio.get_running_loop().time
        started = clock()
        async with asyncio.timeout(TOTAL_S):
            url = self._rule.check(text)
            host = url.netloc.decode()
            pinned = url.copy_with(host=await self._address(url))
            request = self._http.build_request("POST", pinned, content=body, headers={**headers, "Host": host})
            request.extensions["sni_hostname"] = url.host
            response = await self._http.send(request, stream=True)
            try:
                read = 0
                async for chunk in response.aiter_raw():
                    read += len(chunk)
                    if read >= ANSWER_BYTES:
                        break
            finally:
                await response.aclose()
        return Posted(response.status_code, round((clock() - started) * 1000))

    async def _address(self, url: httpx.URL) -> str:
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpx.ConnectError(f"{url.host} cannot be resolved: {error}") from None
        addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
        for address in addresses:
            self._rule.check_address(url.host, address)
        return str(addresses[0])
