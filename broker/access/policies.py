"""What each tenant and key may use, as one replica knows it: the defaults of the settings, and what was set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from broker.access.keys import Key
from broker.access.limits import KeyLimits
from broker.jobs.rules import Rules
from broker.protocol.access import TenantPolicy
from broker.queue.new_job import Value
from broker.settings import Settings


@dataclass(frozen=True, slots=True)
class Limits:
    """A tenant's limits; 0: none."""

    submits_per_s: float = 0
    max_queued: int = 0
    max_queued_mb: float = 0
    max_running: int = 0
    max_sockets: int = 0
    max_subscriptions: int = 0
    upload_mb_per_h: float = 0
    weight: float = 1
    """Its share of the workers, among tenants that wait."""


class Policies:
    """Answers from memory; :class:`~broker.access.keyring.KeyRing` keeps it up to date."""

    def __init__(self, settings: Settings) -> None:
        self._defaults = Limits(
            submits_per_s=settings.tenant_submits_per_s,
            max_queued=settings.tenant_max_queued,
            max_queued_mb=settings.tenant_max_queued_mb,
            max_running=settings.tenant_max_running,
            max_sockets=settings.tenant_max_sockets,
            max_subscriptions=settings.tenant_max_subscriptions,
            upload_mb_per_h=settings.tenant_upload_mb_per_h,
        )
        self._key_defaults = KeyLimits(settings.key_submits_per_s, settings.key_max_sockets)
        self._default_rules = Rules.read(settings.node_allow, settings.node_deny, settings.model_allow)
        self._rules: dict[str, Rules] = {}
        self._tenants: Mapping[str, TenantPolicy] = {}
        self._keys: Mapping[str, Key] = {}
        self._limits: dict[str, Limits] = {}

    def update(self, tenants: Mapping[str, TenantPolicy], keys: Mapping[str, Key]) -> None:
        """What holds from now on."""
        self._tenants, self._keys = tenants, keys
        self._rules = {name: self._merged_rules(policy) for name, policy in tenants.items()}
        self._limits = {name: self._merged(policy) for name, policy in tenants.items()}

    @property
    def tenants(self) -> Mapping[str, TenantPolicy]:
        """What was set, by tenant."""
        return self._tenants

    def policy(self, tenant: str) -> TenantPolicy:
        """What was set for a tenant."""
        return self._tenants.get(tenant, _NOTHING_SET)

    def limits(self, tenant: str) -> Limits:
        """A tenant's limits."""
        return self._limits.get(tenant, self._defaults)

    def rules(self, tenant: str) -> Rules:
        """What a tenant's workflows may name."""
        return self._rules.get(tenant, self._default_rules)

    def key(self, key_id: str) -> KeyLimits:
        """A key's limits; who logged in, or needs no key, has those of every key."""
        key, default = self._keys.get(key_id), self._key_defaults
        own = key.limits if key else default
        return KeyLimits(own.submits_per_s or default.submits_per_s, own.max_sockets or default.max_sockets)

    def at_submit(self, tenant: str, key_id: str) -> dict[str, Value | None]:
        """The limits as ``emq_submit`` takes them; those that are not set are left out."""
        limits, key = self.limits(tenant), self.key(key_id)
        return {
            "tenant_rate": limits.submits_per_s or None,
            "max_queued": limits.max_queued or None,
            "max_bytes": round(limits.max_queued_mb * 1e6) or None,
            "key": key_id if key_id and key.submits_per_s else None,
            "key_rate": (key.submits_per_s or None) if key_id else None,
        }

    def _merged_rules(self, policy: TenantPolicy) -> Rules:
        names = ("node_allow", "node_deny", "model_allow")
        given = {name: tuple(getattr(policy, name)) for name in names if getattr(policy, name) is not None}
        return replace(self._default_rules, **given)

    def _merged(self, policy: TenantPolicy) -> Limits:
        given = {f.name: getattr(policy, f.name) for f in fields(Limits) if getattr(policy, f.name) is not None}
        return replace(self._defaults, **given)


_NOTHING_SET = TenantPolicy()
