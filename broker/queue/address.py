"""Where Redis is: the URL forms that ``EMQ_REDIS_URL`` takes, read into one record."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlsplit

from broker.errors import ConfigurationError
from broker.settings import Settings

FORMS = (
    "redis://[[user]:password@]host[:port][/db], rediss://… (TLS), unix:///path?db=0&password=…, "
    "redis+sentinel://host:port,host:port/service[/db], redis+cluster://host:port,host:port"
)

Kind = Literal["single", "sentinel", "cluster"]


@dataclass(frozen=True, slots=True)
class Address:
    """A Redis to connect to.

    ``base`` is a URL of redis-py's own (redis://, rediss://, unix://) with the first node, the credentials and the
    options; ``nodes`` are the sentinels or the cluster's first nodes.
    """

    kind: Kind
    base: str
    nodes: tuple[tuple[str, int], ...] = ()
    service: str = ""
    db: int = 0

    @property
    def shown(self) -> str:
        """The address for logs and errors: no user, password or options."""
        if self.kind != "single":
            hosts = ",".join(f"{host}:{port}" for host, port in self.nodes)
            return f"redis+{self.kind}://{hosts}" + (f"/{self.service}/{self.db}" if self.service else "")
        parts = urlsplit(self.base)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine: a Unix socket, or loopback addresses alone."""
        parts = urlsplit(self.base)
        hosts = [host for host, _ in self.nodes] or [parts.hostname or ""]
        return parts.scheme == "unix" or all(_is_loopback(host) for host in hosts)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def url_from(settings: Settings) -> str | None:
    """The URL that the settings name; ``None`` means the embedded Valkey."""
    if settings.redis_url:
        return settings.redis_url
    if not settings.redis_host:
        return None
    host = f"[{settings.redis_host}]" if ":" in settings.redis_host else settings.redis_host
    login = f":{quote(settings.redis_password, safe='')}@" if settings.redis_password else ""
    return f"redis://{login}{host}:{settings.redis_port}/{settings.redis_db}"


def parse(url: str) -> Address:
    """Read a URL; raises ``ConfigurationError`` naming the forms there are."""
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise _bad(url, "it has no scheme")
    if scheme in ("redis", "rediss", "unix"):
        return _single(url, scheme)
    tls, _, kind = scheme.partition("+")
    if tls not in ("redis", "rediss") or kind not in ("sentinel", "cluster"):
        raise _bad(url, f"{scheme}:// is not known")
    return _many(url, "sentinel" if kind == "sentinel" else "cluster", tls, rest)


def _single(url: str, scheme: str) -> Address:
    parts = urlsplit(url)
    if scheme == "unix":
        if not parts.path.startswith("/"):
            raise _bad(url, "a unix:// URL needs the socket's full path")
        return Address("single", url)
    try:
        port = parts.port
    except ValueError:
        raise _bad(url, "its port is not a number from 0 to 65535") from None
    if not parts.hostname:
        raise _bad(url, f"it names no host (port {port})")
    return Address("single", url, db=_database(url, parts.path.strip("/")))


def _many(url: str, kind: Literal["sentinel", "cluster"], tls: str, rest: str) -> Address:
    place, _, query = rest.partition("?")
    netloc, _, path = place.partition("/")
    login, at, hosts = netloc.rpartition("@")
    nodes = tuple(_node(url, host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(",") if host)
    if not nodes:
        raise _bad(url, "it names no host")
    service, _, database = path.strip("/").partition("/") if kind == "sentinel" else ("", "", path.strip("/"))
    db = _database(url, database)
    if kind == "cluster" and db:
        raise _bad(url, "a cluster has database 0 only")
    if kind == "sentinel" and not service:
        raise _bad(url, "it does not name the service that the sentinels watch")
    host, port = nodes[0]
    shown = f"[{host}]" if ":" in host else host
    base = f"{tls}://{login}{at}{shown}:{port}/{db}" + (f"?{query}" if query else "")
    return Address(kind, base, nodes, service, db)


def _node(url: str, text: str, default: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host:
        raise _bad(url, f"{text!r} is not host:port")
    return host, port or default


def _database(url: str, text: str) -> int:
    if text and not text.isdecimal():
        raise _bad(url, f"database {text!r} is not a number")
    return int(text or 0)


def _bad(url: str, why: str) -> ConfigurationError:
    scheme, _, rest = url.partition("://")
    shown = f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}" if rest else scheme.partition(":")[0]
    return ConfigurationError(f"EMQ_REDIS_URL {shown!r} cannot be used: {why}. The forms are {FORMS}.")
