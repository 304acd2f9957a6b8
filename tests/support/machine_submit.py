"""How the state machine adds jobs."""

from __future__ import annotations

from typing import Any

from broker.queue.new_job import NewJob, Value
from broker.queue.queue import Answer, parse
from tests.support.audit import WAITING, need
from tests.support.dump import Dump
from tests.support.jobs import new_job
from tests.support.machine import CONFIG, PREFIX, Driven


class Submitting(Driven):
    """Submits: plain, with a key, with parents."""

    def submit(  # noqa: PLR0917
        self,
        tenant: str,
        needs: tuple[str, ...],
        priority: int,
        count: int,
        more: dict[str, Any],
        group: str | None,
        twice: bool,
    ) -> None:
        jobs = [self._new(needs, priority=priority, group=group, **more) for _ in range(count)]
        answers = self._submit(tenant, jobs, twice)
        wanted = "scheduled" if "delay_ms" in more else "pending"
        need(all(a.text("status") == wanted for a in answers if a.outcome == "ok"), "state", f"submitted: {answers}")

    def submit_with_key(self, tenant: str, key: str, body: str, twice: bool) -> None:
        job = self._new(("A",), idempotency_key=key, body_digest=body)
        known = self.keys.get((tenant, key))
        answer = self._submit(tenant, [job], twice)[0]
        if known and known[0] in self.state.jobs:
            wanted = ("duplicate" if known[1] == body else "conflict", known[0])
            need((answer.outcome, answer.text("job_id")) == wanted, "P3", f"{key} again: {answer}, not {wanted}")
        elif answer.outcome == "ok":
            self.keys[tenant, key] = (job.job_id, body)

    def submit_dependent(self, tenant: str, picks: list[int], policy: str, twice: bool) -> None:
        known = sorted(self.state.jobs)
        parents = sorted({known[pick % len(known)] for pick in picks})
        job = self._new((), depends_on=parents, on_parent_failure=policy)
        records = self.state.jobs
        answer = self._submit(tenant, [job], twice)[0]
        if any(records[p]["tenant"] != tenant for p in parents):
            need(answer.outcome == "not_found", "I14", f"{tenant} depends on another tenant's job: {answer}")
        elif answer.outcome == "ok":
            self.parents[job.job_id] = parents

    def _new(self, needs: tuple[str, ...], **more: Any) -> NewJob:
        number = next(self.numbers)
        labels = ("c0ffee00", f"{number % 3:08x}") if number % 2 else ()
        job = new_job(f"j{number:04d}", models=needs, labels=labels, **more)
        self.fleet.atoms[job.job_id] = set(job.atoms)
        self.fleet.first[job.job_id] = set(job.atoms)
        if more.get("delay_ms") or more.get("depends_on"):
            self.fleet.unordered.add(job.job_id)
        return job

    def _submit(self, tenant: str, jobs: list[NewJob], twice: bool) -> list[Answer]:
        pairs: list[tuple[str, Value | None]] = [("tenant", tenant)]
        for job in jobs:
            args = job.arguments()
            pairs.extend(zip(map(str, args[::2]), args[1::2], strict=True))
        waiting, before = len(self.jobs(WAITING)), self.state
        answers = [parse(row) for row in self._fcall("submit", pairs)]
        self.settle("submit", set())
        for job in jobs:
            self._look_whether_given(job.job_id, before)
        for job, answer in zip(jobs, answers, strict=True):
            full = waiting >= int(CONFIG["max_queued"])
            need(answer.outcome != "ok" or not full, "limit", f"{waiting} jobs wait, and {job.job_id} was accepted")
            need(answer.outcome != "queue_full" or full, "limit", f"only {waiting} jobs wait, but the queue is full")
            need((answer.outcome == "ok") == (job.job_id in self.state.jobs), "I1", f"{job.job_id}: {answer}")
            waiting += answer.outcome == "ok"
        if twice:
            before = self.state
            again = [parse(row) for row in self._fcall("submit", pairs)]
            self.settle("submit", set())
            changed = before.differences(self.state)
            need(not changed, "repeat", f"submit again changed {changed[:5]}")
            for first, second in zip(answers, again, strict=True):
                same = (first.outcome, first.text("job_id")) == (second.outcome, second.text("job_id"))
                need(same, "repeat", f"submit said {first}, then {second}")
        return answers

    def _look_whether_given(self, job: str, before: Dump) -> None:
        """A job that a worker has at once came as the answer to a claim of its own, and by the rules of a claim."""
        record = self.state.jobs.get(job, {})
        if job in before.jobs or record.get("status") != "claimed":
            return
        worker, token = record["worker_id"], record["token"]
        need(self.standing.get(token) == worker, "I7", f"{job} was given to {worker}, which has not asked so: {token}")
        need(token not in {used for _, used in self.tokens}, "I7", f"{job} was given for a claim that had its job")
        hint = (self.client.lrange(f"{PREFIX}in:{record['instance']}", 0, 0) or [b""])[0]
        assert isinstance(hint, bytes)
        need(hint.startswith(b"job\n") and token.encode() in hint, "I1", f"{worker} was given {job}, but not told")
        self.fleet.check_given(job, worker, before, self.state)
        self.tokens.append((job, token))
