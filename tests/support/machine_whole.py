"""The whole state machine: all rules, and the end of each history."""

from __future__ import annotations

import sys

from tests.support.audit import ACTIVE, WAITING, need
from tests.support.jobs import profile
from tests.support.machine import TENANTS
from tests.support.machine_control import Controlling
from tests.support.machine_submit import Submitting
from tests.support.machine_work import Working


class QueueMachine(Submitting, Working, Controlling):
    """Random histories of everything."""

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
            if not self.state.jobs:
                break
        kept = {key for key in self.state.zsets if key.startswith(("f:", "fin:", "n:", "h:", "w:", "a:", "x:"))} | set(
            self.state.jobs
        )
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
