"""The rule that a finished job leaves nothing behind for ever: keys without a life time must be on a list."""

from __future__ import annotations

import re

import redis

from broker.queue.invariants import LASTING, OF_A_JOB

TERMINAL = {b"completed", b"failed", b"cancelled"}


def leaks(client: redis.Redis, prefix: str) -> list[str]:
    """Keys of the pool that have no TTL and ought to have one, or that no contract knows."""
    found = []
    for raw in client.scan_iter(match=_literal(prefix) + "*", count=1000):
        key = raw.decode().removeprefix(prefix)
        job = OF_A_JOB.fullmatch(key)
        if not job and LASTING.fullmatch(key):
            continue
        if job and not _finished(client, prefix, job[1]):
            continue
        if client.ttl(raw) == -1:
            found.append(key)
    return sorted(found)


def _finished(client: redis.Redis, prefix: str, job_id: str) -> bool:
    status = client.hget(f"{prefix}j:{job_id}", "status")
    return status is None or status in TERMINAL


def _literal(text: str) -> str:
    return re.sub(r"([*?\[\]\\])", r"\\\1", text)
