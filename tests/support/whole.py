"""The moment's invariants over a whole pool that was read at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache

from broker.queue import invariants as must
from broker.queue.invariants import LANE, LASTING, OF_A_JOB, Finding
from tests.support.dump import Dump

DEFAULT_LIMITS = {"max_crashes": 3, "max_handbacks": 5, "max_finishing": 4}


class Whole:
    """Checks pools one after another; what did not change since the last one is not checked again."""

    def __init__(self) -> None:
        self._wanted: dict[str, tuple[object, list[must.Place]]] = {}
        self._logs: dict[str, tuple[object, object]] = {}

    def findings(self, pool: Dump) -> Iterator[Finding]:
        """Everything that is wrong in a pool."""
        config = pool.hashes.get("config", {})
        limits = {name: int(config.get(name, value)) for name, value in DEFAULT_LIMITS.items()}
        if not self._in_place(pool):
            yield from _places(pool)
        for job, record in pool.jobs.items():
            log = pool.lists.get(f"e:{job}")
            seen = self._logs.get(job, (None, None))
            if seen[0] is not record or seen[1] is not log:
                yield from must.record_findings(job, record, limits)
                yield from _log(pool, job, record)
                self._logs[job] = (record, log)
        yield from _heads(pool)
        yield from _counts(pool)
        yield from _workers(pool, limits["max_finishing"])
        yield from _lasting(pool)
        yield from _blocked(pool)
        yield from _fleet(pool)

    def _in_place(self, pool: Dump) -> bool:
        """Whether the indexes hold each job just where they should: each entry is there, and no other."""
        entries = 0
        for job, record in pool.jobs.items():
            known = self._wanted.get(job)
            if known is None or known[0] is not record:
                known = self._wanted[job] = (record, must.places(job, record)[0])
            for place in known[1]:
                score = pool.zsets.get(place.key, {}).get(place.member)
                if score is None or place.score not in (None, score):
                    return False
            entries += len(known[1]) + (job in pool.zsets.get("deadline", {}))
            if record["status"] == "pending":
                entries += 1
                if list(must.pending_findings(job, record, _scores(pool, must.asked(job, record)))):
                    return False
        return entries == sum(len(members) for key, members in pool.zsets.items() if _of_jobs(key))


@cache
def _of_jobs(key: str) -> bool:
    return must.owner(key, "") is not None


def _scores(pool: Dump, places: list[must.Place]) -> dict[tuple[str, str], float | None]:
    return {(at.key, at.member): pool.zsets.get(at.key, {}).get(at.member) for at in places}


def _places(pool: Dump) -> Iterator[Finding]:
    for job, record in pool.jobs.items():
        yield from must.place_findings(job, record, _scores(pool, must.asked(job, record)))
    yield from _orphans(pool)


def _log(pool: Dump, job: str, record: must.Record) -> Iterator[Finding]:
    entries = [entry.split("\n", 2) for entry in pool.lists.get(f"e:{job}", [])]
    numbers = [int(entry[0].partition("-")[0]) for entry in entries]
    yield from must.log_findings(job, record, numbers, [entry[1] for entry in entries])


def _orphans(pool: Dump) -> Iterator[Finding]:
    known = {(at.key, at.member) for job, record in pool.jobs.items() for at in must.asked(job, record)} | {
        ("deadline", job) for job in pool.jobs
    }
    for key, members in pool.zsets.items():
        for member in members:
            if must.owner(key, member) is not None and (key, member) not in known:
                yield Finding("state", key, member, "no job's record knows of this entry")


def _heads(pool: Dump) -> Iterator[Finding]:
    lanes = {
        found.groups(): min(members.values()) for key, members in pool.zsets.items() if (found := LANE.fullmatch(key))
    }
    classes = {key[2:] for key in pool.zsets if key.startswith("h:")} | {pair[0] for pair in lanes}
    indexed = {(name, tenant) for name in classes for tenant in pool.zsets.get(f"h:{name}", {})}
    parked = {(name, key[7:]) for key, of in pool.zsets.items() if key.startswith("parked:") for name in of}
    for name, tenant in {*lanes, *indexed, *parked}:
        flag = pool.hashes.get(f"tn:{tenant}", {}).get("parked") == "1"
        away = pool.zsets.get(f"parked:{tenant}", {}).get(name) if flag else None
        yield from must.head_findings(
            name, tenant, lanes.get((name, tenant)), away, pool.zsets.get(f"h:{name}", {}).get(tenant)
        )
    for name in classes | set(pool.zsets.get("i", {})):
        best = min(pool.zsets.get(f"h:{name}", {}).values(), default=None)
        yield from must.best_findings(name, best, "i", pool.zsets.get("i", {}).get(name))
        kind = pool.hashes.get(f"c:{name}", {}).get("kind")
        if kind:
            yield from must.best_findings(name, best, f"k:{kind}", pool.zsets.get(f"k:{kind}", {}).get(name))


def _counts(pool: Dump) -> Iterator[Finding]:
    real: Counter[str] = Counter()
    for job, record in pool.jobs.items():
        status, tenant = record["status"], record["tenant"]
        real[status] += 1
        real[f"{tenant}:{status}"] += 1
        if status in must.WAITING:
            real[f"{tenant}:bytes"] += len(pool.strings[f"b:{job}"])
        real[f"{tenant}:running"] += status in must.ACTIVE and record.get("phase") != "finishing"
    said = {f: int(v) for f, v in pool.hashes.get("count", {}).items() if not f.endswith("_total")}
    for field in {*real, *said}:
        yield from must.count_findings(field, said.get(field, 0), real[field])
    levels = Counter(
        str(must.level_of(score)) for key, of in pool.zsets.items() if key.startswith("n:") for score in of.values()
    )
    held = {key[2:]: int(v["waiting"]) for key, v in pool.hashes.items() if key.startswith("v:")}
    for level in {*levels, *held}:
        yield from must.level_findings(level, held.get(level, 0), levels[level])


def _workers(pool: Dump, max_finishing: int) -> Iterator[Finding]:
    jobs = pool.jobs
    for key, record in pool.hashes.items():
        if not key.startswith("wk:"):
            continue
        worker, instance = key[3:], record.get("instance", "")
        held = pool.zsets.get(f"held:{instance}", {})
        phases = [jobs[job].get("phase", "") for job in held if job in jobs]
        yield from must.worker_findings(worker, record, phases)
        yield from must.load_findings(instance, phases, int(record.get("slots") or 1), max_finishing)
        listed = worker in pool.zsets.get(f"idle:{record.get('profile')}", {})
        yield from must.idle_findings(worker, record, listed)
    leases = pool.zsets.get("leases", {})
    for job, record in jobs.items():
        if record["status"] in must.ACTIVE and record["instance"] not in leases:
            yield Finding("lease", "leases", record["instance"], f"{job} is {record['status']} without a lease")


def _blocked(pool: Dump) -> Iterator[Finding]:
    queued = pool.lists.get("cascade", [])
    for job, record in pool.jobs.items():
        if record["status"] == "blocked" and "parents" in record:
            telling = 0
            for parent in record["parents"].split("\n"):
                of, listed = pool.jobs.get(parent, {}), job in pool.sets.get(f"kids:{parent}", ())
                telling += must.will_tell(of.get("status", ""), "kids" in of, listed, parent in queued)
            yield from must.dependency_findings(job, record, telling)


def _fleet(pool: Dump) -> Iterator[Finding]:
    """Nothing is left for the sweep to compare: there are few classes and profiles."""
    workers = [record for key, record in pool.hashes.items() if key.startswith("wk:")]
    states = {state: int(n) for state, n in pool.hashes.get("states", {}).items()}
    profiles = pool.zsets.get("profiles", {})
    yield from must.fleet_findings(workers, profiles, states)
    classes = {key[2:]: record for key, record in pool.hashes.items() if key.startswith("c:") and "vram_mb" in record}
    for name in classes.keys() ^ pool.zsets.get("classes", {}).keys():
        yield Finding("match", "classes", name, "a class and the list of them disagree")
    for profile in profiles:
        has, vram_mb = pool.sets.get(f"p:{profile}", set()), int(pool.strings[f"pv:{profile}"])
        for name, needs in classes.items():
            able = must.fits(has, vram_mb, set(needs["atoms"].split("\n")) - {""}, int(needs["vram_mb"]))
            if able != (name in pool.sets.get(f"ok:{profile}", ())):
                yield Finding("match", f"ok:{profile}", name, f"it is {able} that it can run it, which is not known")


def _lasting(pool: Dump) -> Iterator[Finding]:
    for key in pool.lasting:
        job, index = _kind(key)
        if job:
            record = pool.jobs.get(job)
            if record is None or record["status"] in must.TERMINAL:
                yield Finding("life", key, "", "it would stay for ever")
        elif not index:
            yield Finding("life", key, "", "it has no life time, and is no index of what is alive")


@cache
def _kind(key: str) -> tuple[str, bool]:
    """The job that a key belongs to, and whether it is an index of what is alive."""
    job = OF_A_JOB.fullmatch(key)
    return job[1] if job else "", LASTING.fullmatch(key) is not None
