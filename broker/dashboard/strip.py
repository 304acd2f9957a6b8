"""The figures on every page, read once for everybody who looks at the same moment."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from broker.api.services import Services
from broker.protocol.base import now_ms

MAX_AGE_S = 0.25
SAME_MS = 1500
MEASURE_S = 10.0
STEPS_MS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


@dataclass(frozen=True, slots=True)
class Strip:
    """How the queue is, in one line. ``None`` where it cannot be told (or only administrators may know)."""

    stats: dict[str, Any] = field(default_factory=dict)
    ping_ms: int | None = None
    """How long Redis took to answer, in steps, so that a page does not change for nothing: 0 is under 1 ms."""
    oldest: int | None = None
    """Since when the job waits that waits longest, epoch ms."""
    measured: float = 0.0

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
        self._known: dict[str, tuple[float, Strip]] = {}

    async def read(self, parts: Services, tenant: str, max_age_s: float = MAX_AGE_S) -> Strip:
        """The figures of a tenant (empty: of the pool); raises ``Unavailable``."""
        now = time.monotonic()
        taken, strip = self._known.get(tenant, (float("-inf"), Strip()))
        if now - taken < max_age_s:
            return strip
        stats = await parts.operations.stats(tenant)
        took, wait = (time.monotonic() - now) * 1000, stats["oldest_wait_ms"]
        since = now_ms() - wait if wait else None
        if since and strip.oldest and abs(since - strip.oldest) < SAME_MS:
            since = strip.oldest
        ping, measured = max(step for step in STEPS_MS if step <= took), now
        if strip.ping_ms is not None and now - strip.measured < MEASURE_S:
            ping, measured = strip.ping_ms, strip.measured
        strip = Strip(stats, ping, since, measured)
        if len(self._known) > 1000:
            self._known.clear()
        self._known[tenant] = (now, strip)
        return strip
