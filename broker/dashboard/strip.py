"""The figures on every page, read once for everybody who looks at the same moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from broker.api.services import Services
from broker.protocol.base import now_ms

SAME_MS = 1500
MEASURE_S, MOST_TENANTS = 10.0, 1000
STEPS_MS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, slots=True)
class Strip:
    """How the queue is, in one line. ``None`` where it cannot be told (or only administrators may know)."""

    stats: dict[str, Any] = field(default_factory=dict)
    ping_ms: int | None = None
    """How long Redis took to answer, in steps, so that a page does not change for nothing: 0 is under 1 ms."""
    oldest: int | None = None
    """Since when the job waits that waits longest, epoch ms."""
    measured: float = float("-inf")
    _drawn: list[str] = field(default_factory=list, init=False, compare=False)

    def once(self, caller: Callable[[], str]) -> str:
        """What a template draws of these figures, drawn for the first page and taken for all others."""
        if not self._drawn:
            self._drawn.append(caller())
        return self._drawn[0]

    @property
    def known(self) -> bool:
        """Whether there are figures."""
        return bool(self.stats)

    @property
    def workers_up(self) -> int:
        """Live workers."""
        return int(self.stats["workers"].get("total", 0))

    @property
    def workers_down(self) -> int:
        """Workers that are known and gone."""
        return int(self.stats["workers"].get("down", 0))


class Strips:
    """The latest figures of each tenant."""

    def __init__(self) -> None:
        self._known: dict[str, Strip] = {}

    async def read(self, parts: Services, tenant: str, max_age_s: float) -> Strip:
        """The figures of a tenant (empty: of the pool); raises ``Unavailable``."""
        before, began = self._known.get(tenant, Strip()), time.monotonic()
        measures = began - before.measured > MEASURE_S
        if measures:
            self._keep(tenant, replace(before, measured=began))
        stats = await parts.operations.stats(tenant, 0 if measures else max_age_s)
        took_ms = (time.monotonic() - began) * 1000
        strip = self._known.get(tenant, before)
        if strip.stats is not stats:
            strip = replace(strip, stats=stats, oldest=_oldest(stats, strip.oldest))
        if measures:
            strip = replace(strip, ping_ms=max(step for step in STEPS_MS if step <= took_ms))
        return self._keep(tenant, strip)

    def _keep(self, tenant: str, strip: Strip) -> Strip:
        if len(self._known) > MOST_TENANTS:
            self._known.clear()
        self._known[tenant] = strip
        return strip


def _oldest(stats: dict[str, Any], before: int | None) -> int | None:
    """Since when the oldest job waits: the same moment as before, if that is hardly another one."""
    wait = stats["oldest_wait_ms"]
    since = now_ms() - wait if wait else None
    return before if since and before and abs(since - before) < SAME_MS else since
