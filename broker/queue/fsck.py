"""Checks a live pool against ``broker.queue.invariants``, also while it works, and repairs what can be.

What belongs together is read in one transaction, so nothing that moves looks wrong: a job with all its places; an index
entry with its job; a lane with its head; a counter with what it counts, read again when the members changed meanwhile.
Only here is the keyspace scanned.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from broker.queue import given, relations
from broker.queue import invariants as must
from broker.queue.invariants import Finding, Place, Record

Pair = tuple[str, str]
AGAIN = 20
"""How often something that changed while it was read is read again before it is left to the next check."""
LIMITS = {"max_crashes": 3, "max_handbacks": 5, "max_finishing": 4}
MANY = 5000
"""Of a tenant with more jobs that wait or run, only the sums are compared: reading each would hold the server up."""
LAPSED_MS = 5000
"""A lease may be over for this long: until the next sweep, and what a busy server takes."""


class Reader(Protocol):
    """What a check needs of ``broker.queue.connection.Connection``."""

    async def read(self, key: str, *commands: Sequence[bytes | str | int]) -> list[Any]:
        """Answers of one moment."""

    async def scan(self, pattern: str, cursor: bytes) -> tuple[bytes, list[bytes]]:
        """One step through the keys."""


class Check:
    """One check of one pool. ``findings`` are what :meth:`run` gave; ``known`` are the jobs that it read."""

    def __init__(self, reader: Reader, prefix: str) -> None:
        self._reader = reader
        self._prefix = prefix
        self._limits = dict(LIMITS)
        self.keys: set[str] = set()
        self._wanted: dict[str, set[Pair]] = {}
        self.findings: list[Finding] = []
        self.known: set[str] = set()
        self.tenants: set[str] = set()
        self.lanes: set[Pair] = set()
        self.levels: set[str] = set()
        self._blocked: dict[str, str] = {}

    async def run(self) -> list[Finding]:
        """Read everything once; raises ``Unavailable`` while Redis is away."""
        self.keys = {key async for key in self._scan()}
        config = await self._one("HMGET", "config", *LIMITS)
        limits = zip(LIMITS, config, strict=True)
        self._limits |= {name: int(value) for name, value in limits if value is not None}
        self.lanes = {found.groups() for key in self.keys if (found := must.LANE.fullmatch(key))}  # type: ignore[misc]
        parts = (self._jobs, self._entries, self._heads, self._classes, self._levels, self._tenants, self._pool)
        for part in (*parts, self._workers, self._leases, self._lives, self._relations):
            async for finding in part():
                self.findings.append(finding)
        return self.findings

    @property
    def workers(self) -> list[str]:
        """The workers that have a record."""
        return sorted(key[3:] for key in self.keys if key.startswith("wk:"))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _scan(self) -> AsyncIterator[str]:
        pattern, cursor = re.sub(r"([*?\[\]\\])", r"\\\1", self._prefix) + "*", b"0"
        while True:
            cursor, keys = await self._reader.scan(pattern, cursor)
            for key in keys:
                yield given.text(key).removeprefix(self._prefix)
            if int(cursor) == 0:
                return

    async def _read(self, *commands: Sequence[str]) -> list[Any]:
        """Commands on keys named without the prefix, answered of one moment."""
        full: list[Sequence[bytes | str | int]] = [
            (name, given.raw(self._prefix + key), *map(given.raw, rest)) for name, key, *rest in commands
        ]
        return await self._reader.read(self._prefix, *full) if full else []

    async def _one(self, *command: str) -> Any:
        return (await self._read(command))[0]

    async def _records(self, jobs: Sequence[str]) -> dict[str, Record]:
        answers = await self._read(*(("HGETALL", f"j:{job}") for job in jobs))
        return {job: record for job, raw in zip(jobs, answers, strict=True) if (record := given.record_of(raw))}

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def _jobs(self) -> AsyncIterator[Finding]:
        names = sorted(key[2:] for key in self.keys if key.startswith("j:"))
        self.known = set(names)
        for batch in given.batches(names):
            seen = await self._records(batch)
            for _ in range(AGAIN):
                found, seen = await self._in_place(seen)
                for finding in found:
                    yield finding
                if not seen:
                    break

    async def _in_place(self, seen: Mapping[str, Record]) -> tuple[list[Finding], dict[str, Record]]:
        """Compare records with their places; also those whose places changed while they were read, to do again."""
        plans = [(job, must.asked(job, record)) for job, record in seen.items()]
        answers = iter(await self._read(*(command for job, plan in plans for command in _questions(job, plan))))
        found: list[Finding] = []
        again: dict[str, Record] = {}
        for job, plan in plans:
            record = given.record_of(next(answers))
            log = [given.text(entry).split("\n", 2) for entry in next(answers)]
            scores = {(at.key, at.member): given.number(next(answers)) for at in plan}
            if not record:
                continue
            if set(must.asked(job, record)) == set(plan):
                found += self._judge(job, record, scores, log)
            else:
                again[job] = record
        return found, again

    def _judge(
        self, job: str, record: Record, scores: Mapping[Pair, float | None], log: Sequence[Sequence[str]]
    ) -> Iterator[Finding]:
        self.tenants.add(record.get("tenant", ""))
        if record["status"] == "blocked" and "parents" in record:
            self._blocked[job] = record["parents"]
        if record.get("score"):
            self.levels.add(str(must.level_of(float(record["score"]))))
        self._wanted[job] = {pair for pair, score in scores.items() if score is not None}
        yield from must.record_findings(job, record, self._limits)
        yield from must.place_findings(job, record, scores)
        numbers = [int(entry[0].partition("-")[0]) for entry in log]
        yield from must.log_findings(job, record, numbers, [entry[1] for entry in log])

    # -- index entries ------------------------------------------------------------------------------------------------

    async def _entries(self) -> AsyncIterator[Finding]:
        """Entries that no record calls for."""
        for key in sorted(key for key in self.keys if must.owner(key, "") is not None):
            for members in given.batches(await self._members(key)):
                strange = [m for m in members if (key, m) not in self._wanted.get(must.owner(key, m) or "", ())]
                async for finding in self._strange(key, strange):
                    yield finding

    async def _strange(self, key: str, members: Sequence[str]) -> AsyncIterator[Finding]:
        jobs = [must.owner(key, member) or "" for member in members]
        questions = [q for job, member in zip(jobs, members, strict=True) for q in _about(key, member, job)]
        answers = iter(await self._read(*questions))
        for job, member in zip(jobs, members, strict=True):
            here, record = next(answers) is not None, given.record_of(next(answers))
            if here and not _calls_for(key, member, job, record):
                yield Finding("state", key, member, "no job's record knows of this entry")

    async def _members(self, key: str) -> list[str]:
        return [given.text(member) for member in await self._one("ZRANGE", key, "0", "-1")]

    # -- order --------------------------------------------------------------------------------------------------------

    async def _heads(self) -> AsyncIterator[Finding]:
        pairs = set(self.lanes)
        for key in self.keys:
            if key.startswith("h:"):
                pairs |= {(key[2:], tenant) for tenant in await self._members(key)}
            elif key.startswith("parked:"):
                pairs |= {(name, key[7:]) for name in await self._members(key)}
        for batch in given.batches(sorted(pairs)):
            answers = iter(await self._read(*(question for pair in batch for question in _head(*pair))))
            for name, tenant in batch:
                head, indexed, parked = (
                    given.first_score(next(answers)),
                    given.number(next(answers)),
                    given.number(next(answers)),
                )
                away = parked if next(answers) == b"1" else None
                for finding in must.head_findings(name, tenant, head, away, indexed):
                    yield finding

    async def _classes(self) -> AsyncIterator[Finding]:
        names = {key[2:] for key in self.keys if key.startswith(("c:", "h:"))} | set(await self._members("i"))
        kinds = dict(
            zip(sorted(names), await self._read(*(("HGET", f"c:{n}", "kind") for n in sorted(names))), strict=True)
        )
        for batch in given.batches(sorted(names)):
            indexes = {name: ["i", *([f"k:{given.text(kinds[name])}"] if kinds[name] else [])] for name in batch}
            answers = iter(await self._read(*(q for name in batch for q in _best(name, indexes[name]))))
            for name in batch:
                best = given.first_score(next(answers))
                for index in indexes[name]:
                    for finding in must.best_findings(name, best, index, given.number(next(answers))):
                        yield finding

    # -- counters -----------------------------------------------------------------------------------------------------

    async def _levels(self) -> AsyncIterator[Finding]:
        self.levels |= {key[2:] for key in self.keys if key.startswith("v:")}
        for level in sorted(self.levels):
            waiting, real = await self._waiting(level)
            for _ in range(AGAIN):
                if waiting == real:
                    break
                # A lane may be new, or may have gone between the two readings.
                self.lanes |= await self._lanes_now()
                waiting, real = await self._waiting(level)
            for finding in must.level_findings(level, waiting, real):
                yield finding

    async def _waiting(self, level: str) -> tuple[int, int]:
        """How many jobs a level says that it has in lanes, and how many there are."""
        low = (100 - int(level)) * must.LEVEL
        ask = [
            ("ZCOUNT", f"n:{name}:{tenant}", str(low), f"({low + must.LEVEL}") for name, tenant in sorted(self.lanes)
        ]
        said, *real = await self._read(("HGET", f"v:{level}", "waiting"), *ask)
        return int(said or 0), sum(real)

    async def _lanes_now(self) -> set[Pair]:
        """The lanes that the heads speak of."""
        found: set[Pair] = set()
        for name in await self._members("i"):
            found |= {(name, tenant) for tenant in await self._members(f"h:{name}")}
        for tenant in self.tenants:
            found |= {(name, tenant) for name in await self._members(f"parked:{tenant}")}
        return found

    async def _tenants(self) -> AsyncIterator[Finding]:
        self.tenants |= {given.text(tenant) for tenant in await self._one("SMEMBERS", "tenants")}
        for tenant in sorted(self.tenants):
            for _ in range(AGAIN):
                real, said = await self._census(tenant)
                if real is not None:
                    for field in sorted({*real, *said}):
                        for finding in must.count_findings(field, said.get(field, 0), real.get(field, 0)):
                            yield finding
                    break

    async def _census(self, tenant: str) -> tuple[Counter[str] | None, dict[str, int]]:
        """A tenant's jobs counted, ``None`` when they changed meanwhile; and what its counters say."""
        homes = (f"w:{tenant}", f"a:{tenant}")
        jobs = [job for home in homes for job in await self._members(home)]
        states = jobs if len(jobs) <= MANY else []
        fields = [f"{tenant}:{status}" for status in (*must.STATES, "running", "bytes")]
        head = [("ZRANGE", home, "0", "-1") for home in homes] + [("HMGET", "count", *fields)]
        ends = [("ZCARD", f"f:{tenant}:{status}") for status in must.TERMINAL]
        looks = [("HMGET", f"j:{job}", "status", "phase") for job in states]
        waiting, active, said, *rest = await self._read(
            *head, *ends, *looks, *(("STRLEN", f"b:{job}") for job in states)
        )
        counted = {field: int(value) for field, value in zip(fields, said, strict=True) if value}
        if [given.text(job) for job in (*waiting, *active)] != jobs:
            return None, counted
        real = Counter({f"{tenant}:{status}": rest[at] for at, status in enumerate(must.TERMINAL)})
        if len(jobs) > MANY:
            return real + _sums(tenant, counted, len(waiting), len(active)), counted
        looked, sizes = rest[len(ends) :][: len(states)], rest[len(ends) + len(states) :]
        real[f"{tenant}:bytes"] = sum(sizes[: len(waiting)])
        for status, phase in looked:
            state = given.text(status or b"")
            real[f"{tenant}:{state}"] += 1
            real[f"{tenant}:running"] += state in must.ACTIVE and phase != b"finishing"
        real.pop(f"{tenant}:", None)
        return real, counted

    async def _pool(self) -> AsyncIterator[Finding]:
        """The pool's counters are the sum of the tenants'."""
        count = {
            given.text(k): int(v) for k, v in given.pairs(await self._one("HGETALL", "count")) if given.is_number(v)
        }
        for status in must.STATES:
            real = sum(value for field, value in count.items() if field.endswith(f":{status}"))
            for finding in must.count_findings(status, count.get(status, 0), real):
                yield finding

    # -- workers and keys ---------------------------------------------------------------------------------------------

    async def _workers(self) -> AsyncIterator[Finding]:
        for worker in self.workers:
            for _ in range(AGAIN):
                found = await self._worker(worker)
                if found is not None:
                    for finding in found:
                        yield finding
                    break

    async def _worker(self, worker: str) -> list[Finding] | None:
        record = given.record_of(await self._one("HGETALL", f"wk:{worker}"))
        instance, profile = record.get("instance", ""), record.get("profile", "")
        jobs = await self._members(f"held:{instance}")
        now, held, listed, lease, *phases = await self._read(
            ("HGETALL", f"wk:{worker}"), ("ZRANGE", f"held:{instance}", "0", "-1"),
            ("ZSCORE", f"idle:{profile}", worker), ("ZSCORE", "leases", instance),
            *(("HGET", f"j:{job}", "phase") for job in jobs),
        )  # fmt: skip
        latest = given.record_of(now)
        moved = (latest.get("instance", ""), latest.get("profile", "")) != (instance, profile)
        if moved or [given.text(job) for job in held] != jobs:
            return None
        doing = [given.text(phase) for phase in phases if phase is not None]
        found = list(must.worker_findings(worker, latest, doing))
        found += must.load_findings(instance, doing, int(latest.get("slots") or 1), self._limits["max_finishing"])
        found += must.idle_findings(worker, latest, listed is not None)
        if lease is None and not latest.get("gone"):
            found.append(Finding("lease", f"held:{instance}", "", f"{len(doing)} jobs are held without a lease"))
        return found

    async def _leases(self) -> AsyncIterator[Finding]:
        """Leases that are over and that no sweep took back; Redis' clock is what the last sweep saw of it."""
        (seen, grace), *rest = await self._read(
            ("HMGET", "config", "seen", "grace"), ("ZRANGE", "leases", "0", "-1", "WITHSCORES")
        )
        for instance, end in given.scored(rest[0]):
            late = int(seen or 0) - end
            if late > LAPSED_MS and int(seen or 0) >= int(grace or 0):
                yield Finding("lease", "leases", instance, f"it is over since {late / 1000:.0f} s")

    async def _relations(self) -> AsyncIterator[Finding]:
        parts = (
            relations.dependencies(self._read, self._blocked), relations.fleet(self._read, self.workers),
            relations.matches(self._read, self.keys),
        )  # fmt: skip
        for part in parts:
            async for finding in part:
                yield finding

    async def _lives(self) -> AsyncIterator[Finding]:
        """Keys that would stay for ever."""
        for batch in given.batches(sorted(self.keys)):
            suspects = [key for key in batch if must.OF_A_JOB.fullmatch(key) or not must.LASTING.fullmatch(key)]
            ask = [q for key in suspects for q in (("TTL", key), ("HGET", f"j:{key.partition(':')[2]}", "status"))]
            answers = iter(await self._read(*ask))
            for key in suspects:
                ttl, status = next(answers), given.text(next(answers) or b"")
                if ttl == -1 and not (must.OF_A_JOB.fullmatch(key) and status in (*must.WAITING, *must.ACTIVE)):
                    yield Finding("life", key, "", "it has no life time, and is no index of what is alive")


def _questions(job: str, plan: Iterable[Place]) -> Iterator[tuple[str, ...]]:
    yield ("HGETALL", f"j:{job}")
    yield ("LRANGE", f"e:{job}", "0", "-1")
    for place in plan:
        yield ("ZSCORE", place.key, place.member)


def _about(key: str, member: str, job: str) -> Iterator[tuple[str, ...]]:
    yield ("ZSCORE", key, member)
    yield ("HGETALL", f"j:{job}")


def _calls_for(key: str, member: str, job: str, record: Record) -> bool:
    """Whether a record calls for an index entry, or allows it."""
    if not record:
        return False
    if key == "deadline":
        return record["status"] in must.ACTIVE
    wanted, barred = must.places(job, record)
    if any((place.key, place.member) == (key, member) for place in wanted):
        return True
    allowed = {(place.key, place.member) for place in must.asked(job, record)}
    return (key, member) in allowed - {(place.key, place.member) for place in barred}


def _head(name: str, tenant: str) -> Iterator[tuple[str, ...]]:
    yield ("ZRANGE", f"n:{name}:{tenant}", "0", "0", "WITHSCORES")
    yield ("ZSCORE", f"h:{name}", tenant)
    yield ("ZSCORE", f"parked:{tenant}", name)
    yield ("HGET", f"tn:{tenant}", "parked")


def _best(name: str, indexes: Iterable[str]) -> Iterator[tuple[str, ...]]:
    yield ("ZRANGE", f"h:{name}", "0", "0", "WITHSCORES")
    for index in indexes:
        yield ("ZSCORE", index, name)


def _sums(tenant: str, counted: Mapping[str, int], waiting: int, active: int) -> Counter[str]:
    """What the counters must be for the sums to hold, all but one of each sum believed."""
    names = ("scheduled", "blocked", "claimed", "running", "bytes")
    real = Counter({f"{tenant}:{name}": counted.get(f"{tenant}:{name}", 0) for name in names})
    real[f"{tenant}:pending"] = waiting - real[f"{tenant}:scheduled"] - real[f"{tenant}:blocked"]
    real[f"{tenant}:processing"] = active - real[f"{tenant}:claimed"]
    return real
