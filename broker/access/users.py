"""People who log in with a password. A password is short, so what is stored of it is slow to compute (scrypt)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Any

from broker.access.identity import SCOPES_OF, Identity, Role
from broker.errors import BadMessage

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
LEAST_PASSWORD, LONGEST_PASSWORD = 10, 256
_N, _R, _P = 2**15, 8, 3
"""32 MiB and about 0.2 s for one guess: what OWASP's password storage sheet asks of scrypt."""


@dataclass(frozen=True, slots=True)
class User:
    """A person; times are epoch milliseconds."""

    name: str
    tenant: str
    role: Role
    created_at: int
    password: str = field(repr=False)
    """``scrypt$n$r$p$salt$hash``."""

    @property
    def key_id(self) -> str:
        """By which name its sessions and audit lines know it."""
        return f"user:{self.name}"

    @property
    def digest(self) -> str:
        """Changes with the password, so that a new one ends the sessions of the old."""
        return hashlib.sha256(self.password.encode()).hexdigest()

    def identity(self) -> Identity:
        """Who has logged in."""
        return Identity(self.tenant, SCOPES_OF[self.role], self.key_id, self.digest)

    def public(self) -> dict[str, Any]:
        """What an administrator sees."""
        return {"name": self.name, "tenant": self.tenant, "role": self.role.value, "created_at": self.created_at}


def check_name(name: str) -> str:
    """The user's name, or ``BadMessage``."""
    if not _NAME.fullmatch(name):
        raise BadMessage(
            "name: 1 to 64 letters, digits, dots, dashes, underscores and @, starting with one of the first."
        )
    return name


def parse_role(name: str) -> Role:
    """A role by its name; raises ``BadMessage``."""
    if name not in {role.value for role in SCOPES_OF}:
        raise BadMessage(f"role: one of {', '.join(SCOPES_OF)}.")
    return Role(name)


def new_password() -> str:
    """A password for somebody who has to be given one: 96 random bits."""
    return secrets.token_urlsafe(12)


def hashed(password: str) -> str:
    """What is stored of a password. Raises ``BadMessage`` for one that is too short or too long."""
    if not LEAST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise BadMessage(f"password: {LEAST_PASSWORD} to {LONGEST_PASSWORD} characters.")
    salt = secrets.token_bytes(16)
    parts = (_N, _R, _P, _text(salt), _text(_scrypt(password, salt, _N, _R, _P)))
    return "scrypt$" + "$".join(str(part) for part in parts)


def matches(password: str, stored: str) -> bool:
    """Whether a password is the stored one; takes the same work when nothing is stored."""
    try:
        _, n, r, p, salt, wanted = stored.split("$")
        given = _scrypt(password[:LONGEST_PASSWORD], base64.b64decode(salt), int(n), int(r), int(p))
        return hmac.compare_digest(given, base64.b64decode(wanted))
    except ValueError:
        _scrypt(password[:LONGEST_PASSWORD], b"nobody", _N, _R, _P)
        return False


def _scrypt(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    memory = 128 * n * r + (1 << 20)
    return hashlib.scrypt(password.encode("utf-8", "replace"), salt=salt, n=n, r=r, p=p, maxmem=memory, dklen=32)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Passwords:
    """Checks passwords on threads, two at a time: many log-ins at once must take neither the loop nor the memory."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(2)

    async def match(self, password: str, user: User | None) -> bool:
        """Whether this is the user's password."""
        async with self._turn:
            return await asyncio.to_thread(matches, password, user.password if user else "")
