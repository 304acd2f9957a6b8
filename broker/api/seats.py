"""How many connections may stay open: at this replica, and of one tenant and key at all of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from broker.access.identity import current
from broker.api.services import services
from broker.errors import ConfigurationError, Unavailable

RESERVED = 512
"""Open files that are no sockets of clients: Redis, files, requests under way."""
MOST = 20_000
RETRY_S = 5


def socket_limit(wanted: int | None) -> int:
    """How many sockets may be open here, after raising the process's limit of open files as far as it may be.

    Raises ``ConfigurationError`` when that is less than ``wanted``.
    """
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows has no such limit
        return wanted or MOST
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = (wanted or MOST) + RESERVED
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else max(soft, min(need, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    room = MOST + RESERVED if soft == resource.RLIM_INFINITY else soft
    if wanted and room < need:
        raise ConfigurationError(
            f"EMQ_MAX_SOCKETS is {wanted}, but this process may have {room} open files, {RESERVED} of them for other "
            f"things. Raise the limit (ulimit -n {need}; LimitNOFILE={need} in a systemd unit), or lower the setting."
        )
    return wanted or max(1, min(MOST, room - RESERVED))


@asynccontextmanager
async def seat(request: web.Request, *, counted: bool = True) -> AsyncIterator[None]:
    """Around a connection that stays open. ``counted``: it counts against the tenant's and the key's limits, too.

    Raises ``Unavailable`` (503) when this replica is full, ``RateLimited`` (429) when the tenant or key has enough.
    """
    parts, who = services(request), current(request)
    if parts.seated >= parts.max_sockets:
        raise Unavailable(
            f"This broker has {parts.seated} connections open, as many as it may; try again, or another replica.",
            retry_after_s=RETRY_S,
        )
    if counted:
        await parts.usage.take("sockets", who)
    parts.seated += 1
    try:
        yield
    finally:
        parts.seated -= 1
        if counted:
            parts.usage.give("sockets", who)
