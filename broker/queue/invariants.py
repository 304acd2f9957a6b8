"""What holds in a pool at every moment, as pure functions over what was read in one moment.

The tests apply them to whole pools after every step; they need only what was read, so a live server can be judged too.

The rules, by the names that findings carry:

- ``state``: a job is in exactly one state, and every index holds it just where its record says.
- ``order``: the heads that a claim looks at are the heads of the lanes.
- ``lease``: a claimed or processing job belongs to an instance whose lease lives, and has a token.
- ``load``: an instance holds no more than its slots, one ahead and the finishing ones that it may have.
- ``count``: counters equal the sets that they count.
- ``attempt``: attempts, failures, crashes and hand-backs are within their limits.
- ``dependency``: a blocked job waits for just as many jobs as will tell it of their end.
- ``match``: each class is compared with each profile that a live worker has, and what came out is known.
- ``log``: a job's events are numbered 1…n without a hole, the last one of a finished job is its end.
- ``life``: what a finished job leaves has a life time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

WAITING = ("scheduled", "blocked", "pending")
ACTIVE = ("claimed", "processing")
TERMINAL = ("completed", "failed", "cancelled")
STATES = (*WAITING, *ACTIVE, *TERMINAL)
PHASES = ("ahead", "running", "finishing")
LEVEL = 2**45
LOG_KEPT = 400

# Keys that may stay for ever: indexes of what is alive, and settings.
LASTING = re.compile(
    r"meta|config|brokers|replicas|arrivals|i|k:.+|n:.+|h:.+|c:.+|classes|vt|p:.+|pd:.+|pv:.+|ok:.+|profiles|idle|idle:.+|v:.+|due|"
    r"expiry|deadline|wk:.+|workers|leases|held:.+|w:.+|a:.+|f:.+|fin:.+|tenants|count|parked:.+|tn:.+|g:.+|"
    r"gm:.+|pg:.+|px:.+|x:.+|dead|instances|levels|match|cascade|age|states|unpark|pw:.+|"
    r"outbox|outbox_tries|tv:.+|tt:.+|td:.+",
    re.DOTALL,
)
OF_A_JOB = re.compile(r"(?:j|b|e|pr|kids):(.+)", re.DOTALL)
"""A job's own keys may stay as long as it has not ended."""
LANE = re.compile(r"n:([^:]+):(.*)", re.DOTALL)

Record = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule: where it shows, and what is wrong."""

    rule: str
    key: str
    member: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.key} {self.member}: {self.message}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an index holds a job: ``score`` is ``None`` when any will do."""

    key: str
    member: str
    score: float | None = None


def lane(job: str, record: Record) -> Place:
    """The job's place among those that wait for a worker."""
    key = f"n:{record.get('variant') or record['class']}:{record['tenant']}"
    return Place(key, f"{int(record['arrival']):012x}:{job}", float(record["score"]) if "score" in record else None)


def places(job: str, record: Record) -> tuple[list[Place], list[Place]]:
    """The index entries that a job's record calls for, and those that it forbids.

    A pending job is in its lane or, while it backs off, in ``due``: that pair is :func:`pending_findings`'.
    """
    status, tenant = record["status"], record["tenant"]
    wanted: list[Place] = []
    barred: list[Place] = []

    def place(here: bool, key: str, member: str = job, score: float | None = None) -> None:
        (wanted if here else barred).append(Place(key, member, score))

    arrival = float(record["arrival"])
    place(status in WAITING, f"w:{tenant}", score=arrival)
    place(status in ACTIVE, f"a:{tenant}", score=arrival)
    for end in TERMINAL:
        place(status == end, f"f:{tenant}:{end}", score=arrival)
        place(status == end, f"fin:{end}", score=_number(record, "finished_at"))
    if status == "scheduled":
        place(True, "due")
    elif status != "pending":
        place(False, "due")
    if status != "pending":
        barred.append(lane(job, record))
    place(status in WAITING and "expires_at" in record, "expiry", score=_number(record, "expires_at"))
    if status not in ACTIVE:
        place(False, "deadline")
    place(record.get("dead_letter") == "1", "dead")
    entry = f"{int(arrival):012x}:{job}"
    for term in end_terms(record):
        place(status in TERMINAL, f"x:{tenant}", f"{term}\n{entry}")
    for term in label_terms(record):
        place(True, f"x:{tenant}", f"{term}\n{entry}")
    if record.get("instance"):
        place(status in ACTIVE, f"held:{record['instance']}")
    return wanted, barred


def end_terms(record: Record) -> list[str]:
    """What an ended job is found by in its tenant's search index."""
    found = [("w", record.get("worker_id", ""))]
    if record["status"] == "failed":
        found.append(("e", record.get("error_code", "")))
    found += [("m", name) for name in record.get("models", "").split("\n")]
    terms = [f"{kind}:{_clean(name)}" for kind, name in found if name]
    return [*terms, "d:"] if record.get("dead_letter") else terms


def _clean(name: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f]", " ", name.encode()[:64].decode("utf-8", "replace"))


def label_terms(record: Record) -> list[str]:
    """The labels of its metadata that a job is found by."""
    labels = record.get("labels", "")
    return [f"l:{labels[at : at + 8]}" for at in range(0, len(labels), 8)]


def _number(record: Record, name: str) -> float | None:
    value = record.get(name)
    return float(value) if value else None


def record_findings(job: str, record: Record, limits: Mapping[str, int]) -> Iterator[Finding]:
    """What a record alone shows. ``limits`` are the pool's ``max_crashes`` and ``max_handbacks``."""
    key = f"j:{job}"
    status = record.get("status", "")
    if status not in STATES:
        yield Finding("state", key, "status", f"{status!r} is not a state")
        return
    if status in ACTIVE:
        for name in ("token", "instance", "worker_id", "claimed_at"):
            if not record.get(name):
                yield Finding("lease", key, name, f"a {status} job has none")
        if record.get("phase") not in PHASES:
            yield Finding("lease", key, "phase", f"{record.get('phase')!r} is not a phase")
    if status in TERMINAL and not record.get("finished_at"):
        yield Finding("state", key, "finished_at", f"a {status} job has none")
    if status not in ACTIVE and record.get("phase"):
        yield Finding("state", key, "phase", f"a {status} job is {record['phase']}")
    if status == "blocked" and int(record.get("deps", 0)) <= 0:
        yield Finding("state", key, "deps", "a blocked job waits for nothing")
    yield from _attempt_findings(key, record, limits)


def _attempt_findings(key: str, record: Record, limits: Mapping[str, int]) -> Iterator[Finding]:
    attempt, uncounted = int(record.get("attempt", 0)), int(record.get("uncounted", 0))
    most = int(record.get("max_attempts", 3))
    if not 0 <= uncounted <= attempt:
        yield Finding("attempt", key, "uncounted", f"{uncounted} of {attempt} attempts")
    if attempt - uncounted > most + int(record.get("crashes", 0)):
        yield Finding("attempt", key, "attempt", f"{attempt - uncounted} attempts count, {most} are allowed")
    for name, limit in (("failures", most), ("crashes", limits["max_crashes"]), ("handbacks", limits["max_handbacks"])):
        if int(record.get(name, 0)) > limit:
            yield Finding("attempt", key, name, f"{record[name]}, {limit} are allowed")


def place_findings(job: str, record: Record, score_of: Mapping[tuple[str, str], float | None]) -> Iterator[Finding]:
    """Where the indexes disagree with a record; ``score_of`` has every place's score, ``None`` when it is not there."""
    wanted, barred = places(job, record)
    for place in wanted:
        score = score_of[place.key, place.member]
        if score is None:
            yield Finding("state", place.key, place.member, f"a {record['status']} job is not there")
        elif place.score is not None and score != place.score:
            yield Finding(
                "state", place.key, place.member, f"its score is {score:.0f}, its record says {place.score:.0f}"
            )
    for place in barred:
        if score_of[place.key, place.member] is not None:
            yield Finding("state", place.key, place.member, f"a {record['status']} job is there")
    if record["status"] == "pending":
        yield from pending_findings(job, record, score_of)


def pending_findings(job: str, record: Record, score_of: Mapping[tuple[str, str], float | None]) -> Iterator[Finding]:
    """Whether a pending job is in its lane or in ``due``, and not in both."""
    here = lane(job, record)
    score, due = score_of[here.key, here.member], score_of["due", job]
    if (score is None) == (due is None):
        where = "neither in its lane nor in due" if score is None else "both in its lane and in due"
        yield Finding("state", here.key, here.member, f"a pending job is {where}")
    elif score is not None and score != here.score:
        yield Finding(
            "state", here.key, here.member, f"its score is {score:.0f}, its record says {record.get('score')}"
        )


def asked(job: str, record: Record) -> list[Place]:
    """Every place that :func:`place_findings` looks at."""
    wanted, barred = places(job, record)
    pending = [lane(job, record), Place("due", job)] if record["status"] == "pending" else []
    return [*wanted, *barred, *pending]


def owner(key: str, member: str) -> str | None:
    """The job that an index entry stands for; ``None`` when the key is no index of jobs."""
    name = key.partition(":")[0]
    if name == "n":
        return member.partition(":")[2]
    if name == "x":
        return member.rpartition("\n")[2].partition(":")[2]
    return member if key in ("due", "expiry", "deadline", "dead") or name in ("w", "a", "f", "fin", "held") else None


def log_findings(job: str, record: Record, numbers: Sequence[int], kinds: Sequence[str]) -> Iterator[Finding]:
    """What is wrong with a job's event log."""
    key, count = f"e:{job}", int(record.get("events", 0))
    if count == 1 and record.get("first") and not numbers:
        return  # it is logged with the second one
    if list(numbers) != list(range(count - len(numbers) + 1, count + 1)):
        yield Finding("log", key, str(count), f"the numbers are {_short(numbers)}")
    elif len(numbers) < min(count, LOG_KEPT):
        yield Finding("log", key, str(count), f"only {len(numbers)} events are left")
    ends = {"completed": "complete_job", "failed": "fail_job", "cancelled": "job_update"}
    end = ends.get(record["status"])
    if end and (not kinds or kinds[-1] != end):
        yield Finding(
            "log", key, str(count), f"a {record['status']} job's last event is {kinds[-1] if kinds else 'none'}"
        )


def _short(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:10]))
    return shown + (", …" if len(numbers) > 10 else "")


def load_findings(instance: str, phases: Sequence[str], slots: int, max_finishing: int) -> Iterator[Finding]:
    """Whether an instance holds more than it may; ``phases`` are those of the jobs that it holds."""
    finishing = sum(phase == "finishing" for phase in phases)
    if len(phases) - finishing > slots + 1:
        yield Finding("load", f"held:{instance}", "", f"{len(phases) - finishing} jobs on {slots} slots and one ahead")
    if sum(phase == "running" for phase in phases) > slots:
        yield Finding("load", f"held:{instance}", "", f"more jobs are running than there are slots ({slots})")
    if finishing > max_finishing:
        yield Finding("load", f"held:{instance}", "", f"{finishing} jobs finishing, {max_finishing} are allowed")


def head_findings(
    job_class: str, tenant: str, head: float | None, parked: float | None, indexed: float | None
) -> Iterator[Finding]:
    """Whether a lane's head (``None``: empty) is where a claim finds it, or is parked with its tenant."""
    if parked is None:
        if indexed != head:
            yield Finding("order", f"h:{job_class}", tenant, f"it says {indexed}, the lane's head is {head}")
        return
    if parked != head:
        yield Finding("order", f"parked:{tenant}", job_class, f"it says {parked}, the lane's head is {head}")
    if indexed is not None:
        yield Finding("order", f"h:{job_class}", tenant, "a parked lane is among the heads")


def best_findings(job_class: str, best: float | None, index: str, indexed: float | None) -> Iterator[Finding]:
    """Whether an index of classes (``i``, ``k:<kind>``) has the class's best head."""
    if best != indexed:
        yield Finding("order", index, job_class, f"it says {indexed}, the best head is {best}")


def count_findings(field: str, counted: int, real: int) -> Iterator[Finding]:
    """Whether a field of ``count`` equals what it counts."""
    if counted != real:
        yield Finding("count", "count", field, f"it says {counted}, there are {real}")


def level_of(score: float) -> int:
    """The priority that a score belongs to."""
    return 100 - int(score // LEVEL)


def level_findings(level: str, waiting: int, real: int) -> Iterator[Finding]:
    """Whether a priority level knows how many jobs wait in its lanes."""
    if waiting != real:
        yield Finding("count", f"v:{level}", "waiting", f"it says {waiting}, there are {real}")


def worker_findings(worker: str, record: Record, phases: Sequence[str]) -> Iterator[Finding]:
    """Whether a worker's record counts what its instance holds."""
    for phase in PHASES:
        real, said = sum(one == phase for one in phases), int(record.get(phase) or 0)
        if said != real:
            yield Finding("count", f"wk:{worker}", phase, f"it says {said}, it holds {real}")


def idle_findings(worker: str, record: Record, listed: bool) -> Iterator[Finding]:
    """Whether a worker that says that it is idle can be woken, and no other one is."""
    if bool(record.get("idle")) != listed:
        word = "is not" if record.get("idle") else "is"
        yield Finding("order", f"idle:{record.get('profile')}", worker, f"the worker {word} listed")


def dependency_findings(job: str, record: Record, telling: int) -> Iterator[Finding]:
    """Whether a blocked job waits for as many jobs as will tell it of their end."""
    if record.get("status") == "blocked" and int(record.get("deps", 0)) != telling:
        yield Finding("dependency", f"j:{job}", "deps", f"it waits for {record['deps']} jobs, {telling} will tell it")


def will_tell(status: str, has_kids: bool, listed: bool, queued: bool) -> bool:
    """Whether a parent tells a job of its end: it has it ``listed``, and its record says that there are such.

    One that has ended must be ``queued``, too.
    """
    return bool(status) and listed and (queued if status in TERMINAL else has_kids)


def state_of(worker: Record) -> str:
    """What a worker is doing, as it is counted; empty when it is gone."""
    if not worker or worker.get("gone"):
        return ""
    for name, state in (("drain", "draining"), ("paused", "paused")):
        if worker.get(name):
            return state
    status = worker.get("status", "")
    if status in ("unhealthy", "draining"):
        return status
    return "busy" if status == "busy" or any(worker.get(phase) for phase in PHASES) else "idle"


def fleet_findings(
    workers: Iterable[Record], profiles: Mapping[str, float], states: Mapping[str, int]
) -> Iterator[Finding]:
    """Whether the live workers are counted by profile and by state."""
    alive = [worker for worker in workers if state_of(worker)]
    having = Counter(worker["profile"] for worker in alive if worker.get("profile"))
    doing = Counter(map(state_of, alive))
    for profile in sorted({*having, *profiles}):
        if having[profile] != profiles.get(profile, 0):
            yield Finding(
                "count",
                "profiles",
                profile,
                f"it says {profiles.get(profile, 0):.0f}, {having[profile]} workers have it",
            )
    for state in sorted({*doing, *states}):
        if doing[state] != states.get(state, 0):
            yield Finding("count", "states", state, f"it says {states.get(state, 0)}, there are {doing[state]}")


def fits(atoms: Set[str], vram_mb: int, needs: Set[str], needs_mb: int) -> bool:
    """Whether a profile has all that a class needs."""
    return vram_mb >= needs_mb and needs <= atoms
