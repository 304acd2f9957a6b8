"""The queue as a hypothesis state machine: random histories of calls, each checked against what was promised.

Every step is one call (some twice, as after a lost reply) or a few. Around each, the whole pool is read; ``audit``
compares before and after, ``whole`` checks the moment, and the rules here check the answer. At the end of a history
everything is let go: each job must reach its end, and nothing may stay behind.
"""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import redis
from hypothesis import currently_in_test_context, note
from hypothesis.stateful import RuleBasedStateMachine

from broker.queue.new_job import Value, flatten
from broker.queue.queue import Answer, parse
from broker.queue.turns import answers_of, sections
from tests.support.audit import ACTIVE, TERMINAL, WAITING, Step, need
from tests.support.choice import Fleet
from tests.support.dump import Dump, dump
from tests.support.whole import Whole

PREFIX = "emq:{machine}:"
START = 1_800_000_000_000
TENANTS = ("ann", "bob", "eve")
NEEDS = ((), ("A",), ("B",), ("A", "B"), ("ghost",))
WORKERS = {"w1": ("A",), "w2": ("A", "B"), "w3": (), "w4": ("B",)}
SLOTS = {"w2": 3, "w4": 2}
VRAM_MB = {"w2": 48_000}
LEASE_MS = 10_000
CONFIG: dict[str, Value] = {
    "lease_ms": LEASE_MS, "backoff_ms": 1000, "ttl_completed_ms": 400_000, "ttl_failed_ms": 500_000,
    "ttl_cancelled_ms": 400_000, "max_queued": 14, "max_finishing": 2, "max_crashes": 3, "max_handbacks": 3,
    "idem_ttl_ms": 900_000, "max_finished": 1000, "affinity_max_wait_ms": 60_000,
}  # fmt: skip


class Driven(RuleBasedStateMachine):
    """One pool, four workers, three tenants; the clock stands still unless a rule moves it."""

    client: ClassVar[redis.Redis]
    called: ClassVar[set[str]] = set()
    """The functions that any history called."""

    def __init__(self) -> None:
        super().__init__()
        self.client.flushdb()
        self.now = START
        self.numbers = itertools.count(1)
        self.told: list[str] = []
        self.fleet = Fleet(SLOTS)
        self.instances: dict[str, str] = {}
        self.tokens: list[tuple[str, str]] = []
        self.standing: dict[str, str] = {}
        """The tokens of claims that were to stay, and whose."""
        self.past: list[tuple[str, dict[str, Value | None]]] = []
        self.keys: dict[tuple[str, str], tuple[str, str]] = {}
        self.parents: dict[str, list[str]] = {}
        self.client.hset(f"{PREFIX}config", "test_clock", self.now)
        self._fcall("configure", list(CONFIG.items()))
        self.whole = Whole()
        self.state = dump(self.client, PREFIX)

    def tell(self, what: str) -> None:
        """Note what is done, for whoever looks at a history that broke a promise."""
        self.told.append(what)
        if currently_in_test_context():
            note(what)

    def _fcall(self, function: str, pairs: list[tuple[str, Value | None]]) -> Any:
        self.called.add(function)
        return self.client.fcall(f"emq_{function}", 1, PREFIX, *flatten(pairs))

    def call(
        self, function: str, allowed: set[str] | None = None, twice: bool = False, **pairs: Value | None
    ) -> Answer:
        """One call, audited; ``allowed`` are the jobs that it may change beside those whose time has come."""
        self.tell(f"{function} {pairs}")
        first = self.state
        answer = parse(self._fcall(function, list(pairs.items())))
        self.settle(function, self._allow(allowed, answer))
        self.past.append((function, pairs))
        if twice:
            self._again(function, pairs, answer, first)
        return answer

    def _allow(self, allowed: set[str] | None, answer: Answer) -> set[str]:
        claimed = {one.text("job_id") for one in (answer, answer.next) if one is not None and one.outcome == "job"}
        return (allowed or set()) | claimed

    def _again(self, function: str, pairs: dict[str, Value | None], answer: Answer, first: Dump) -> None:
        """The same call once more, as a client does that lost the reply: same answer, nothing changes."""
        second = parse(self._fcall(function, list(pairs.items())))
        named = function == "claim" and pairs.get("job") is not None
        self._settle_again(function, first, [answer], [second], named)
        if function in ("claim", "executed", "finish", "fail", "report"):
            self._same(function, answer, second)

    def _settle_again(
        self, function: str, first: Dump, answers: list[Answer], again: list[Answer], named: bool = False
    ) -> None:
        """What a repeated call may do: nothing, but that a claim may get what the first one let go on."""
        before, late = self.state, self._late(answers, again)
        self.settle(function, {*late})
        if not late:
            self._unchanged(function, before, answers)
        for job, outcome in late.items():
            record, waited = self.state.jobs[job], first.jobs.get(job, {}).get("status") == "pending"
            # It goes on since its last parent has expired, which the first call found.
            need(outcome == "again" or not waited, "I1", f"{job} waited, and was given only to who asked again")
            self.fleet.check_given(job, record["worker_id"], before, self.state, named)
            self.tokens.append((job, record["token"]))

    def _late(self, answers: list[Answer], again: list[Answer]) -> dict[str, str]:
        """The jobs that claims got when they were repeated, and what they were told before."""
        both = [pair for a, b in zip(answers, again, strict=True) for pair in ((a, b), (a.next, b.next))]
        return {
            b.text("job_id"): a.outcome for a, b in both
            if a is not None and b is not None and a.outcome in ("none", "again", "conflict") and b.outcome == "job"
        }  # fmt: skip

    def _unchanged(self, function: str, before: Dump, answers: list[Answer]) -> None:
        # Who got nothing may ask again: that it is idle may be noted once more.
        all_ = [one for answer in answers for one in (answer, answer.next)]
        nothing = any(one is not None and one.outcome in ("none", "again") for one in all_)
        changed = before.differences(self.state)
        changed = [text for text in changed if not (nothing and text.startswith(("wk:", "idle", "states")))]
        need(not changed, "repeat", f"{function} again changed {changed[:5]}")

    def _same(self, function: str, first: Answer, second: Answer) -> None:
        for mine, other in ((first, second), (first.next, second.next)):
            if mine is not None and mine.outcome in ("ok", "job"):
                need(other is not None and mine.outcome == other.outcome, "repeat", f"{function} again: {other}")
                names = ("job_id", "attempt", "lease", "status", "will_retry")
                same = other is not None and all(mine.text(name) == other.text(name) for name in names)
                need(same, "repeat", f"{function} said {mine}, then {other}")

    def together(self, turns: list[tuple[str, dict[str, Value | None]]], twice: bool) -> list[Answer]:
        """Several ends of jobs in one call, audited; ``twice``: a broker of a release before version 5 repeats it."""
        self.tell(f"turns {turns}")
        self.called.add("turns")
        first = self.state
        args = sections([(function, flatten(given.items())) for function, given in turns])
        answers = [parse(raw) for raw in answers_of(self.client.fcall("emq_turns", 1, PREFIX, *args))]
        allowed = {str(given["job"]) for _, given in turns}
        self.settle("turns", allowed.union(*(self._allow(None, answer) for answer in answers)))
        self.past.extend(turns)
        if twice:
            pairs = [pair for function, given in turns for pair in [("turn", function), *given.items()]]
            again = [parse(raw) for raw in self._fcall("turns", pairs)]
            self._settle_again("turns", first, answers, again)
            for one, other in zip(answers, again, strict=True):
                self._same("turns", one, other)
        return answers

    def settle(self, function: str, allowed: set[str]) -> None:
        """Read the pool and check the step and the moment."""
        after = dump(self.client, PREFIX, self.state)
        Step(function, self.now, self.state, after, allowed).check()
        self.state = after
        wrong = list(self.whole.findings(after))
        need(not wrong, wrong[0].rule if wrong else "", f"after {function}: {'; '.join(map(str, wrong[:5]))}")
        for job, parents in self.parents.items():
            record = after.jobs.get(job)
            if record and record["status"] == "blocked":
                open_ = [p for p in parents if after.jobs.get(p, {}).get("status") not in {*TERMINAL, None}]
                need(open_, "dependency", f"{job} is blocked, but its parents have ended")

    def jobs(self, statuses: set[str]) -> list[str]:
        return sorted(job for job, record in self.state.jobs.items() if record["status"] in statuses)

    def held(self, phases: tuple[str, ...] = ("ahead", "running", "finishing")) -> list[str]:
        """Jobs that a worker with a living process holds."""
        living = set(self.instances.values())
        records = self.state.jobs
        return [
            job for job in self.jobs(ACTIVE)
            if records[job]["instance"] in living and records[job].get("phase") in phases
        ]  # fmt: skip

    def token(self, job: str) -> str:
        return self.state.jobs[job]["token"]

    def claim_pairs(self, job: str, claim: bool) -> dict[str, Value | None]:
        """What fuses a claim with the end of a job."""
        record = self.state.jobs[job]
        who: dict[str, Value | None] = {"worker": record["worker_id"], "instance": record["instance"]}
        if not claim:
            return who
        token = self.draw_token()
        return {
            **who,
            "claim": 1,
            "claim_token": token,
            "loaded": "",
            "standing": self.stays(record["worker_id"], token),
        }

    def draw_token(self) -> str:
        return f"{next(self.numbers):032x}"

    def stays(self, worker: str, token: str) -> bool:
        """Whether a claim is to stay where it finds nothing: each second one is."""
        if int(token, 16) % 2:
            self.standing[token] = worker
        return token in self.standing

    def took(self, answer: Answer | None, worker: str, before: Dump, token: str, named: bool = False) -> None:
        """Check a claim's answer and remember its token."""
        if answer is None:
            return
        self.fleet.check_claim(answer, worker, before, self.state, named)
        if answer.outcome == "job":
            need(answer.text("lease") == token, "I7", f"the lease {answer.text('lease')} is not the token {token}")
            self.tokens.append((answer.text("job_id"), token))
            for parent in self.parents.get(answer.text("job_id"), []):
                status = self.state.jobs.get(parent, {}).get("status", "gone")
                if self.state.jobs[answer.text("job_id")].get("round", "1") == "1":
                    need(status not in ACTIVE | WAITING or self.retried(parent), "dependency", f"{parent} is {status}")

    def retried(self, job: str) -> bool:
        return int(self.state.jobs[job].get("round") or 1) > 1

    def _pick(self, jobs: list[str], pick: int) -> str:
        return jobs[pick % len(jobs)]

    def worker_of(self, job: str) -> str:
        return self.state.jobs[job]["worker_id"]

    def running(self, job: str) -> int:
        instance = self.state.jobs[job]["instance"]
        return sum(r.get("instance") == instance and r.get("phase") == "running" for r in self.state.jobs.values())

    def _alive(self, worker: str, answer: Answer) -> None:
        if answer.outcome in ("unknown", "superseded"):
            self.instances.pop(worker, None)

    def _claim(
        self, worker: str, ahead: bool = False, loaded: str = "", twice: bool = False, job: str | None = None
    ) -> Answer:
        for _ in range(20):
            before, token = self.state, self.draw_token()
            answer = self.call(
                "claim", None, twice, worker=worker, instance=self.instances[worker], token=token, job=job,
                loaded=loaded, ahead=ahead, standing=self.stays(worker, token),
            )  # fmt: skip
            if answer.outcome != "again":
                break
        need(answer.outcome != "again", "bounded", "a claim says `again` for ever")
        self._alive(worker, answer)
        self.took(answer, worker, before, token, job is not None)
        return answer

    def _end(self, function: str, job: str, claim: bool, twice: bool, **pairs: Value | None) -> None:
        before, more, worker = self.state, self.claim_pairs(job, claim), self.worker_of(job)
        answer = self.call(function, {job}, twice, job=job, token=self.token(job), **pairs, **more)
        self._ended(function, job, answer, before)
        self.took(answer.next, worker, before, str(more.get("claim_token")))

    def _ended(self, function: str, job: str, answer: Answer, before: Dump) -> None:
        """Check the answer to a job's end."""
        need(answer.outcome == "ok", "state", f"{function}: {answer}")
        status = self.state.jobs[job]["status"]
        # The claim in the same call may have taken it, or found that its time had come while it ran.
        expired = self.state.jobs[job].get("error_code") == "expired"
        taken = answer.next is not None and (expired or answer.next.text("job_id") == job)
        need(taken or answer.text("status") == status, "state", f"{function} says {answer}, {job} is {status}")
        if before.jobs[job].get("cancel"):
            need(status == "cancelled", "I5", f"{job} was to be cancelled, it is {status}")
        elif function == "finish":
            need(status == "completed", "I5", f"{job} was finished, it is {status}")

    def _sweep(self, limit: int, twice: bool = False) -> None:
        answer = self.call("sweep", set(), False, limit=limit)
        need(answer.outcome == "ok", "state", f"sweep: {answer}")
        if answer.flag("more"):
            return
        for key in ("due", "expiry"):
            late = [job for job, at in self.state.zsets.get(key, {}).items() if at <= self.now]
            need(not late, "I3", f"the sweep is done, but {late} are overdue in {key}")
        if self.now >= int(self.state.hashes["config"].get("grace", 0)):
            late = [i for i, end in self.state.zsets.get("leases", {}).items() if end < self.now]
            need(not late, "I3", f"the sweep is done, but the leases of {late} have lapsed")

    def _pass(self, ms: int) -> None:
        self.now += ms
        self.client.hset(f"{PREFIX}config", "test_clock", self.now)
        self.state.hashes["config"]["test_clock"] = str(self.now)
