"""How often something may be done: on one connection, or from one place at all replicas together."""

from __future__ import annotations

import time
from dataclasses import dataclass

from broker.errors import RateLimited

SERVERS_PER_S = 5000.0
BROWSERS_PER_S = 50.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """``rate`` tokens a second, at most ``burst`` saved up; whoever finds it empty is locked out, longer each time."""

    rate: float
    burst: float
    lock_s: float = 0.0
    max_lock_s: float = 0.0


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may do within its tenant's limits; 0: no limit of its own."""

    submits_per_s: float = 0
    max_sockets: int = 0


class TokenBucket:
    """``rate`` tokens a second, saved up for two seconds."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._tokens = self._burst = rate * 2
        self._at = time.monotonic()

    def take(self, tokens: float = 1.0) -> None:
        """Take tokens or raise ``RateLimited`` with the time until there are some again."""
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < tokens:
            wait = (tokens - self._tokens) / self._rate
            raise RateLimited("Too many messages on this connection.", retry_after_s=round(max(wait, 0.001), 3))
        self._tokens -= tokens
