"""What EMQ asks of a Redis server before it trusts it with jobs."""

from __future__ import annotations

import logging
import re
from typing import Any, Protocol

from broker.errors import ConfigurationError

log = logging.getLogger(__name__)

REDIS = (7, 0)
VALKEY = (7, 2)
LUA_FIXED = {
    "Redis": ((7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}


class Source(Protocol):
    """Gives ``INFO`` of every primary; ``broker.queue.connection.Connection`` is the real one."""

    async def info(self) -> list[dict[str, Any]]:
        """One dictionary a primary."""


async def check_server(source: Source, *, allow_volatile: bool = False, replicated: bool = False) -> str:
    """Look at every primary and answer name and version of the first; ``replicated``: each must insist on a replica.

    Everything is read from ``INFO``: managed services refuse ``CONFIG``. Raises ``ConfigurationError`` saying what to
    change, ``Unavailable`` when Redis is away.
    """
    names = []
    for info in await source.info():
        names.append(_version(info))
        _policy(info)
        _persistence(info, allow_volatile)
        if replicated:
            _replicas(info)
    return names[0]


def open_server(shown: str) -> ConfigurationError:
    """Why a server that asks for no password is refused unless it is on this machine."""
    return ConfigurationError(
        f"The Redis at {shown} lets everybody in who reaches it, without a password: they could read, forge and delete "
        "jobs. Give its users passwords (deploy/redis-users.acl, or requirepass), or set EMQ_ALLOW_OPEN_REDIS=1."
    )


def _warn_of_known_holes(name: str, text: str, numbers: tuple[int, ...]) -> None:
    """Scripts could leave Lua's sandbox before these releases (CVE-2025-49844); distributions patch older ones."""
    fixed = max((one for one in LUA_FIXED[name] if one[:2] <= numbers[:2]), default=(99,))
    if numbers < fixed and numbers[:2] <= max(LUA_FIXED[name])[:2]:
        log.warning(
            "%s %s is older than the release that closed known holes of its Lua (CVE-2025-49844); make sure that your "
            "distribution has patched it, and let nobody but EMQ's users call functions.", name, text,
        )  # fmt: skip


def _version(info: dict[str, Any]) -> str:
    # Valkey calls itself Redis 7.2.4 in redis_version, whatever its own version.
    valkey = info.get("valkey_version")
    name, text, least = ("Valkey", valkey, VALKEY) if valkey else ("Redis", info.get("redis_version", ""), REDIS)
    numbers = tuple(int(n) for n in re.findall(r"\d+", str(text))[:2])
    if numbers < least:
        raise ConfigurationError(
            f"The server is {name} {text}; EMQ needs Redis 7.0 or Valkey 7.2 or newer. "
            "Upgrade it, or unset EMQ_REDIS_URL and REDIS_HOST to use the embedded Valkey."
        )
    _warn_of_known_holes(name, str(text), tuple(int(n) for n in re.findall(r"\d+", str(text))[:3]))
    return f"{name} {text}"


def _policy(info: dict[str, Any]) -> None:
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise ConfigurationError(
            f"Redis' maxmemory-policy is {policy}: it would throw jobs away when memory is short. "
            "Set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in redis.conf)."
        )


def _persistence(info: dict[str, Any], allow_volatile: bool) -> None:
    if str(info.get("aof_enabled", "0")) != "1" and not allow_volatile:
        raise ConfigurationError(
            "Redis keeps no append-only file, so a restart would lose accepted jobs. "
            "Set appendonly yes (CONFIG SET appendonly yes, and in redis.conf), or accept the loss with "
            "EMQ_ALLOW_VOLATILE=1."
        )


def _replicas(info: dict[str, Any]) -> None:
    # INFO has this only where the server counts replicas that keep up. That there is none just now is no such fault.
    if "min_slaves_good_slaves" not in info:
        raise ConfigurationError(
            "EMQ_DURABILITY is replica, but Redis writes without one, so the old primary would go on alone after a "
            "failover. Set min-replicas-to-write 1 on every server (CONFIG SET min-replicas-to-write 1, and in "
            "redis.conf), or unset EMQ_DURABILITY; the embedded Valkey has no replica."
        )
