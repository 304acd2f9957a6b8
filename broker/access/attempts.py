"""Wrong keys and passwords are counted by where they come from, at all replicas together."""

from __future__ import annotations

import time
from collections import OrderedDict

from broker.access.limits import Bucket
from broker.access.proxies import origin_of
from broker.access.store import AccessStore
from broker.errors import EmqError, RateLimited

_REMEMBERED = 10_000


class Attempts:
    """Refuses more attempts than are allowed."""

    def __init__(self, store: AccessStore, failures_per_min: float, logins_per_min: float) -> None:
        """How many wrong credentials an address, and wrong log-ins an address and a name, may show a minute; 0: any."""
        self._store = store
        self._failures = Bucket(failures_per_min / 60, max(1.0, failures_per_min))
        self._logins = Bucket(logins_per_min / 60, max(1.0, logins_per_min), lock_s=60, max_lock_s=900)
        self._barred: OrderedDict[str, float] = OrderedDict()

    async def failed(self, ip: str) -> None:
        """Count a wrong credential; raises ``RateLimited`` for one too many. A right one is never counted."""
        if self._failures.rate:
            await self._take(f"auth:{origin_of(ip)}", self._failures, "Too many wrong keys from this address.")

    async def log_in(self, ip: str, user: str) -> None:
        """Count a log-in before it is looked at; raises ``RateLimited`` for one too many, and for longer each time."""
        if self._logins.rate:
            await self._take(f"login:{origin_of(ip)}:{user[:64]}", self._logins, "Too many log-ins; try again later.")

    async def logged_in(self, ip: str, user: str) -> None:
        """A right log-in ends the count."""
        await self._store.forgive(f"login:{origin_of(ip)}:{user[:64]}")

    async def _take(self, name: str, bucket: Bucket, words: str) -> None:
        # Who is barred already must not cost a call: a flood of wrong keys is what this is for.
        wait = self._barred.get(name, 0.0) - time.monotonic()
        if wait <= 0:
            try:
                wait = await self._store.throttle(name, bucket)
            except EmqError:
                return  # Redis is away: the attempt fails by itself
            self._remember(name, wait)
        if wait > 0:
            raise RateLimited(words, retry_after_s=round(wait, 3))

    def _remember(self, name: str, wait: float) -> None:
        self._barred.pop(name, None)
        if wait > 0:
            self._barred[name] = time.monotonic() + wait
            if len(self._barred) > _REMEMBERED:
                self._barred.popitem(last=False)
