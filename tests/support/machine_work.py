"""What workers do in the state machine: work, crash and call too late."""

from __future__ import annotations

import json

from broker.queue.new_job import Value
from tests.support.audit import ACTIVE, need
from tests.support.jobs import profile
from tests.support.machine import CONFIG, LEASE_MS, SLOTS, VRAM_MB, WORKERS, Driven


class Working(Driven):
    """Workers come, work, crash and call too late."""

    def __init__(self) -> None:
        super().__init__()
        for worker in ("w1", "w2"):
            self.register(worker)

    def register(self, worker: str, twice: bool = False) -> None:
        old = self.state.hashes.get(f"wk:{worker}", {}).get("instance")
        lost = {job for job, r in self.state.jobs.items() if r["status"] in ACTIVE and r["instance"] == old}
        waits = self.state.hashes.get(f"wk:{worker}", {}).get("gone") and old in self.state.zsets.get("leases", {})
        instance = f"i{next(self.numbers):04d}"
        can = profile(WORKERS[worker], vram_mb=VRAM_MB.get(worker, 24_000))
        answer = self.call(
            "register", lost, twice, worker=worker, instance=instance, machine="m", slots=SLOTS.get(worker, 1),
            profile=can, info="{}", via="redis", status="idle",
        )  # fmt: skip
        need(answer.outcome == "ok", "state", f"register: {answer}")
        # One whose connection had closed, and whose lease lives, hands its jobs over.
        handed = {job for job in self.jobs(ACTIVE) if self.state.jobs[job]["instance"] == instance}
        need(not lost & set(self.jobs(ACTIVE)) - handed, "I8", f"{worker} was taken over, but {lost} are still held")
        need(not handed or waits, "I8", f"{worker} was taken over, and has {handed} of the old one")
        self.instances[worker] = instance
        self.fleet.registered(worker, can)

    def heartbeat(self, worker: str, twice: bool = False, forgets: bool = False) -> None:
        instance = self.instances[worker]
        mine = [job for job in self.held() if self.state.jobs[job]["instance"] == instance]
        named = mine[1:] if forgets else mine
        old = {j for j, at in self.state.zsets.get(f"held:{instance}", {}).items() if at + LEASE_MS <= self.now}
        noticed = {job for job in named if self.state.jobs[job].get("given")}
        cancels = {job for job in named if self.state.jobs[job].get("cancel")}
        answer = self.call(
            "heartbeat", old - set(named) | noticed, twice, worker=worker, instance=instance, loaded="",
            status="busy" if mine else "idle", jobs="\n".join(f"{job} {self.token(job)}" for job in named),
        )  # fmt: skip
        self._alive(worker, answer)
        if answer.outcome == "ok":
            words = dict(line.split(" ", 2)[:2] for line in answer.lines("jobs"))
            wanted = {job: "cancel" if job in cancels else "ok" for job in named}
            need(words == wanted, "I7", f"heartbeat of {named}: {words}, not {wanted}")

    def crash(self, pick: int) -> None:
        """A process dies: nothing is called for it any more, its tokens stay in the air."""
        self.instances.pop(sorted(self.instances)[pick % len(self.instances)])

    def keeper(self, pick: int, function: str, twice: bool) -> None:
        worker = sorted(self.instances)[pick % len(self.instances)]
        instance = self.instances[worker]
        mine = {job for job, r in self.state.jobs.items() if r.get("instance") == instance and r["status"] in ACTIVE}
        pairs = {"worker": worker, "instance": instance} if function == "bye" else {"instance": instance}
        unnoticed = {job for job in mine if self.state.jobs[job].get("given")}
        self.call(function, mine if function != "keep" else unnoticed, twice, **pairs)
        if function != "keep":
            self.instances.pop(worker)
            need(not mine & set(self.jobs(ACTIVE)), "I3", f"{worker} said {function}, but still holds {mine}")

    def claim(self, pick: int, ahead: bool, loaded: str, twice: bool) -> None:
        worker = sorted(self.instances)[pick % len(self.instances)]
        self._claim(worker, ahead, loaded, twice)

    def start(self, pick: int, twice: bool) -> None:
        """What workers mostly do: claim and report."""
        worker = sorted(self.instances)[pick % len(self.instances)]
        answer = self._claim(worker, twice=twice)
        if answer.outcome == "job":
            self._report(answer.text("job_id"), 1, True, twice)

    def live(self) -> None:
        """Time passes in which every worker says that it is there."""
        self._pass(4000)
        for pick in range(len(self.instances)):
            self.heartbeat(sorted(self.instances)[pick % len(self.instances)])

    def claim_named(self, pick: int, which: int, twice: bool) -> None:
        worker = sorted(self.instances)[pick % len(self.instances)]
        known = sorted(self.state.jobs)
        job = known[which % len(known)]
        answer = self._claim(worker, twice=twice, job=job)
        need(answer.text("job_id", job) == job, "state", f"asked for {job}: {answer}")

    def report(self, pick: int, progress: int, store: bool, twice: bool) -> None:
        job = self._pick(self.held(("ahead", "running")), pick)
        full = self.state.jobs[job]["phase"] == "ahead" and self.running(job) >= SLOTS.get(self.worker_of(job), 1)
        if full:
            return  # a worker runs one job a slot; it does not start another
        self._report(job, progress, store, twice)

    def _report(self, job: str, progress: int, store: bool, twice: bool) -> None:
        data = json.dumps({"progress": progress, "attempt": int(self.state.jobs[job]["attempt"])})
        answer = self.call(
            "report", {job}, twice, job=job, token=self.token(job), p=next(self.numbers), data=data, store=store
        )
        need(answer.outcome == "ok", "state", f"report: {answer}")
        need(self.state.jobs[job]["status"] == "processing", "state", f"{job} reported, but is not processing")

    def executed(self, pick: int, claim: bool, twice: bool) -> None:
        job = self._pick(self.held(("running",)), pick)
        before, pairs, worker = self.state, self.claim_pairs(job, claim), self.worker_of(job)
        if not self._may_execute(job):
            return
        answer = self.call(
            "executed", {job}, twice, job=job, token=self.token(job), timings="{}", exec_ms=500, cold=0, **pairs
        )
        need(answer.outcome == "ok", "state", f"executed: {answer}")
        self.took(answer.next, worker, before, str(pairs.get("claim_token")))

    def finish(self, pick: int, claim: bool, twice: bool) -> None:
        self._end(
            "finish",
            self._pick(self.held(("running", "finishing")), pick),
            claim,
            twice,
            result='{"outputs":[]}',
            exec_ms=700,
            cold=0,
        )

    def turns(self, pick: int, others: int, executed: bool, claim: bool, twice: bool) -> None:
        """All jobs of a worker end in one call, and some of others, as a broker sends those of many workers."""
        held = self.held(("running", "finishing"))
        worker = self.worker_of(self._pick(held, pick))
        mine = [job for job in held if self.worker_of(job) == worker]
        jobs = mine + [job for job in held if job not in mine][:others]
        before, workers = self.state, [self.worker_of(job) for job in jobs]
        turns: list[tuple[str, dict[str, Value | None]]] = []
        for at, job in enumerate(jobs):
            end = {"job": job, "token": self.token(job), "exec_ms": 700, "cold": 0, **self.claim_pairs(job, claim)}
            if executed and at == 0 and self._may_execute(job):
                turns.append(("executed", {**end, "timings": "{}"}))
            else:
                turns.append(("finish", {**end, "result": '{"outputs":[]}'}))
        answers = self.together(turns, twice)
        for worker, (function, given), answer in zip(workers, turns, answers, strict=True):
            need(answer.outcome == "ok", "state", f"{function}: {answer}")
            if function == "finish":
                self._ended(function, str(given["job"]), answer, before)
            self.took(answer.next, worker, before, str(given.get("claim_token")))

    def _may_execute(self, job: str) -> bool:
        """Whether its worker may have one more job whose outputs it sends: else it waits until an upload has ended."""
        finishing = sum(
            self.state.jobs[other].get("phase") == "finishing" and self.worker_of(other) == self.worker_of(job)
            for other in self.held()
        )
        return self.state.jobs[job].get("phase") == "running" and finishing < int(CONFIG["max_finishing"])

    def fail(self, pick: int, claim: bool, twice: bool, code: str, retry: str) -> None:
        error = json.dumps({"code": code, "message": "m"})
        self._end("fail", self._pick(self.held(), pick), claim, twice, code=code, error=error, retry=retry)

    def hand_back(self, pick: int, claim: bool, twice: bool, missing: str | None) -> None:
        job = self._pick(self.held(("ahead", "running")), pick)
        worker, before = self.worker_of(job), self.state.jobs[job]
        last = int(before.get("handbacks", 0)) + 1 >= int(CONFIG["max_handbacks"])
        if missing and not before.get("cancel") and not last:
            self.fleet.lacks(worker, missing, job)
        error = json.dumps({"code": "validation_failed", "message": "missing"})
        self._end("fail", job, claim, twice, code="validation_failed", error=error, hand_back=1, missing=missing)
        after = self.state.jobs[job]
        counted = [int(r.get("attempt", 0)) - int(r.get("uncounted", 0)) for r in (before, after)]
        if after["status"] == "pending":
            need(counted[1] == counted[0] - 1, "I6", f"a hand-back of {job} counts as an attempt: {counted}")

    def release(self, pick: int, twice: bool) -> None:
        job = self._pick(self.held(("ahead",)), pick)
        answer = self.call("release", {job}, twice, job=job, token=self.token(job), reason="shutdown")
        need(answer.outcome == "ok", "state", f"release: {answer}")

    def stale(self, pick: int, function: str) -> None:
        """Whoever lost its lease changes nothing, whatever it says."""
        job, token = self.tokens[-1 - pick % len(self.tokens)]
        record = self.state.jobs.get(job, {})
        if record.get("token") == token:
            token = "0" * 32
        pairs: dict[str, Value | None] = {
            "p": 999, "data": "{}", "result": '{"outputs":["stale"]}', "code": "node_error",
            "error": '{"code":"node_error"}', "reason": "stale", "frame": 1, "timings": "{}", "exec_ms": 1,
        }  # fmt: skip
        answer = self.call(function, set(), False, job=job, token=token, **pairs)
        repeated = record.get("done", "").startswith(token)
        need(answer.outcome == "stale_lease" or repeated, "I7", f"{function} with a stale token: {answer}")

    def late_repeat(self, pick: int) -> None:
        """A call that was repeated long after: it may find things changed, but changes no job itself."""
        function, pairs = self.past[-1 - pick % len(self.past)]
        token = str(pairs.get("token"))
        if function not in ("report", "executed", "finish", "fail", "release", "claim"):
            return
        if function == "claim":
            held = [job for job, r in self.state.jobs.items() if r.get("token") == token]
            known = {t for _, t in self.tokens}
            if token not in known:
                return  # it got nothing then; now it is a new claim
            answer = self.call("claim", set(), False, **pairs)
            need(answer.outcome != "job" or answer.text("job_id") in held, "I7", f"an old claim's token got {answer}")
        elif all(r.get("token") != token for r in self.state.jobs.values()):
            self.call(function, set(), False, **{**pairs, "claim": None})
