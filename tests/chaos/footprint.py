"""What an empty queue takes in Redis, and which of it must come back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import redis

BOUNDED = (":audit",)
"""Logs without a life time that keep so many entries and no more; they do not fill in an hour."""
LOOKS = 9


@dataclass
class Footprint:
    """The memory of a server with an empty queue, in bytes."""

    used: int
    buffers: int
    """Of connections and of the append-only file."""
    tables: int
    """The server's own tables of keys: they grow with the number of keys, passing ones too, and hardly shrink."""
    keys: dict[str, int]
    """Keys that stay, and their sizes."""
    variants: int
    """Classes of jobs that leave one worker alone because they failed there. Which of them there are is chance; the
    sweep forgets each an hour after its last use, so in a run of an hour they come and none goes."""
    passing: int
    """Keys that have a life time and live on after the drain: the history, figures of groups."""

    @property
    def counted(self) -> int:
        """What must come back: all but connections, what ends by itself, and what has a bound that an hour is under."""
        bounded = sum(size for key, size in self.keys.items() if key.endswith(BOUNDED))
        return self.used - self.buffers - self.tables - self.variants - self.passing - bounded

    def figures(self) -> dict[str, int]:
        """The sums."""
        return {
            "used": self.used, "buffers": self.buffers, "tables": self.tables, "variants": self.variants,
            "passing": self.passing, "keys": sum(self.keys.values()), "counted": self.counted,
        }  # fmt: skip

    def growth(self, since: Footprint) -> dict[str, int]:
        """The ten keys that grew most."""
        grown = {key: size - since.keys.get(key, 0) for key, size in self.keys.items()}
        return {key: more for key, more in sorted(grown.items(), key=lambda one: -one[1])[:10] if more > 0}


def footprint(url: str) -> Footprint:
    """Look at a server's memory now, for some seconds."""
    with redis.Redis.from_url(url) as client:
        client.slowlog_reset()  # it keeps its newest 128, arguments and all
        info = _typical(client)
        sizes = {raw.decode(): int(client.memory_usage(raw, samples=0) or 0) for raw in client.scan_iter(count=1000)}
        stay = {key: size for key, size in sizes.items() if client.ttl(key) == -1}
        tables = _tables(client.memory_stats())
    variants = sum(size for key, size in stay.items() if _is_variant(key))
    kept = {key: size for key, size in stay.items() if not _is_variant(key)}
    buffers = int(info["mem_clients_normal"]) + int(info["mem_aof_buffer"])
    passing = sum(sizes.values()) - sum(stay.values())
    return Footprint(int(info["used_memory"]), buffers, tables, kept, variants, passing)


def _typical(client: redis.Redis) -> dict[str, Any]:
    """The median of some looks: a call that is just being answered takes memory too."""
    infos: list[dict[str, Any]] = []
    for _ in range(LOOKS):
        infos.append(client.info("memory"))
        time.sleep(0.5)
    return sorted(infos, key=lambda one: int(one["used_memory"]))[LOOKS // 2]


def _tables(stats: dict[str, Any]) -> int:
    databases = [about for name, about in stats.items() if name.startswith("db.") and isinstance(about, dict)]
    return sum(int(size) for about in databases for name, size in about.items() if "overhead.hashtable" in name)


def _is_variant(key: str) -> bool:
    _, _, name = key.partition("}:c:")
    return "!" in name
