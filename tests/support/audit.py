"""What a step of the queue may do: the state before and after it, compared with the promises.

These are the rules about change (who may change what, in which order, with which events). What holds in a single
moment is ``broker.queue.invariants``, which ``fsck`` uses too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from tests.support.dump import Dump

TERMINAL = {"completed", "failed", "cancelled"}
ACTIVE = {"claimed", "processing"}
WAITING = {"scheduled", "blocked", "pending"}

EDGES = {
    # A job whose parent has failed already never waits.
    "": {*WAITING, "failed"},
    "scheduled": {"pending", "cancelled", "failed"},
    "blocked": {"pending", "scheduled", "cancelled", "failed"},
    "pending": {"claimed", "cancelled", "failed"},
    "claimed": {"processing", "pending", "cancelled", "failed"},
    "processing": {"completed", "failed", "cancelled", "pending"},
}
LAST_EVENT = {"completed": "complete_job", "failed": "fail_job", "cancelled": "job_update"}


class Broken(AssertionError):
    """A promise does not hold; the message begins with its name."""


def need(condition: object, rule: str, message: str) -> None:
    """Raise ``Broken`` unless ``condition``."""
    if not condition:
        raise Broken(f"{rule}: {message}")


@dataclass(slots=True)
class Event:
    """One entry of a job's log."""

    number: int
    kind: str
    data: dict[str, object]

    @classmethod
    def read(cls, text: str) -> Event:
        head, kind, data = text.split("\n", 2)
        number, _, part = head.partition("-")
        need(part == "0", "I9", f"a logged event has the id {head}")
        return cls(int(number), kind, json.loads(data))


@dataclass(slots=True)
class Step:
    """One call: what it was, what it may change, and the pool around it."""

    function: str
    now: int
    before: Dump
    after: Dump
    allowed: set[str] = field(default_factory=set)

    def check(self) -> None:
        """Raise ``Broken`` for the first promise that this step broke."""
        old, new = self.before.jobs, self.after.jobs
        for job in old.keys() - new.keys():
            self._gone(job, old[job])
        for job, record in new.items():
            before = old.get(job, {})
            if before is record and self.before.lists.get(f"e:{job}") is self.after.lists.get(f"e:{job}"):
                continue
            log = self._log(job, before, record)
            # That a job depends on it is noted in the parent by whoever submits the child.
            if {**before, "kids": ""} == {**record, "kids": ""} and not log:
                continue
            self._may_change(job, before)
            self._path(job, before, record, log)
            self._attempts(job, before, record, log)
            self._told(job, before, record)

    # -- each promise -----------------------------------------------------------------------------------------------

    def _gone(self, job: str, record: dict[str, str]) -> None:
        need(record["status"] in TERMINAL, "I1", f"{self.function} lost {job}, which was {record['status']}")
        deleted = self.function == "delete" and job in self.allowed
        need(deleted or self.expired(record), "I1", f"{self.function} removed {job} before its retention had passed")

    def _may_change(self, job: str, before: dict[str, str]) -> None:
        mine = not before or job in self.allowed or self.implicit(job, before)
        need(mine, "I7", f"{self.function} changed {job}, which was {before.get('status')} and none of its business")

    def _log(self, job: str, before: dict[str, str], record: dict[str, str]) -> list[Event]:
        log = [Event.read(text) for text in self.after.lists.get(f"e:{job}", [])]
        numbers = [event.number for event in log]
        count = int(record.get("events", 0))
        need(numbers == list(range(count - len(log) + 1, count + 1)), "I9", f"{job} has events {numbers} of {count}")
        need(not log or len(log) == count or len(log) >= 100, "I9", f"{job} lost events: {len(log)} of {count}")
        seen = int(before.get("events", 0))
        need(count >= seen, "I9", f"{job}'s event counter fell from {seen} to {count}")
        if record["status"] in TERMINAL:
            need(log and log[-1].kind == LAST_EVENT[record["status"]], "I9", f"{job} ended with {log[-1:]}")
        return [event for event in log if event.number > seen]

    def _path(self, job: str, before: dict[str, str], record: dict[str, str], log: list[Event]) -> None:
        at, rounds = before.get("status", ""), int(before.get("round") or 1)
        for event in log:
            if event.kind != "job_update":
                continue
            to = str(event.data["status"])
            if at in TERMINAL:
                forced = self.function == "retry" and event.data.get("reason") == "forced_retry"
                need(forced and to == "pending", "I5", f"{self.function} took {job} from {at} to {to}")
                rounds += 1
            elif to != at or not self._stays(job, event):
                need(to in EDGES[at], "I2", f"{self.function} took {job} from {at} to {to}")
            at = to
        need(at == record["status"], "I9", f"{job} is {record['status']}, its events say {at}")
        need(int(record.get("round") or 1) == rounds, "I5", f"{job} is in round {record.get('round')}, not {rounds}")
        if before.get("status") in TERMINAL and not log:
            need(before == record, "I5", f"{self.function} changed {job} after its end: {_changes(before, record)}")

    def _stays(self, job: str, event: Event) -> bool:
        """Whether a job may say its state again: it was moved, or its back-off is over."""
        moved = self.function == "priority" and event.data.get("reason") == "moved"
        return moved or job in self.before.zsets.get("due", {})

    def _attempts(self, job: str, before: dict[str, str], record: dict[str, str], log: list[Event]) -> None:
        claims = sum(event.data.get("status") == "claimed" for event in log if event.kind == "job_update")
        was, now = int(before.get("attempt", 0)), int(record.get("attempt", 0))
        need(now == was + claims, "I6", f"{self.function}: {job} had attempt {was}, {claims} claims, now {now}")
        if claims:
            tokens = before.get("token") != record.get("token") or record["status"] not in ACTIVE
            need(tokens, "I7", f"{job} was claimed again with the same token")

    def _told(self, job: str, before: dict[str, str], record: dict[str, str]) -> None:
        """What a webhook is to be told of is in the outbox in the moment in which it happens."""
        status = record["status"]
        if status in TERMINAL and before.get("status") != status and status in record.get("hook", "").split():
            entry = f"{job} {status} {record.get('attempt', 0)}.{record.get('round', 1)}"
            need(entry in self.after.zsets.get("outbox", {}), "I1", f"{job} is {status}, but its webhook is not told")

    # -- what happens by itself ---------------------------------------------------------------------------------------

    def implicit(self, job: str, record: dict[str, str]) -> bool:
        """Whether the queue may change the job in any call: its time has come, or a parent ended."""
        zsets = self.before.zsets
        for key in ("due", "expiry", "deadline"):
            if zsets.get(key, {}).get(job, self.now + 1) <= self.now:
                return True
        if record["status"] in ACTIVE:
            return zsets.get("leases", {}).get(record["instance"], 0) <= self.now
        return record["status"] == "blocked" or self.expired(record)

    def expired(self, record: dict[str, str]) -> bool:
        """Whether a finished job's retention has passed."""
        if record["status"] not in TERMINAL:
            return False
        config = self.before.hashes["config"]
        return int(record["finished_at"]) + int(config[f"ttl_{record['status']}_ms"]) <= self.now


def _changes(before: dict[str, str], after: dict[str, str]) -> str:
    names = sorted({*before, *after})
    return ", ".join(f"{n}: {before.get(n)} -> {after.get(n)}" for n in names if before.get(n) != after.get(n))
