"""Clients of redis-py for every form of ``EMQ_REDIS_URL``."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from .queue import Refused
from .redis_wire import Wire


def open_client(url: str, timeout_s: float, retries: int) -> Any:
    """A client for a server, a sentinels' service or a cluster.

    Raises:
        Refused: the address is none of these.
    """
    from redis.asyncio import Redis, RedisCluster
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import Sentinel
    from redis.backoff import ExponentialBackoff

    options: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": 3.0,
        "socket_keepalive": True,
        "retry": Retry(ExponentialBackoff(0.5, 0.05), retries),
        "client_name": "emq-worker",
        "protocol": 2,
    }
    if find_spec("redis.driver_info"):
        options["driver_info"] = None  # no CLIENT SETINFO: the worker's user need not be allowed it
    scheme, _, rest = url.partition("://")
    tls, _, kind = scheme.partition("+")
    if kind not in ("", "sentinel", "cluster"):
        raise Refused(f"EMQ_REDIS_URL cannot be used: {scheme}:// is none of the forms of a Redis' address")
    try:
        if scheme == "unix":
            del options["socket_keepalive"]  # refused there
        if not kind:
            return Redis.from_url(url, **options)
        login, _, place = rest.rpartition("@")
        hosts, _, path = place.partition("/")
        nodes = [_node(host, 26379 if kind == "sentinel" else 6379) for host in hosts.split(",")]
        given = dict(parse_url(f"{tls}://{login}@{nodes[0][0]}:{nodes[0][1]}"))
        options.update({name: given[name] for name in ("username", "password") if name in given}, ssl=tls == "rediss")
        if kind == "cluster":
            return RedisCluster(startup_nodes=[ClusterNode(*node) for node in nodes], **options)
        service, _, database = path.partition("?")[0].partition("/")
        asking = {"socket_timeout": 1.0, "socket_connect_timeout": 1.0}
        sentinel = Sentinel(nodes, sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        return sentinel.master_for(service, db=int(database or 0), **options)
    except (TypeError, ValueError) as error:
        raise Refused(f"EMQ_REDIS_URL cannot be used: {error}") from None


def words(error: Exception) -> str:
    """An error of redis-py in its own words, without the connections that it shows."""
    return str(error).partition(" : <")[0][:300] or type(error).__name__


async def open_wire(client: Any, key: str, limit_s: float | None = None) -> Wire:
    """A connection of its own to the server that has ``key``; raises what redis-py raises."""
    if not hasattr(client, "get_node_from_key"):
        return await Wire.over(client.connection_pool.make_connection(), limit_s)
    await client.initialize()
    node = client.get_node_from_key(key)
    return await Wire.over(node.connection_class(**node.connection_kwargs), limit_s)


async def close_client(client: Any) -> None:
    """Close a client, and those of the sentinels that it asked; never raises."""
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    for each in (client, *getattr(manager, "sentinels", ())):
        with contextlib.suppress(Exception):
            await each.aclose()


async def forget_nodes(client: Any) -> None:
    """Have a cluster's client look again which node has what; sentinels are asked for each connection anyway."""
    if hasattr(client, "get_node_from_key"):
        with contextlib.suppress(Exception):
            await client.aclose()


def server_of(client: Any, key: str) -> dict[str, Any]:
    """The server that has ``key`` as far as the client knows by now, and the login: what ``keeper.py`` connects to."""
    if hasattr(client, "get_node_from_key"):
        source = client.get_node_from_key(key)
        options = {**source.connection_kwargs, "host": source.host, "port": source.port}
    else:
        source = client.connection_pool
        options = dict(source.connection_kwargs)
        if getattr(source, "master_address", None):
            options["host"], options["port"] = source.master_address
    kind = getattr(source, "connection_class", None)
    secured = bool(options.get("ssl")) or "SSL" in getattr(kind, "__name__", "")
    found = {name: options.get(name) for name in ("host", "port", "path", "username", "password")}
    return {**found, "database": options.get("db"), "tls": _tls(options) if secured else None}


def _tls(options: Mapping[str, Any]) -> dict[str, Any]:
    """How the server's certificate is checked, and what this side shows."""
    names = ("ca_certs", "ca_path", "certfile", "keyfile", "password")
    given = {name: options.get(f"ssl_{name}") for name in names}
    checked = options.get("ssl_cert_reqs", "required") not in ("none", 0, None)
    return {**given, "check_hostname": bool(options.get("ssl_check_hostname", True)), "checked": checked}


def _node(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "127.0.0.1", parts.port or port
