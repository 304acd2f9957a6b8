"""Keys and people over HTTP: what an administrator asks and hears."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from broker.protocol.base import CONTROL_FREE, EpochMs, Message, Outgoing

ScopeName = Literal["submit", "read", "worker", "admin"]
TENANT = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
USER = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"


class NewKey(Message):
    """``POST /api/keys``."""

    type: Literal["create_key"] = "create_key"
    tenant: Annotated[str, StringConstraints(pattern=TENANT)] = Field(description="Whose jobs it sees.")
    scopes: list[ScopeName] = Field(min_length=1, max_length=8, description="What it may do; admin: everything.")
    expires_s: float | None = Field(None, gt=0, le=1e9, description="Seconds until it ends; left out: never.")
    submits_per_s: float | None = Field(None, ge=0, le=1e6, description="Jobs a second; 0: as every key's.")
    max_sockets: int | None = Field(None, ge=0, le=1_000_000, description="Open at once; 0: as every key's.")
    name: Annotated[str, StringConstraints(max_length=128, pattern=CONTROL_FREE)] = Field("", description="A label.")


class RotateKey(Message):
    """``POST /api/keys/{key_id}/rotate``."""

    type: Literal["rotate_key"] = "rotate_key"
    grace_s: float = Field(0, ge=0, le=2_592_000, description="How long the old secret still counts.")


class KeyRecord(Outgoing):
    """A key, without its secret."""

    id: str
    tenant: str
    scopes: list[ScopeName]
    name: str = ""
    created_at: EpochMs
    expires_at: EpochMs | None = None
    revoked_at: EpochMs | None = None
    used_at: EpochMs | None = Field(None, description="When it was last used, to the minute.")
    submits_per_s: float | None = None
    max_sockets: int | None = None


class MadeKey(KeyRecord):
    """A key that was just made or rotated: the one time that it is told."""

    key: str


class KeyList(Outgoing):
    """``GET /api/keys``, the newest first."""

    keys: list[KeyRecord]


class Ticket(Outgoing):
    """``POST /api/tickets``: for one connection, as ``?ticket=``."""

    ticket: str
    expires_s: int


RoleName = Literal["viewer", "operator", "admin"]
Password = Annotated[str, StringConstraints(min_length=10, max_length=256)]


class NewUser(Message):
    """``POST /api/users``."""

    type: Literal["create_user"] = "create_user"
    name: Annotated[str, StringConstraints(pattern=USER)] = Field(description="What the person logs in as.")
    tenant: Annotated[str, StringConstraints(pattern=TENANT)] = Field("default", description="Whose jobs they see.")
    role: RoleName = Field(description="viewer sees, operator also submits and cancels, admin may do everything.")
    password: Password | None = Field(None, description="Left out: one is drawn and told in the answer.")


class NewPassword(Message):
    """``POST /api/users/{user}/password``."""

    type: Literal["set_password"] = "set_password"
    password: Password | None = Field(None, description="Left out: one is drawn and told in the answer.")


class UserRecord(Outgoing):
    """A person, without the password."""

    name: str
    tenant: str
    role: RoleName
    created_at: EpochMs


class UserList(Outgoing):
    """``GET /api/users``, by name."""

    users: list[UserRecord]


class AuditQuery(Message):
    """The query of ``GET /api/audit``."""

    limit: int = Field(100, ge=1, le=1000)
    before: Annotated[str, StringConstraints(pattern=r"^([0-9]{1,20}-[0-9]{1,20})?$")] = ""


class AuditEntry(Outgoing):
    """One line of the audit log."""

    id: str
    at: EpochMs
    who: str = Field(description="A key's id, user:<name>, or nobody.")
    tenant: str = ""
    ip: str = ""
    what: str = Field(description="A route, a message's type, or log-in and log-out.")
    target: str = Field("", description="The job, worker, key … that it was done to.")


class AuditPage(Outgoing):
    """``GET /api/audit``, the newest first."""

    entries: list[AuditEntry]
    next: str | None = None


Count = Annotated[int, Field(ge=0, le=2**40)]
Amount = Annotated[float, Field(ge=0, le=1e12)]
Pattern = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=CONTROL_FREE)]
Patterns = Annotated[list[Pattern], Field(max_length=2000)]


class TenantPolicy(Message):
    """``PUT /api/tenants/{tenant}``: what is left out has the settings' default; a limit of 0 is none."""

    type: Literal["set_tenant"] = "set_tenant"
    submits_per_s: Amount | None = Field(None, description="Jobs a second, at most two seconds' worth at once.")
    max_queued: Count | None = Field(None, description="Jobs that wait.")
    max_queued_mb: Amount | None = Field(None, description="Payloads of jobs that wait, in million bytes.")
    max_running: Count | None = Field(None, description="Jobs on workers at once.")
    max_sockets: Count | None = Field(None, description="WebSockets and event streams at once.")
    max_subscriptions: Count | None = Field(None, description="Jobs followed over sockets at once.")
    upload_mb_per_h: Amount | None = Field(None, description="Input files, in million bytes an hour.")
    node_allow: Patterns | None = Field(None, description="Node classes that its workflows may use, * for any part.")
    node_deny: Patterns | None = Field(None, description="Node classes that they may not use.")
    model_allow: Patterns | None = Field(None, description="Model files that they may name.")
    weight: Annotated[float, Field(gt=0, le=1000)] | None = Field(None, description="Share of the workers.")


class TenantUse(Outgoing):
    """What a tenant has at the moment, in this pool."""

    queued: int
    queued_bytes: int
    running: int


class Tenant(Outgoing):
    """A tenant: what was set, what holds, what it has."""

    tenant: str
    set: dict[str, Any]
    limits: dict[str, float]
    use: TenantUse


class TenantList(Outgoing):
    """``GET /api/tenants``, by name."""

    tenants: list[Tenant]
