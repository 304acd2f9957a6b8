"""Where a request comes from: a header says so only when a proxy that is known has written it."""

from __future__ import annotations

import ipaddress

from aiohttp import web

from broker.errors import ConfigurationError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Proxies:
    """The proxies of ``EMQ_TRUSTED_PROXIES``: addresses and networks."""

    def __init__(self, configured: str) -> None:
        """Raises ``ConfigurationError`` for what is no address."""
        try:
            self._known = [ipaddress.ip_network(text.strip()) for text in configured.split(",") if text.strip()]
        except ValueError as error:
            raise ConfigurationError(f"EMQ_TRUSTED_PROXIES: {error}.") from None

    def client(self, request: web.BaseRequest) -> str:
        """The address of the client: the last one that no known proxy stands behind."""
        address = request.remote or ""
        hops = [hop.strip() for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")]
        while self._knows(address) and hops:
            address = hops.pop()
        return _plain(address) or "unknown"

    def _knows(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._known)


PROXIES = web.AppKey("proxies", Proxies)


def client_ip(request: web.Request) -> str:
    """The address that a request comes from."""
    return request.config_dict[PROXIES].client(request)


def origin_of(ip: str) -> str:
    """Whose attempts are counted together: an address, of IPv6 the network of 64 bits that one customer has."""
    address = _address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return ip


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0].strip("[]"))
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


def _plain(text: str) -> str:
    """The address in one form; what is none is not repeated."""
    return str(_address(text) or "")
