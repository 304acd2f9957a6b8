"""What people do in the state machine, the clock and readers."""

from __future__ import annotations

import json

from broker.queue.new_job import Value
from broker.queue.queue import parse
from tests.support.audit import ACTIVE, TERMINAL, WAITING, need
from tests.support.machine import PREFIX, TENANTS, WORKERS, Driven


class Controlling(Driven):
    """Cancels, retries, moves, pauses, limits, time."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[str] = []

    def cancel(self, pick: int, tenant: str, twice: bool) -> None:
        job = self._pick(sorted(self.state.jobs), pick)
        before = self.state.jobs[job]
        answer = self.call(
            "cancel", {job} if tenant in ("", before["tenant"]) else set(), twice, job=job, tenant=tenant, reason="why"
        )
        after = self.state.jobs[job]
        if tenant not in ("", before["tenant"]):
            need(answer.outcome == "not_found", "I14", f"{tenant} cancels another's job: {answer}")
        elif before["status"] in TERMINAL:
            need(answer.outcome == "conflict" or after == before, "I5", f"cancel of {before['status']}: {answer}")
        elif before["status"] in WAITING:
            need(after["status"] == "cancelled", "state", f"cancel of {before['status']}: it is {after['status']}")
        else:
            need(after.get("cancel"), "state", f"cancel of {before['status']} left no mark")

    def retry(self, pick: int, twice: bool) -> None:
        job = self._pick(self.jobs(TERMINAL), pick)
        before = self.state.jobs[job]
        answer = self.call("retry", {job}, twice, job=job, tenant="")
        if answer.outcome == "ok":
            self.fleet.unordered.add(job)
            need(self.state.jobs[job]["status"] == "pending", "state", f"retry: {self.state.jobs[job]}")
            need(self.state.jobs[job]["attempt" if "attempt" in before else "round"], "I6", "retry forgot attempts")

    def delete(self, pick: int, twice: bool) -> None:
        job = self._pick(sorted(self.state.jobs), pick)
        before = self.state.jobs[job]["status"]
        answer = self.call("delete", {job}, twice, job=job, tenant="")
        gone = job not in self.state.jobs
        need(gone == (answer.outcome == "ok"), "state", f"delete of {before}: {answer}, gone: {gone}")
        need(not gone or before in TERMINAL, "I1", f"a job that was {before} was deleted")

    def move(self, pick: int, priority: int | None) -> None:
        job = self._pick(self.jobs(WAITING), pick)
        front = 1 if priority is None else None
        # To the front again is in front again: only a priority is the same the second time.
        answer = self.call("priority", {job}, False, job=job, tenant="", priority=priority, front=front)
        self.fleet.unordered.add(job)
        if answer.outcome == "ok" and priority is not None:
            need(self.state.jobs[job]["priority"] == str(priority), "state", f"{job} kept its priority")

    def pause(self, scope: str, pick: int, on: bool, twice: bool) -> None:
        names = {"pool": ["machine"], "tenant": list(TENANTS), "worker": sorted(WORKERS)}[scope]
        name = names[pick % len(names)]
        answer = self.call("pause", set(), twice, scope=scope, id=name, on=on)
        if answer.outcome == "ok":
            self.fleet.pause(scope, name, on)

    def drain(self, worker: str, on: bool, twice: bool) -> None:
        if self.call("drain", set(), twice, worker=worker, on=on).outcome == "ok":
            self.fleet.drain(worker, on)

    def limit(self, tenant: str, weight: int, most: int, twice: bool) -> None:
        self.call("tenant", set(), twice, tenant=tenant, weight=weight, max_running=most, max_queued=0)
        self.fleet.caps[tenant] = most

    def cancel_group(self, tenant: str) -> None:
        mine = {j for j, r in self.state.jobs.items() if r.get("group") == "g1" and r["tenant"] == tenant}
        self.call("cancel_group", mine, tenant=tenant, group="g1", reason="all", limit=2)

    def clock(self, ms: int) -> None:
        self.now += ms
        self.client.hset(f"{PREFIX}config", "test_clock", self.now)
        self.state.hashes["config"]["test_clock"] = str(self.now)

    def sweep(self, limit: int, twice: bool) -> None:
        self._sweep(limit, twice)
        self.deliver(again=twice)

    def deliver(self, again: bool) -> None:
        """A broker takes webhook deliveries that are due, and delivers them or not."""
        answer = self.call("outbox", set(), limit=20, lease_ms=60_000)
        for line in answer.lines("entries"):
            entry = line.rsplit(" ", 1)[0]
            log = json.dumps({"entry": entry}, separators=(",", ":"))
            self.call("delivered", set(), entry=entry, log=log, again_ms=1000 if again else None)
            need((entry in self.state.zsets.get("outbox", {})) == again, "I10", f"{entry} was delivered: {not again}")
            self.logged.append(entry)
            if (job := entry.partition(" ")[0]) in self.state.jobs:
                told = parse(self._fcall("deliveries", [("job", job), ("tenant", "")])).lines("log")
                need(log in told, "I10", f"{entry} is not in its log {told}")

    def read(self, pick: int, which: int, tenant: str) -> None:
        """Readers see what is there, and nothing of other tenants."""
        job = self._pick(sorted(self.state.jobs), pick)
        record = self.state.jobs[job]
        answer = self.call("job", set(), job=job, tenant=tenant)
        mine = record["tenant"] == tenant
        need((answer.outcome == "ok") == mine, "I14", f"{tenant} reads {record['tenant']}'s {job}: {answer}")
        listed = parse(self._fcall("list", [("tenant", tenant), ("limit", 500)]))
        wanted = [j for j, r in self.state.jobs.items() if r["tenant"] == tenant]
        need(len(listed.rows) == len(wanted), "I14", f"{tenant} has {len(wanted)} jobs, {len(listed.rows)} are listed")
        self._search(tenant, which)
        stats = parse(self._fcall("stats", [("tenant", "")]))
        for status in TERMINAL | WAITING | ACTIVE:
            real = sum(r["status"] == status for r in self.state.jobs.values())
            need(stats.number(status) == real, "I4", f"stats say {stats.number(status)} {status}, there are {real}")

    def _search(self, tenant: str, which: int) -> None:
        """Each filter finds what the records say, newest first, page by page."""
        mine = {job: r for job, r in self.state.jobs.items() if r["tenant"] == tenant}
        ended = {job: r for job, r in mine.items() if r["status"] in TERMINAL}
        seen = {job: r for job, r in mine.items() if r["status"] in TERMINAL | ACTIVE}
        questions: list[tuple[dict[str, Value | None], set[str]]] = [
            ({"worker": w}, {j for j, r in seen.items() if r.get("worker_id") == w}) for w in sorted(WORKERS)
        ]
        codes = ("node_error", "worker_lost", "expired", "dependency_failed")
        for code in codes:
            failed = {j for j, r in ended.items() if r["status"] == "failed" and r.get("error_code") == code}
            questions.append(({"error": code}, failed))
        questions.append(({"model": "A"}, {j for j in mine if "m:A" in self.fleet.first[j]}))
        questions.append(({"labels": "c0ffee00"}, {j for j, r in mine.items() if r.get("labels")}))
        questions.append(
            (
                {"labels": "c0ffee00\n00000001", "status": "completed\nfailed"},
                {j for j, r in ended.items() if "00000001" in r.get("labels", "") and r["status"] != "cancelled"},
            )
        )
        questions.append(({"group": "g1"}, {j for j, r in mine.items() if r.get("group") == "g1"}))
        questions.append(({"dead": 1}, {j for j, r in ended.items() if r.get("dead_letter")}))
        for asked, wanted in [questions[which % len(questions)]]:
            found, before = [], ""
            for _ in range(100):
                where: list[tuple[str, Value | None]] = [("tenant", tenant), ("limit", 2), ("before", before)]
                page = parse(self._fcall("list", [*where, *asked.items()]))
                found += [row.text("job_id") for row in page.rows]
                before = page.text("next")
                if not before:
                    break
            newest = sorted(wanted, key=lambda job: -int(mine[job]["arrival"]))
            need(found == newest, "search", f"{asked} finds {found}, not {newest}")
