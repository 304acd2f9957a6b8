"""What a claim may answer: the model of who can run what, who is held back, and who comes first."""

from __future__ import annotations

import json
from collections.abc import Mapping

from broker.queue.queue import Answer
from tests.support.audit import ACTIVE, need
from tests.support.dump import Dump

Record = Mapping[str, str]
AVOID_MS = 600_000


class Fleet:
    """Workers, tenants and what jobs need, kept beside the queue and never read from it."""

    def __init__(self, slots: Mapping[str, int]) -> None:
        self.slots = slots
        self.able: dict[str, set[str]] = {}
        self.vram: dict[str, int] = {}
        self.atoms: dict[str, set[str]] = {}
        self.first: dict[str, set[str]] = {}
        """What a job needed when it was submitted."""
        self.caps: dict[str, int] = {}
        self.unordered: set[str] = set()
        self.paused: set[tuple[str, str]] = set()
        self.draining: set[str] = set()

    def registered(self, worker: str, profile: str) -> None:
        """A new instance of a worker says what it can do; a drain ended with the old one."""
        self.draining.discard(worker)
        said = json.loads(profile)
        models = said["models"]["checkpoints"]
        self.vram[worker] = said["vram_mb"]
        self.able[worker] = {"t:comfyui", *(f"m:{m}" for m in models), *(f"m:checkpoints/{m}" for m in models)}

    def lacks(self, worker: str, atom: str, job: str) -> None:
        """A hand-back says that the worker has no such thing and that the job needs it."""
        self.able.get(worker, set()).discard(atom)
        self.atoms[job].add(atom)
        self.unordered.add(job)

    def pause(self, scope: str, name: str, on: bool) -> None:
        (self.paused.add if on else self.paused.discard)((scope, name))

    def drain(self, worker: str, on: bool) -> None:
        (self.draining.add if on else self.draining.discard)(worker)

    # -- judging ------------------------------------------------------------------------------------------------------

    def stopped(self, worker: str) -> bool:
        """Whether the worker may take nothing."""
        pool_paused = any(scope == "pool" for scope, _ in self.paused)
        return pool_paused or ("worker", worker) in self.paused or worker in self.draining

    def held_back(self, tenant: str, pool: Dump, but: str = "") -> bool:
        """Whether the tenant is paused or at its cap (the job ``but`` not counted)."""
        if ("tenant", tenant) in self.paused:
            return True
        running = sum(
            record["tenant"] == tenant
            and record["status"] in ACTIVE
            and record.get("phase") != "finishing"
            and job != but
            for job, record in pool.jobs.items()
        )
        return 0 < self.caps.get(tenant, 0) <= running

    def fits(self, job: str, worker: str) -> bool:
        return self.atoms[job] <= self.able.get(worker, set())

    def avoids(self, job: str, record: Record, worker: str, pool: Dump, now: Dump | None = None) -> bool:
        """Whether the job is kept from the worker, because another one, live (``now``, if given), could do it."""
        whom = record.get("variant", "").partition("!")[2]
        over = int(whom[1:]) if whom.startswith(">") else None
        if worker != whom and (over is None or self.vram.get(worker, 0) > over):
            return False
        # Not for ever: the other one may be paused.
        since = float(pool.hashes.get(f"c:{record['variant']}", {}).get("since", 0))
        if float(pool.hashes["config"]["test_clock"]) - since > AVOID_MS:
            return False
        live = {
            key[3:] for key, other in (now or pool).hashes.items()
            if key.startswith("wk:") and not other.get("gone") and key != f"wk:{worker}"
        }  # fmt: skip
        return any(self.fits(job, other) and (over is None or self.vram[other] > over) for other in live)

    def claimable(self, worker: str, pool: Dump) -> list[str]:
        """The jobs in lanes that the worker could have been given."""
        in_lanes = {member[13:] for key, of in pool.zsets.items() if key.startswith("n:") for member in of}
        return sorted(
            job for job, record in pool.jobs.items()
            if job in in_lanes and self.fits(job, worker) and not self.held_back(record["tenant"], pool)
            and not self.avoids(job, record, worker, pool)
        )  # fmt: skip

    def check_claim(self, answer: Answer, worker: str, before: Dump, after: Dump, named: bool = False) -> None:
        """Raise ``Broken`` when the answer is not one that was promised; a ``named`` job may jump the queue."""
        if answer.outcome == "job":
            self.check_given(answer.text("job_id"), worker, before, after, named)
        elif answer.outcome == "none":
            # For a job that this call let go on, since its last parent has expired, an idle worker is woken.
            waited = {job for job, record in before.jobs.items() if record["status"] == "pending"}
            missed = [] if self.stopped(worker) else [job for job in self.claimable(worker, after) if job in waited]
            need(not missed, "I1", f"{worker} got nothing, though it could run {missed}")
        elif answer.outcome == "paused":
            need(self.stopped(worker), "state", f"{worker} is told that it is paused")
        else:
            known = ("busy", "conflict", "not_found", "unknown", "superseded", "again")
            need(answer.outcome in known, "state", f"claim: {answer}")

    def check_given(self, job: str, worker: str, before: Dump, after: Dump, named: bool = False) -> None:
        """Raise ``Broken`` when a worker should not have got this job."""
        mine = after.jobs[job]
        need(not self.stopped(worker), "drain", f"{worker} is paused or draining, and got {job}")
        need(self.fits(job, worker), "fit", f"{worker} cannot run {job}, which needs {self.atoms[job]}")
        tenant = mine["tenant"]
        # A claim first lets go of workers whose lease has lapsed: who was live before it may not be now.
        shunned = self.avoids(job, before.jobs.get(job, {}), worker, before, now=after)
        need(named or not shunned, "avoid", f"{worker} got {job}, which failed there and which another could run")
        need(not self.held_back(tenant, after, but=job), "cap", f"{job} was given though {tenant} is held back")
        if before.jobs.get(job, {}).get("status") in ACTIVE:
            return  # the same claim again
        for other in [] if named else self.claimable(worker, after):
            self._check_order(job, mine, other, after.jobs[other])

    def _check_order(self, job: str, mine: Record, other: str, record: Record) -> None:
        need(
            int(record["priority"]) <= int(mine["priority"]),
            "priority", f"{job} of priority {mine['priority']} was given before {other} of {record['priority']}",
        )  # fmt: skip
        lane = ("tenant", "priority", "class", "variant")
        same = all(mine.get(name) == record.get(name) for name in lane)
        if same and not {job, other} & self.unordered:
            need(int(mine["arrival"]) < int(record["arrival"]), "fifo", f"{job} was given before {other}")
