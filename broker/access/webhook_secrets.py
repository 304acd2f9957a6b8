"""The secrets that tenants' webhooks are signed with, beside the keys: out of a worker's reach."""

from __future__ import annotations

import base64
import secrets

from broker.access.store import P
from broker.protocol.base import now_ms
from broker.queue.connection import Connection

GRACE_MS = 86_400_000
"""How long the old secret signs too after a rotation."""


class WebhookSecrets:
    """One secret a tenant, drawn when it is first asked for. Methods raise ``Unavailable`` while Redis is away."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def current(self, tenant: str) -> str:
        """The tenant's secret as its receiver takes it: ``whsec_<base64>``."""
        key = f"{P}whsec:{tenant}"
        await self._connection.write(P, ("HSETNX", key, "secret", secrets.token_urlsafe(32)))
        (found,) = await self._connection.write(P, ("HGET", key, "secret"))
        return shown(_bytes(found))

    async def rotate(self, tenant: str) -> str:
        """Draw another secret; deliveries carry both signatures for a day."""
        key = f"{P}whsec:{tenant}"
        (old,) = await self._connection.write(P, ("HGET", key, "secret"))
        fields: list[str | bytes | int] = ["secret", secrets.token_urlsafe(32)]
        if old:
            fields += ["old", old, "old_until", now_ms() + GRACE_MS]
        await self._connection.write(P, ("HSET", key, *fields))
        return await self.current(tenant)

    async def signing(self, tenant: str) -> list[bytes]:
        """The secrets to sign with, the newest first."""
        await self.current(tenant)
        key = f"{P}whsec:{tenant}"
        (found,) = await self._connection.write(P, ("HMGET", key, "secret", "old", "old_until"))
        secret, old, until = found
        return [_bytes(secret), *([_bytes(old)] if old and int(until or 0) > now_ms() else [])]


def _bytes(stored: bytes) -> bytes:
    return base64.urlsafe_b64decode(stored + b"=" * (-len(stored) % 4))


def shown(secret: bytes) -> str:
    """A secret as the Standard Webhooks libraries take it."""
    return f"whsec_{base64.b64encode(secret).decode()}"
