"""The whole state machine: all rules, and the end of each history."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import redis
from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.support.audit import ACTIVE, TERMINAL, WAITING, need
from tests.support.jobs import profile
from tests.support.machine import NEEDS, TENANTS, WORKERS
from tests.support.machine_control import Controlling
from tests.support.machine_look import LIMIT, Looking
from tests.support.machine_submit import Submitting
from tests.support.machine_work import Working

T = TypeVar("T")


class Choices:
    """Choices drawn from one number, which hypothesis shrinks towards the first of each."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __call__(self, among: Sequence[T]) -> T:
        self._number, at = divmod(self._number, len(among))
        return among[at]


# What is done how often. Most of what matters happens to jobs that were claimed, so workers mostly work.
MENU = [
    *["start"] * 9, *["submit"] * 6, *["submit_special"] * 2, *["claim"] * 4, *["report"] * 2, *["executed"] * 4,
    *["finish"] * 4, *["turns"] * 3, *["fail"] * 5, *["give_back"] * 3, *["too_late"] * 3, *["heartbeat"] * 2,
    *["live"] * 3, *["come_and_go"] * 3, *["meddle"] * 5, *["govern"] * 3, *["clock"] * 3, *["sweep"] * 3,
    *["read"] * 2, *["look"] * 3,
]  # fmt: skip
LATE = ["report", "executed", "finish", "fail", "release", "preview"]
CODES = ["node_error", "node_error", "out_of_memory", "node_error", "validation_failed", "interrupted"]
HOOK = {"hook": "started completed failed cancelled"}
SPECIAL: list[dict[str, Any]] = [
    {}, HOOK, {}, {"max_attempts": 1}, {"delay_ms": 3000}, {"expires_ms": 5000}, {"timeout_s": 15}, {"max_attempts": 2},
    HOOK,
]  # fmt: skip
SOMEBODY = ("ann", "ann", *TENANTS)
SOMETIMES = (False, False, False, True)


class QueueMachine(Submitting, Working, Controlling, Looking):
    """Random histories of everything. One rule draws from the menu, so that the weights are ours."""

    @rule(
        what=st.sampled_from(MENU), pick=st.integers(0, 30), number=st.integers(0, 2**20), flag=st.booleans(),
        twice=st.sampled_from(SOMETIMES),
    )  # fmt: skip
    def step(self, what: str, pick: int, number: int, flag: bool, twice: bool) -> None:
        """One thing is done; what cannot be done now is passed over."""
        getattr(self, f"do_{what}")(pick, Choices(number), flag, twice)

    # -- the menu ---------------------------------------------------------------------------------------------

    def do_submit(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        self.submit(
            choose(SOMEBODY), choose(NEEDS[:4]), choose([0, 0, 0, 5, -100, 100]), choose([1, 1, 2, 3]), choose(SPECIAL),
            choose([None, None, "g1"]), twice,
        )  # fmt: skip

    def do_submit_special(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if flag or not self.state.jobs:
            self.submit_with_key(choose(SOMEBODY), choose(["k1", "k2"]), choose(["x", "x", "y"]), twice)
        else:
            picks = [pick, *([choose(range(20))] * choose([0, 1]))]
            self.submit_dependent(choose(SOMEBODY), picks, choose(["fail", "run"]), twice)

    def do_start(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.instances:
            self.start(pick, twice)

    def do_claim(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.instances and self.state.jobs and choose(SOMETIMES):
            self.claim_named(pick, choose(range(20)), twice)
        elif self.instances:
            self.claim(pick, flag, choose(["", "A", "B"]), twice)

    def do_report(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.held(("ahead", "running")):
            self.report(pick, choose(range(101)), flag, twice)

    def do_executed(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.held(("running",)):
            self.executed(pick, flag, twice)

    def do_finish(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.held(("running", "finishing")):
            self.finish(pick, flag, twice)

    def do_turns(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.held(("running", "finishing")):
            self.turns(pick, choose(range(3)), choose(SOMETIMES), flag or not choose(SOMETIMES), twice)

    def do_fail(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.held():
            self.fail(pick, flag, twice, choose(CODES), choose(["auto", "auto", "auto", "no"]))

    def do_give_back(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        missing = choose([None, None, "m:A", "m:B"])
        if flag and self.held(("ahead",)):
            self.release(pick, twice)
        elif self.held(("ahead", "running")):
            self.hand_back(pick, flag, twice, missing)

    def do_too_late(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.tokens and flag:
            self.stale(pick, choose(LATE))
        elif self.past:
            self.late_repeat(pick)

    def do_heartbeat(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.instances:
            self.heartbeat(sorted(self.instances)[pick % len(self.instances)], twice, choose(SOMETIMES))

    def do_live(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        self.live()

    def do_come_and_go(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        what = choose(["register", "register", "register", "crash", "keep", "gone", "bye", "leave", "leave"])
        if what == "register":
            self.register(sorted(WORKERS)[pick % len(WORKERS)], twice)
        elif self.instances and what == "crash":
            self.crash(pick)
        elif self.instances and what == "leave":
            self.leave(pick, twice)
        elif self.instances:
            self.keeper(pick, what, twice)

    def do_meddle(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        what = choose(["cancel", "priority", "retry", "group", "delete"])
        if what == "group":
            self.cancel_group(choose(SOMEBODY))
        elif what == "cancel" and self.state.jobs:
            self.cancel(pick, choose(["", "", "", "ann"]), twice)
        elif what == "delete" and self.state.jobs:
            self.delete(pick, twice)
        elif what == "retry" and self.jobs(TERMINAL):
            self.retry(pick, twice)
        elif what == "priority" and self.jobs(WAITING):
            self.move(pick, choose([None, -5, 0, 7]))

    def do_govern(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        what, on = choose(["pause", "drain", "limit", "limit"]), choose(SOMETIMES)
        if what == "pause":
            self.pause(choose(["tenant", "worker", "pool", "tenant"]), pick, on, twice)
        elif what == "drain":
            self.drain(sorted(WORKERS)[pick % len(WORKERS)], on, twice)
        else:
            self.limit(choose(SOMEBODY), choose([1, 3]), choose([1, 1, 0, 2]), twice)

    def do_clock(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        self.clock(choose([1000, 4900, 4000, 50, 1000, 4900, 30_000, -3000, 3_700_000]))

    def do_sweep(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        self.sweep(choose([100, 1, 3]), twice)

    def do_read(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        if self.state.jobs:
            self.read(pick, choose(range(20)), choose(SOMEBODY))

    def do_look(self, pick: int, choose: Choices, flag: bool, twice: bool) -> None:
        what = choose(["look", "look", "offer", "watch", "repair", "bounds", "deliveries"])
        if what == "bounds":
            for _ in range(choose([1, LIMIT + 1])):
                self.bounds(flag)
        elif what == "offer" and self.instances:
            self.offer(pick)
        elif what == "deliveries" and self.logged:
            self.deliveries(self.logged[pick % len(self.logged)])
        elif self.state.jobs and what == "repair":
            self.repair(pick, twice)
        elif self.state.jobs and what == "watch":
            self.watch(pick, choose(SOMEBODY), twice)
        elif self.state.jobs:
            self.look(pick, choose(SOMEBODY))

    # -- the end of a history -----------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Let everything go: each job ends, each record leaves, and only settings stay."""
        if sys.exc_info()[0] is not None:
            return  # the history has failed already
        self._let_go()
        for _ in range(300):
            self._pass(3000)
            self._sweep(100)
            while self._work():
                pass
            if not self.jobs(ACTIVE | WAITING):
                break
        left = {job: self.state.jobs[job]["status"] for job in self.jobs(ACTIVE | WAITING)}
        need(not left, "I1", f"these jobs never ended: {left}")
        self._pass(2_000_000)
        for _ in range(50):
            self._sweep(100)
            self.deliver(again=False)  # 20 a call, which may outlive their jobs
            if not self.state.jobs and "outbox" not in self.state.zsets:
                break
        kept = {
            key for key in self.state.zsets if key.startswith(("f:", "fin:", "n:", "h:", "w:", "a:", "x:", "outbox"))
        } | set(self.state.jobs)
        need(not kept, "I10", f"retention has passed, but these are left: {sorted(kept)[:5]}")

    def _let_go(self) -> None:
        for scope, names in (("pool", ["machine"]), ("tenant", TENANTS)):
            for name in names:
                self.pause_off(scope, name)
        for tenant in TENANTS:
            self.call("tenant", set(), tenant=tenant, weight=1, max_running=0, max_queued=0)
            self.fleet.caps[tenant] = 0
        for worker in ("last1", "last2"):
            everything = profile(("A", "B"))
            self.instances[worker] = worker
            self.fleet.registered(worker, everything)
            self.call(
                "register",
                set(),
                worker=worker,
                instance=worker,
                machine="m",
                slots=1,
                profile=everything,
                info="{}",
                via="redis",
                status="idle",
            )

    def pause_off(self, scope: str, name: str) -> None:
        self.call("pause", set(), scope=scope, id=name, on=False)
        self.fleet.pause(scope, name, False)

    def _work(self) -> bool:
        """The last two workers claim and finish; true if there was anything."""
        did = False
        for worker in ("last1", "last2"):
            self.call("heartbeat", set(), worker=worker, instance=worker, status="idle", jobs="", loaded="")
            answer = self._claim(worker)
            need(answer.outcome in ("job", "none"), "I1", f"a free worker's claim: {answer}")
            if answer.outcome == "job":
                did = True
                job = answer.text("job_id")
                self.call("report", {job}, job=job, token=self.token(job), p=1, data='{"progress":1}', store=1)
                self._end("finish", job, False, False, result="{}", exec_ms=1, cold=0)
        return did


def machine_on(client: redis.Redis) -> type[QueueMachine]:
    """The machine on this database, with a record of its own of what it has called."""
    return type("Machine", (QueueMachine,), {"client": client, "called": set()})
