"""The identity behind a request or socket. Every handler asks for it, every message of a socket checks its scope."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from aiohttp import web

from broker.errors import Forbidden


class Scope(StrEnum):
    """What a key may do; ``admin`` may do everything."""

    SUBMIT = "submit"
    READ = "read"
    WORKER = "worker"
    ADMIN = "admin"


ALL_SCOPES = frozenset(Scope)


@dataclass(frozen=True, slots=True)
class Identity:
    """A tenant and its scopes."""

    tenant: str = "default"
    scopes: frozenset[Scope] = ALL_SCOPES

    def require(self, scope: Scope) -> Identity:
        """Raise ``Forbidden`` without ``scope``."""
        if scope not in self.scopes and Scope.ADMIN not in self.scopes:
            raise Forbidden(f"This key lacks the scope {scope.value!r}.", scope=scope.value)
        return self

    @property
    def sees(self) -> str:
        """The tenant whose figures it may read; empty: all."""
        return "" if Scope.ADMIN in self.scopes else self.tenant


IDENTITY = web.RequestKey("identity", Identity)
"""Where the middleware leaves what :func:`identify` found."""


async def identify(request: web.Request) -> Identity:
    """Who sent this request; raises ``Unauthorized``.

    Without any key configured everybody on this machine is the default tenant with every scope, which is why such a
    broker listens on loopback only.
    """
    return Identity()


def current(request: web.Request) -> Identity:
    """The identity that the middleware found for this request."""
    return request[IDENTITY]
