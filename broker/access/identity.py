"""The identity behind a request or socket. Every handler asks for it, every message of a socket checks its scope."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
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


class Role(StrEnum):
    """What a person may do on the pages; each includes the ones before it."""

    NONE = ""
    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"


SCOPES_OF = {
    Role.VIEWER: frozenset({Scope.READ}),
    Role.OPERATOR: frozenset({Scope.READ, Scope.SUBMIT}),
    Role.ADMIN: ALL_SCOPES,
}
"""What a person in a role may do, as scopes."""


def role_of(scopes: Collection[Scope]) -> Role:
    """The role that scopes amount to: admin, operator (read and submit), viewer (read), or none."""
    if Scope.ADMIN in scopes:
        return Role.ADMIN
    if Scope.READ not in scopes:
        return Role.NONE
    return Role.OPERATOR if Scope.SUBMIT in scopes else Role.VIEWER


@dataclass(frozen=True, slots=True)
class Identity:
    """A tenant and its scopes, and by which credential. Without a key id: somebody of an open broker."""

    tenant: str = "default"
    scopes: frozenset[Scope] = ALL_SCOPES
    key_id: str = ""
    """The key's id; ``user:<name>`` for a person who logged in with a password."""
    digest: str = field(default="", repr=False)
    """Which of the key's secrets was shown, by its SHA-256: one that was rotated away ends what it had opened."""
    session: str = field(default="", repr=False)
    """The session's name in Redis, for people who logged in."""

    def require(self, scope: Scope) -> Identity:
        """Raise ``Forbidden`` without ``scope``."""
        if scope not in self.scopes and Scope.ADMIN not in self.scopes:
            raise Forbidden(f"This key lacks the scope {scope.value!r}.", scope=scope.value)
        return self

    @property
    def role(self) -> Role:
        """Viewer, operator or administrator: what the pages show and let do."""
        return role_of(self.scopes)

    @property
    def sees(self) -> str:
        """The tenant whose figures it may read; empty: all."""
        return "" if Scope.ADMIN in self.scopes else self.tenant


IDENTITY = web.RequestKey("identity", Identity)
"""Where the middleware leaves who asks."""


def current(request: web.Request) -> Identity:
    """The identity that the middleware found for this request."""
    return request[IDENTITY]
