"""API keys: ``emq_<id>_<secret>``. The secret is 32 random bytes, so its plain SHA-256 is all that need be stored."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from broker.access.identity import Identity, Scope
from broker.access.limits import KeyLimits
from broker.errors import BadMessage

_KEY = re.compile(r"emq_([0-9a-f]{16})_([A-Za-z0-9_-]{43})")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NOBODY = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """What is known about a key; times are epoch milliseconds."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    created_at: int
    digest: str = field(repr=False)
    name: str = ""
    expires_at: int | None = None
    revoked_at: int | None = None
    old_digest: str = field(default="", repr=False)
    """The secret before the last rotation, which counts until ``old_until``."""
    old_until: int = 0
    used_at: int | None = None
    limits: KeyLimits = field(default_factory=KeyLimits)

    def accepts(self, digest: str, now: int) -> bool:
        """Whether a secret with this digest opens the door at ``now``."""
        fresh = hmac.compare_digest(self.digest, digest)
        old = hmac.compare_digest(self.old_digest or _NOBODY, digest) and now < self.old_until
        return (fresh or old) and self.live(now)

    def live(self, now: int) -> bool:
        """Whether it is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)

    def identity(self, digest: str) -> Identity:
        """Who shows the secret with this digest."""
        return Identity(self.tenant, self.scopes, self.key_id, digest)

    def public(self) -> dict[str, Any]:
        """What an administrator sees of it."""
        return {
            "id": self.key_id,
            "tenant": self.tenant,
            "scopes": [scope.value for scope in Scope if scope in self.scopes],
            "name": self.name,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "revoked_at": self.revoked_at,
            "used_at": self.used_at,
            "submits_per_s": self.limits.submits_per_s or None,
            "max_sockets": self.limits.max_sockets or None,
        }


NO_KEY = Key("", "", frozenset(), 0, _NOBODY, revoked_at=0)
"""Stands in for a key that does not exist, so that looking for one takes the same work."""


def split(text: str) -> tuple[str, str] | None:
    """Id and digest of a key; ``None`` for what is none."""
    found = _KEY.fullmatch(text)
    return (found[1], hashlib.sha256(found[2].encode()).hexdigest()) if found else None


def holds_key(text: str) -> bool:
    """Whether a text has something in it that looks like a key."""
    return _KEY.search(text) is not None


def new_id() -> str:
    """A key's id: public, but not to be guessed either."""
    return secrets.token_hex(8)


def new_secret() -> tuple[str, str]:
    """A secret and its digest."""
    secret = secrets.token_urlsafe(32)
    return secret, hashlib.sha256(secret.encode()).hexdigest()


def written(key_id: str, secret: str) -> str:
    """The key as its owner keeps it."""
    return f"emq_{key_id}_{secret}"


def check_tenant(tenant: str) -> str:
    """The tenant's name, or ``BadMessage``."""
    if not _TENANT.fullmatch(tenant):
        raise BadMessage(
            "tenant: 1 to 64 letters, digits, dots, dashes and underscores, starting with a letter or digit."
        )
    return tenant


def parse_scopes(names: Collection[str]) -> frozenset[Scope]:
    """Scopes by their names; raises ``BadMessage``."""
    known = {scope.value for scope in Scope}
    if not names or not set(names) <= known:
        raise BadMessage(f"scopes: one or more of {', '.join(Scope)}.")
    return frozenset(Scope(name) for name in names)


def known_scopes(names: Collection[str]) -> frozenset[Scope]:
    """The scopes among names from Redis, where a newer release may have put one that this one does not know."""
    return frozenset(scope for scope in Scope if scope.value in names)
