"""Keys, sessions and tickets in Redis: under a prefix of their own, which a worker's Redis user cannot reach.

``P`` is ``emq:access:{keys}:``; the braces keep all of it in one slot of a cluster. No pool's prefix begins so.

==========================  ============================================================================================
``P version``               counts changes; exists since the first key was made, and never goes
``P ids``                   set of key ids
``P key:<id>``              hash: digest, tenant, scopes, name, created, expires, revoked, old_digest, old_until
``P used``                  hash: id → when it was last used, to the minute
``P session:<digest>``      JSON of an identity; lives for 12 h after its last use
``P ticket:<digest>``       JSON of an identity; lives for 30 s, and for one use
==========================  ============================================================================================
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from broker.access import keys
from broker.access.identity import Identity
from broker.access.keys import Key
from broker.errors import BadMessage, NotFound
from broker.protocol.base import now_ms
from broker.queue.connection import Command, Connection

P = "emq:access:{keys}:"
SESSION_S = 12 * 3600
TICKET_S = 30
KEPT_MS = 30 * 86_400_000
"""How long a key that has ended is still listed."""


class AccessStore:
    """The one place that knows how access is kept. Every method raises ``Unavailable`` while Redis is away."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _run(self, *commands: Command) -> list[Any]:
        return await self._connection.write(P, *commands) if commands else []

    # -- keys ---------------------------------------------------------------------------------------------------------

    async def version(self) -> int:
        """A number that changes with every change of a key; 0: no key was ever made."""
        (version,) = await self._run(("GET", P + "version"))
        return int(version or 0)

    async def load(self) -> tuple[int, dict[str, Key]]:
        """All keys by id, and the version that they have at least."""
        version, ids, used = await self._run(("GET", P + "version"), ("SMEMBERS", P + "ids"), ("HGETALL", P + "used"))
        names = sorted(name.decode() for name in ids)
        rows = await self._run(*(("HGETALL", f"{P}key:{name}") for name in names))
        found = {name: _key(name, row, used) for name, row in zip(names, rows, strict=True) if row.get(b"created")}
        if gone := [name for name in names if name not in found]:
            await self._run(("SREM", P + "ids", *gone), ("HDEL", P + "used", *gone))
        return int(version or 0), found

    async def create(
        self, tenant: str, scopes: Collection[str], *, expires_s: float | None = None, name: str = ""
    ) -> tuple[Key, str]:
        """Make a key; answers it and its text, which nobody can be told again. Raises ``BadMessage``."""
        secret, digest = keys.new_secret()
        now = now_ms()
        if expires_s is not None and not 0 < expires_s < 1e10:
            raise BadMessage("expires_s: a number of seconds above 0.")
        expires = None if expires_s is None else now + round(expires_s * 1000)
        key = Key(keys.new_id(), keys.check_tenant(tenant), keys.parse_scopes(scopes), now, digest, name[:128], expires)
        row: dict[str, str | int] = {
            "digest": digest,
            "tenant": key.tenant,
            "scopes": ",".join(key.scopes),
            "name": key.name,
            "created": now,
        }
        record = f"{P}key:{key.key_id}"
        ends: list[Command] = []
        if expires is not None:
            row["expires"] = expires
            ends.append(("PEXPIREAT", record, expires + KEPT_MS))
        listed: list[Command] = [("SADD", P + "ids", key.key_id), ("INCR", P + "version")]
        await self._run(("HSET", record, *_flat(row)), *ends, *listed)
        return key, keys.written(key.key_id, secret)

    async def revoke(self, key_id: str) -> Key:
        """End a key for good; ending it twice changes nothing. Raises ``NotFound``."""
        key = await self.get(key_id)
        if key.revoked_at is None:
            name = f"{P}key:{key_id}"
            # The digest goes too: a rotation at the same time cannot bring the key back, `revoked` stays.
            await self._run(
                ("HSETNX", name, "revoked", now_ms()),
                ("HSET", name, "digest", "", "old_digest", ""),
                ("PEXPIRE", name, KEPT_MS),
                ("INCR", P + "version"),
            )
        return await self.get(key_id)

    async def rotate(self, key_id: str, grace_s: float = 0) -> tuple[Key, str]:
        """Give a key another secret; the old one counts for ``grace_s`` more. Raises ``NotFound``."""
        key = await self.get(key_id)
        if not key.live(now_ms()):
            raise NotFound(f"The key {key_id} has ended; make a new one.")
        secret, digest = keys.new_secret()
        until = now_ms() + round(grace_s * 1000) if grace_s else 0
        row: dict[str, str | int] = {"digest": digest, "old_digest": key.digest if until else "", "old_until": until}
        await self._run(("HSET", f"{P}key:{key_id}", *_flat(row)), ("INCR", P + "version"))
        return await self.get(key_id), keys.written(key_id, secret)

    async def get(self, key_id: str) -> Key:
        """One key; raises ``NotFound``."""
        row, used = await self._run(("HGETALL", f"{P}key:{key_id}"), ("HGET", P + "used", key_id))
        if not row.get(b"created"):
            raise NotFound("There is no such key.")
        return _key(key_id, row, {key_id.encode(): used} if used else {})

    async def used(self, when: Mapping[str, int]) -> None:
        """Note when keys were last used."""
        if when:
            await self._run(("HSET", P + "used", *_flat(when)))

    # -- sessions and tickets -----------------------------------------------------------------------------------------

    async def open_session(self, who: Identity) -> str:
        """Begin a session of 12 idle hours; answers what the cookie holds."""
        return await self._put("session", who, SESSION_S)

    async def session(self, text: str) -> Identity | None:
        """Whose session it is, if it lives; it lives on for 12 h."""
        name = _digest(text)
        (found,) = await self._run(("GETEX", f"{P}session:{name}", "EX", SESSION_S))
        return _identity(found, name) if found else None

    async def close_session(self, text: str) -> None:
        """End a session."""
        await self._run(("DEL", f"{P}session:{_digest(text)}"))

    async def living(self, sessions: Sequence[str]) -> set[str]:
        """Which of these sessions live."""
        answers = await self._run(*(("EXISTS", f"{P}session:{name}") for name in sessions))
        return {name for name, alive in zip(sessions, answers, strict=True) if alive}

    async def make_ticket(self, who: Identity) -> str:
        """A ticket for one connection within 30 s."""
        return await self._put("ticket", who, TICKET_S)

    async def take_ticket(self, text: str) -> Identity | None:
        """Whose ticket it is; it can be taken once."""
        (found,) = await self._run(("GETDEL", f"{P}ticket:{_digest(text)}"))
        return _identity(found) if found else None

    async def _put(self, kind: str, who: Identity, seconds: int) -> str:
        text = secrets.token_urlsafe(32)
        record = {
            "tenant": who.tenant, "scopes": sorted(who.scopes), "key": who.key_id, "digest": who.digest,
            "session": who.session,
        }  # fmt: skip
        await self._run(("SET", f"{P}{kind}:{_digest(text)}", json.dumps(record), "EX", seconds))
        return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def _flat(row: Mapping[str, str | int]) -> list[str | int]:
    return [part for pair in row.items() for part in pair]


def _key(key_id: str, row: Mapping[bytes, bytes], used: Mapping[bytes, bytes]) -> Key:
    def number(name: bytes) -> int | None:
        return int(row[name]) if row.get(name) else None

    last = used.get(key_id.encode())
    return Key(
        key_id=key_id,
        tenant=row.get(b"tenant", b"").decode(),
        scopes=keys.known_scopes(row.get(b"scopes", b"").decode().split(",")),
        created_at=number(b"created") or 0,
        digest=row.get(b"digest", b"").decode(),
        name=row.get(b"name", b"").decode(),
        expires_at=number(b"expires"),
        revoked_at=number(b"revoked"),
        old_digest=row.get(b"old_digest", b"").decode(),
        old_until=number(b"old_until") or 0,
        used_at=int(last) if last else None,
    )


def _identity(text: bytes, session: str = "") -> Identity:
    record = json.loads(text)
    return Identity(
        record["tenant"], keys.known_scopes(record["scopes"]), record["key"], record["digest"],
        session or record["session"],
    )  # fmt: skip
