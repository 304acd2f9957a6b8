"""What tenants and keys have open, over all replicas: sockets and subscriptions, each within its limit."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

from broker.access.identity import Identity
from broker.access.policies import Policies
from broker.access.store import AccessStore
from broker.errors import EmqError, RateLimited

BEAT_S = 5.0
RETRY_S = 5

Change = tuple[str, int, int]
"""What (``sockets:tenant:<name>``), by how much, within which limit (0: none)."""


class Usage:
    """Counts here, and in Redis what has a limit: then replicas count together. Without limits no call is made."""

    def __init__(self, store: AccessStore, policies: Policies) -> None:
        self._store = store
        self._policies = policies
        self._replica = secrets.token_hex(8)
        self._counts: Counter[str] = Counter()
        self._limited: set[str] = set()
        self._given: Counter[str] = Counter()
        self._giving: asyncio.Task[None] | None = None

    async def take(self, kind: str, who: Identity, n: int = 1) -> None:
        """Open ``n`` more; raises ``RateLimited`` when that is too many."""
        changes = list(self._changes(kind, who, n))
        limited = [change for change in changes if change[2]]
        if limited and n:
            await self._ask(kind, limited)
        self._counts.update({what: n for what, _, _ in changes})

    def give(self, kind: str, who: Identity, n: int = 1) -> None:
        """``n`` are closed."""
        if not n:
            return
        for what, _, _ in self._changes(kind, who, n):
            self._counts[what] -= n
            if self._counts[what] <= 0:
                del self._counts[what]
            if what in self._limited:
                self._given[what] += n
        if self._given and self._giving is None:
            self._giving = asyncio.create_task(self._give(), name="usage-give")

    def used(self, kind: str, tenant: str) -> int:
        """What a tenant has open at this replica."""
        return self._counts[f"{kind}:tenant:{tenant}"]

    async def beat(self) -> None:
        """Say that this replica lives, and what it has, also where Redis has forgotten it."""
        counts = {what: n for what, n in self._counts.items() if self._limit(what)}
        self._limited = set(counts) | {what for what in self._limited if what in self._given}
        if counts:
            await self._store.use(self._replica, counts=counts)

    async def stop(self) -> None:
        """Give everything back."""
        with suppress(EmqError):
            await self._store.use(self._replica, counts=dict.fromkeys(self._limited, 0))

    # -- inside -------------------------------------------------------------------------------------------------------

    def _changes(self, kind: str, who: Identity, n: int) -> Iterator[Change]:
        what = f"{kind}:tenant:{who.tenant}"
        yield what, n, self._limit(what)
        if who.key_id:
            what = f"{kind}:key:{who.key_id}"
            yield what, n, self._limit(what)

    def _limit(self, what: str) -> int:
        kind, scope, name = what.split(":", 2)
        if scope == "tenant":
            limits = self._policies.limits(name)
            return limits.max_sockets if kind == "sockets" else limits.max_subscriptions
        return self._policies.key(name).max_sockets if kind == "sockets" else 0

    async def _ask(self, kind: str, changes: list[Change]) -> None:
        while self._giving is not None:
            await asyncio.shield(self._giving)
        try:
            full = await self._store.use(self._replica, changes=changes)
            self._limited.update(what for what, _, _ in changes)
        except EmqError:
            # Redis is away: what this replica knows has to do.
            full = next((what for what, n, limit in changes if self._counts[what] + n > limit), None)
        if full:
            _, scope, _ = full.split(":", 2)
            limit = next(limit for what, _, limit in changes if what == full)
            raise RateLimited(
                f"This {scope} has {kind} enough: at most {limit} at once. Close some.",
                retry_after_s=RETRY_S, limit=limit, scope=scope,
            )  # fmt: skip

    async def _give(self) -> None:
        while self._given:
            given, self._given = self._given, Counter()
            with suppress(EmqError):  # the next beat puts it right
                await self._store.use(self._replica, changes=[(what, -n, 0) for what, n in given.items()])
        self._giving = None
