"""What else can be asked of the queue in the state machine: readers, watchers, offers, repairs, limits of brokers."""

from __future__ import annotations

from collections.abc import Mapping

from broker.queue.new_job import Value
from broker.queue.queue import Answer, parse
from tests.support.audit import ACTIVE, TERMINAL, WAITING, need
from tests.support.machine import Driven

LIMIT = 1
"""Sockets that may be open at once, and the burst of the bucket."""


class Looking(Driven):
    """Readers tell what is there, to whom it belongs; the rest changes nothing of a job."""

    def __init__(self) -> None:
        super().__init__()
        self.open: dict[str, int] = {}

    def ask(self, function: str, **pairs: Value | None) -> Answer:
        """Call a reader (Redis itself lets it write nothing)."""
        return parse(self._fcall(function, list(pairs.items())))

    def look(self, pick: int, tenant: str) -> None:
        """Every reader, about one job and one tenant."""
        job = self._pick(sorted(self.state.jobs), pick)
        record = self.state.jobs[job]
        mine = record["tenant"] == tenant
        for function in ("payload", "forecast"):
            answer = self.ask(function, job=job, tenant=tenant)
            refused = answer.outcome == "not_found"
            need(refused != mine, "I14", f"{tenant} asks {function} of {record['tenant']}'s {job}: {answer}")
        token = record.get("token", "")
        answer = self.ask("lease", job=job, token=token, attempt=record.get("attempt"))
        need((answer.outcome == "ok") == bool(token), "I7", f"the lease {token!r} of {job}: {answer}")
        need(self.ask("lease", job=job, token="0" * 32).outcome == "stale_lease", "I7", f"a made-up lease of {job}")
        self._look_at_waiting(tenant)
        self._look_at_ended(tenant)
        self._look_at_the_fleet()
        self._look_at_figures(tenant, record["class"])

    def _look_at_waiting(self, tenant: str) -> None:
        in_lanes = {member[13:] for key, of in self.state.zsets.items() if key.startswith("n:") for member in of}
        wanted = {job for job in in_lanes if self.state.jobs[job]["tenant"] == tenant}
        rows = self.ask("waiting", tenant=tenant, limit=100).rows
        listed = [row.text("job_id") for row in rows if row.text("tenant")]
        stuck = sum(row.number("jobs") for row in rows if not row.text("tenant"))
        need(set(listed) <= wanted, "I14", f"{tenant} has {wanted} in lanes, {listed} are told")
        need(len(listed) + stuck == len(wanted), "search", f"{tenant}: {listed} and {stuck} stuck, not {wanted}")

    def _look_at_ended(self, tenant: str) -> None:
        rows = self.ask("ended", tenant=tenant, limit=250).rows
        jobs = self.state.jobs.items()
        wanted = {job for job, r in jobs if r["tenant"] == tenant and r["status"] in {"completed", "failed"}}
        need({row.text("job_id") for row in rows} == wanted, "search", f"{tenant}'s ended jobs are {wanted}: {rows}")

    def _look_at_the_fleet(self) -> None:
        held = {
            job: row.text("worker_id") for row in self.ask("workers", limit=100).rows
            for job in (line.split(" ")[0] for line in row.lines("held"))
        }  # fmt: skip
        wanted = {job: r["worker_id"] for job, r in self.state.jobs.items() if r["status"] in ACTIVE}
        need(held == wanted, "I8", f"the workers say that they hold {held}, the jobs {wanted}")
        fleet = self.ask("fleet").rows
        need(len(fleet) == len(self.state.zsets.get("profiles", {})), "I4", f"the fleet: {fleet}")
        for row in fleet:
            need(self.ask("ranges", profile=row.text("profile")).outcome == "ok", "state", "ranges of a live profile")

    def _look_at_figures(self, tenant: str, job_class: str) -> None:
        group = self.ask("group", tenant=tenant, group="g1")
        members = [r for r in self.state.jobs.values() if r.get("group") == "g1" and r["tenant"] == tenant]
        for status in TERMINAL | WAITING | ACTIVE if group.outcome == "ok" else ():
            real = sum(r["status"] == status for r in members)
            gone = status in TERMINAL and group.number(status) > real  # figures outlive the jobs
            need(gone or group.number(status) == real, "I4", f"group g1 of {tenant}: {group}, {real} are {status}")
        need(self.ask("class", **{"class": job_class}).outcome == "ok", "state", f"the class {job_class} is unknown")
        for function in ("metrics", "version", "replicas"):
            need(self.ask(function).outcome == "ok", "state", function)

    # -- writers that change no job -------------------------------------------------------------------------------

    def watch(self, pick: int, tenant: str, twice: bool) -> None:
        """Somebody watches a job; its worker's previews pass as long as it holds it."""
        job = self._pick(sorted(self.state.jobs), pick)
        record = self.state.jobs[job]
        answer = self.call("watch", set(), twice, job=job, tenant=tenant, px=512)
        need((answer.outcome == "ok") == (record["tenant"] == tenant), "I14", f"{tenant} watches {job}: {answer}")
        if record.get("token"):
            answer = self.call("preview", set(), twice, job=job, token=record["token"], frame=1, data="x")
            need(answer.outcome == "ok", "I7", f"a preview of {job}: {answer}")

    def offer(self, pick: int) -> None:
        """A worker behind the gateway is told of the job that it would get, and gets nothing by that."""
        worker = sorted(self.instances)[pick % len(self.instances)]
        answer = self.call("offer", set(), worker=worker, instance=self.instances[worker])
        self._alive(worker, answer)
        if answer.outcome == "job":
            may = self.fleet.claimable(worker, self.state)
            need(answer.text("job_id") in may, "fit", f"{worker} is offered {answer}, it could get {may}")
            need(not self.fleet.stopped(worker), "drain", f"{worker} is paused or draining, and is offered {answer}")
        elif answer.outcome == "none":
            missed = self.fleet.claimable(worker, self.state)
            need(not missed, "I1", f"{worker} is offered nothing, though it could run {missed}")

    def leave(self, pick: int, twice: bool) -> None:
        """A gateway's socket closes: its jobs wait one lease for the worker to come back."""
        worker = sorted(self.instances)[pick % len(self.instances)]
        self.call("leave", set(), twice, instance=self.instances.pop(worker))

    def repair(self, pick: int, twice: bool) -> None:
        """Where nothing is wrong there is nothing to repair."""
        before, tenant = self.state, self._pick(sorted({r["tenant"] for r in self.state.jobs.values()}), pick)
        job = self._pick(sorted(self.jobs(WAITING) or self.state.jobs), pick)
        everything: list[Mapping[str, Value | None]] = [
            {"job": job}, {"count": ""}, {"count": tenant}, {"class": self.state.jobs[job]["class"], "tenant": tenant},
            {"class": self.state.jobs[job]["class"]},
            *({"worker": worker} for worker in self.instances), {"fleet": "w1"},
            *({"profile": profile} for profile in self.state.zsets.get("profiles", {})),
            {"class": self.state.jobs[job]["class"], "known": "1"},
        ]  # fmt: skip
        for what in everything:
            self.call("repair", set(), twice, **what)
            changed = [text for text in before.differences(self.state) if not text.startswith("count:")]
            said = [{k: v for k, v in state.hashes["count"].items() if v != "0"} for state in (before, self.state)]
            need(not changed and said[0] == said[1], "repair", f"repair of {what} changed {changed[:5]}")

    def bounds(self, opens: bool) -> None:
        """Sockets and a bucket, counted over all brokers."""
        replica = f"r{next(self.numbers) % 2}"
        change = 1 if opens else -1
        if change < 0 and not self.open.get(replica):
            return
        answer = self.call("use", set(), replica=replica, ttl_ms=10**9, changes=f"sockets {change} {LIMIT}")
        full = opens and sum(self.open.values()) >= LIMIT
        need((answer.outcome == "full") == full, "limit", f"{self.open} are open, one more: {answer}")
        self.open[replica] = self.open.get(replica, 0) + (0 if full else change)
        need(self.call("traces", set(), limit=10).outcome == "ok", "state", "traces")
        taken = [self.call("throttle", name=f"b{replica}", rate=1, burst=LIMIT).outcome for _ in range(LIMIT + 1)]
        need(taken.count("ok") <= LIMIT and taken[-1] == "wait", "limit", f"a bucket of {LIMIT} gave {taken}")

    def deliveries(self, entry: str) -> None:
        """A delivery can be had again."""
        job, before = entry.partition(" ")[0], self.state.zsets.get("outbox", {})
        if job not in self.state.jobs:
            return
        if entry not in before:
            self.call("deliveries", set(), True, job=job, tenant="", redeliver=entry)
            need(entry in self.state.zsets.get("outbox", {}), "I1", f"{entry} is not delivered again")
