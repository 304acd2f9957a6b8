"""Keys, sessions and tickets in Redis: under a prefix of their own, which a worker's Redis user cannot reach.

``P`` is ``emq:access:{keys}:``; the braces keep all of it in one slot of a cluster. No pool's prefix begins so.

==========================  ============================================================================================
``P version``               counts changes; exists since the first key was made, and never goes
``P policies``              counts changes of what is set for tenants
``P ids``                   set of key ids
``P key:<id>``              hash: digest, tenant, scopes, name, created, expires, revoked, old_digest, old_until
``P used``                  hash: id → when it was last used, to the minute
``P users``                 set of users' names
``P user:<name>``           hash: tenant, role, created, password (scrypt)
``P tenants``               hash: tenant → JSON of its policy
``P use:<what>``            hash: broker → how many it has open (``emq_use``); ``P replicas``: broker → end of its life
``P side:<pool>:<job>``     a waiting job's partner keys, encrypted; lives for a while, and until the claim
``P tb:<name>``             hash: a token bucket (``emq_throttle``); lives until it would be full
``P secret``                what signs links where no ``EMQ_SECRET`` is set: the first broker's own
``P audit``                 stream: who did what, from where; the newest 10,000
``P session:<digest>``      JSON of an identity; lives for 12 h after its last use
``P ticket:<digest>``       JSON of an identity; lives for 30 s, and for one use
==========================  ============================================================================================
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from broker.access import keys, users
from broker.access.identity import Identity
from broker.access.keys import Key
from broker.access.limits import Bucket, KeyLimits
from broker.access.users import User
from broker.errors import BadMessage, Conflict, NotFound
from broker.protocol.access import TenantPolicy
from broker.protocol.base import now_ms
from broker.queue.connection import Command, Connection

P = "emq:access:{keys}:"
SESSION_S = 12 * 3600
TICKET_S = 30
REPLICA_MS = 20_000
"""A broker that has not been heard of for so long has nothing open."""
AUDIT_KEPT = 10_000
KEPT_MS = 30 * 86_400_000
"""How long a key that has ended is still listed."""


class AccessStore:
    """The one place that knows how access is kept. Every method raises ``Unavailable`` while Redis is away."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def _run(self, *commands: Command) -> list[Any]:
        return await self._connection.write(P, *commands) if commands else []

    async def shared_secret(self, own: str) -> str:
        """The deployment's signing secret; ``own`` becomes it when there is none yet."""
        _, shared = await self._run(("SET", P + "secret", own, "NX"), ("GET", P + "secret"))
        return str(shared.decode())

    # -- keys ---------------------------------------------------------------------------------------------------------

    async def version(self) -> int:
        """A number that changes with every change of a key; 0: no key was ever made."""
        (version,) = await self._run(("GET", P + "version"))
        return int(version or 0)

    async def stamp(self) -> tuple[int, int]:
        """Two numbers that change: with keys and users, and with what is set for tenants."""
        version, policies = await self._run(("GET", P + "version"), ("GET", P + "policies"))
        return int(version or 0), int(policies or 0)

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
        self,
        tenant: str,
        scopes: Collection[str],
        *,
        expires_s: float | None = None,
        name: str = "",
        limits: KeyLimits | None = None,
    ) -> tuple[Key, str]:
        """Make a key; answers it and its text, which nobody can be told again. Raises ``BadMessage``."""
        secret, digest = keys.new_secret()
        now = now_ms()
        if expires_s is not None and not 0 < expires_s < 1e10:
            raise BadMessage("expires_s: a number of seconds above 0.")
        expires = None if expires_s is None else now + round(expires_s * 1000)
        key = Key(
            keys.new_id(), keys.check_tenant(tenant), keys.parse_scopes(scopes), now, digest, name[:128], expires,
            limits=limits or KeyLimits(),
        )  # fmt: skip
        row: dict[str, str | int] = {
            "digest": digest,
            "tenant": key.tenant,
            "scopes": ",".join(key.scopes),
            "name": key.name,
            "created": now,
            "rate": str(key.limits.submits_per_s),
            "sockets": key.limits.max_sockets,
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

    # -- people -------------------------------------------------------------------------------------------------------

    async def users(self) -> dict[str, User]:
        """All people by name."""
        (found,) = await self._run(("SMEMBERS", P + "users"))
        names = sorted(name.decode() for name in found)
        rows = await self._run(*(("HGETALL", f"{P}user:{name}") for name in names))
        return {name: _user(name, row) for name, row in zip(names, rows, strict=True) if row.get(b"created")}

    async def create_user(self, name: str, tenant: str, role: str, password: str) -> User:
        """Add a person. Raises ``BadMessage``, ``Conflict`` when the name is taken."""
        tenant, chosen = keys.check_tenant(tenant), users.parse_role(role)
        stored = await asyncio.to_thread(users.hashed, password)
        user = User(users.check_name(name), tenant, chosen, now_ms(), stored)
        record = f"{P}user:{name}"
        (new,) = await self._run(("HSETNX", record, "created", user.created_at))
        if not new:
            raise Conflict(f"There is a user {name} already.", reason="user")
        row: dict[str, str | int] = {"tenant": tenant, "role": user.role.value, "password": user.password}
        await self._run(("HSET", record, *_flat(row)), ("SADD", P + "users", name), ("INCR", P + "version"))
        return user

    async def set_password(self, name: str, password: str) -> User:
        """Change a person's password, which ends the sessions of the old one. Raises ``BadMessage``, ``NotFound``."""
        await self.user(name)
        stored = await asyncio.to_thread(users.hashed, password)
        await self._run(("HSET", f"{P}user:{name}", "password", stored), ("INCR", P + "version"))
        return await self.user(name)

    async def remove_user(self, name: str) -> User:
        """Remove a person and end what they have opened. Raises ``NotFound``."""
        user = await self.user(name)
        await self._run(("DEL", f"{P}user:{name}"), ("SREM", P + "users", name), ("INCR", P + "version"))
        return user

    async def user(self, name: str) -> User:
        """One person; raises ``NotFound``."""
        (row,) = await self._run(("HGETALL", f"{P}user:{users.check_name(name)}"))
        if not row.get(b"created"):
            raise NotFound(f"There is no user {name}.")
        return _user(name, row)

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

    # -- tenants ------------------------------------------------------------------------------------------------------

    async def tenants(self) -> dict[str, TenantPolicy]:
        """What was set for tenants, by name."""
        (found,) = await self._run(("HGETALL", P + "tenants"))
        return {name.decode(): TenantPolicy.model_validate_json(text) for name, text in sorted(found.items())}

    async def set_tenant(self, tenant: str, policy: TenantPolicy) -> None:
        """Set what holds for a tenant, in place of what was set; what is left out has the settings' default."""
        text = policy.model_dump_json(exclude_none=True, exclude={"type", "message_id", "timestamp"})
        await self._run(("HSET", P + "tenants", keys.check_tenant(tenant), text), ("INCR", P + "policies"))

    # -- limits -------------------------------------------------------------------------------------------------------

    async def throttle(self, name: str, bucket: Bucket, cost: float = 1) -> float:
        """Take from a bucket that all replicas share; answers the seconds to wait when it has too little, else 0."""
        args = ["name", name, "rate", repr(bucket.rate), "burst", repr(bucket.burst), "cost", repr(cost)]
        if bucket.lock_s:
            args += ["lock_ms", str(round(bucket.lock_s * 1000)), "max_lock_ms", str(round(bucket.max_lock_s * 1000))]
        answer = await self._connection.fcall("emq_throttle", P, args)
        return int(answer[2]) / 1000 if answer[0] == b"wait" else 0.0

    async def use(
        self, replica: str, *, changes: Sequence[tuple[str, int, int]] = (), counts: Mapping[str, int] | None = None
    ) -> str | None:
        """Count what is open; answers what there would be too much of, else ``None``."""
        args = ["replica", replica, "ttl_ms", str(REPLICA_MS)]
        args += ["changes", "\n".join(f"{what} {n} {limit}" for what, n, limit in changes)]
        args += ["counts", "\n".join(f"{what} {n}" for what, n in (counts or {}).items())]
        answer = await self._connection.fcall("emq_use", P, args)
        return answer[2].decode() if answer[0] == b"full" else None

    async def put_side(self, name: str, sealed: bytes, life_ms: int) -> None:
        """Keep something encrypted beside a job for a while."""
        await self._run(("SET", f"{P}side:{name}", sealed, "PX", life_ms))

    async def take_side(self, name: str) -> bytes | None:
        """Take it, once."""
        (found,) = await self._run(("GETDEL", f"{P}side:{name}"))
        return found if isinstance(found, bytes) else None

    async def forgive(self, name: str) -> None:
        """Fill a bucket again."""
        await self._run(("DEL", f"{P}tb:{name}"))

    # -- audit --------------------------------------------------------------------------------------------------------

    async def note(self, entry: Mapping[str, str]) -> None:
        """Add to the audit log, which keeps the newest 10,000 entries or a few more."""
        await self._run(("XADD", P + "audit", "MAXLEN", "~", AUDIT_KEPT, "*", *_flat(entry)))

    async def audit(self, limit: int, before: str = "") -> tuple[list[dict[str, Any]], str | None]:
        """Entries of the audit log, newest first, and where the next page begins."""
        (rows,) = await self._run(("XREVRANGE", P + "audit", f"({before}" if before else "+", "-", "COUNT", limit))
        found = [_entry(row) for row in rows]
        return found, found[-1]["id"] if len(found) == limit else None

    # -- inside -------------------------------------------------------------------------------------------------------

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
        limits=KeyLimits(float(row.get(b"rate") or 0), number(b"sockets") or 0),
    )


def _user(name: str, row: Mapping[bytes, bytes]) -> User:
    def text(field: bytes) -> str:
        return row.get(field, b"").decode()

    role = users.parse_role(text(b"role") or "viewer")
    return User(name, text(b"tenant"), role, int(text(b"created")), text(b"password"))


def _entry(row: Any) -> dict[str, Any]:
    name, flat = row[0].decode(), row[1]
    fields = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
    text = {key.decode(): value.decode("utf-8", "replace") for key, value in fields.items()}
    return {"id": name, "at": int(name.partition("-")[0]), **text}


def _identity(text: bytes, session: str = "") -> Identity:
    record = json.loads(text)
    return Identity(
        record["tenant"], keys.known_scopes(record["scopes"]), record["key"], record["digest"],
        session or record["session"],
    )  # fmt: skip
