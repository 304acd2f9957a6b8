"""Everything in a pool, read in one moment, for tests that compare before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import redis

from broker.queue.subscription import first_message

# A test's own script: it reads every key, which nothing in EMQ does.
SCRIPT = """
local read = {
  hash = {'HGETALL'}, zset = {'ZRANGE', 0, -1, 'WITHSCORES'}, list = {'LRANGE', 0, -1}, set = {'SMEMBERS'},
  string = {'GET'},
}
local time, out = redis.call('TIME'), {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  if string.sub(key, 1, #ARGV[1]) == ARGV[1] then
    local kind = redis.call('TYPE', key).ok
    local how = read[kind]
    local value = how and redis.call(how[1], key, unpack(how, 2)) or ''
    out[#out + 1] = {string.sub(key, #ARGV[1] + 1), kind, value, redis.call('PTTL', key)}
  end
end
return {time[1] * 1000 + math.floor(time[2] / 1000), out}
"""


@dataclass(slots=True)
class Dump:
    """A pool's keys without their prefix, by type. What did not change is the same object as in the dump before."""

    hashes: dict[str, dict[str, str]] = field(default_factory=dict)
    zsets: dict[str, dict[str, float]] = field(default_factory=dict)
    sets: dict[str, set[str]] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    strings: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, str]] = field(default_factory=dict)
    """The job records by id."""
    lasting: set[str] = field(default_factory=set)
    at: int = 0
    """When this was read, by the server's clock."""
    ends: dict[str, int] = field(default_factory=dict)
    """When the lives of the other keys end."""
    raw: dict[bytes, tuple[Any, Any]] = field(default_factory=dict)
    """Each key's value as it was read, and as it was understood."""

    def differences(self, other: Dump) -> list[str]:
        """What differs; remaining life times, keys whose life has ended meanwhile, and the inboxes' hints aside."""
        found = []
        for kind in ("hashes", "zsets", "sets", "lists", "strings"):
            mine, others = getattr(self, kind), getattr(other, kind)
            if mine == others:
                continue
            keys = {key for key in {*mine, *others} if mine.get(key) != others.get(key) and not key.startswith("in:")}
            keys -= {key for key in keys - others.keys() if self.ends.get(key, math.inf) <= other.at}
            found += [f"{key}: {mine.get(key)} -> {others.get(key)}" for key in sorted(keys)]
        return found


def dump(client: redis.Redis, prefix: str, last: Dump | None = None) -> Dump:
    """Read the pool at ``prefix``; the database must hold little else. ``last`` spares work on what did not change."""
    out, known = Dump(), last.raw if last else {}
    homes: dict[bytes, dict[str, Any]] = {
        b"hash": out.hashes, b"zset": out.zsets, b"set": out.sets, b"list": out.lists, b"string": out.strings,
    }  # fmt: skip
    out.at, keys = client.eval(SCRIPT, 0, prefix)
    for key, kind, value, ttl in keys:
        before = known.get(key)
        parsed = before[1] if before is not None and before[0] == value else READ[kind](value)
        name = key.decode("utf-8", "replace")
        out.raw[key] = (value, parsed)
        homes[kind][name] = parsed
        if ttl == -1:
            out.lasting.add(name)
        else:
            out.ends[name] = out.at + ttl
        if name.startswith("j:"):
            out.jobs[name[2:]] = parsed
    for job, record in out.jobs.items():
        # The first event is in the record until there is a second one.
        if record.get("events") == "1" and "first" in record and f"e:{job}" not in out.lists:
            same = last is not None and last.jobs.get(job) is record
            known_log = last.lists.get(f"e:{job}") if last is not None and same else None
            out.lists[f"e:{job}"] = known_log or [first_message(record["first"].encode()).decode()]
    return out


def _texts(values: Sequence[bytes]) -> list[str]:
    return [value.decode("utf-8", "replace") for value in values]


def _hash(flat: Sequence[bytes]) -> dict[str, str]:
    texts = _texts(flat)
    return dict(zip(texts[::2], texts[1::2], strict=True))


def _zset(flat: Sequence[bytes]) -> dict[str, float]:
    return {member: float(score) for member, score in _hash(flat).items()}


READ: dict[bytes, Callable[[Any], Any]] = {
    b"hash": _hash, b"zset": _zset, b"set": lambda values: set(_texts(values)), b"list": _texts,
    b"string": lambda value: value,
}  # fmt: skip
