"""The broker's typed door to the queue's functions (see ``docs/queue.md`` for each one).

Every method is one atomic call. Errors: ``NotFound``, ``Conflict``, ``QueueFull`` for refusals, ``Unavailable`` while
Redis is away. Nothing else in the broker calls a function.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.errors import Conflict, NotFound, QueueFull, RateLimited, Unavailable
from broker.queue import turns
from broker.queue.in_order import Args, Refusal
from broker.queue.new_job import NewJob, Value, flatten, parts_of, submission
from broker.queue.seal import Seal, payload_of, result_of

RECORDS, FORECASTS = 25, 5
"""Jobs that one ``emq_job`` and one ``emq_forecast`` read at most."""

Pairs = dict[str, bytes]


class Caller(Protocol):
    """Runs functions; ``broker.queue.connection.Connection`` is the real one."""

    async def fcall(self, function: str, prefix: str, args: Args) -> Any:
        """Call ``function`` with one key and flat arguments; raises ``Unavailable`` when Redis is away."""

    def fcalls(self, function: str, prefix: str, calls: Iterable[Args]) -> AsyncGenerator[Any]:
        """Call it for each of some arguments, in their order: see :func:`broker.queue.in_order.in_order`."""


@dataclass(slots=True)
class Answer:
    """A function's answer: the outcome word, its pairs, and the answer of a fused claim."""

    outcome: str
    pairs: Pairs = field(default_factory=dict)
    rows: list[Answer] = field(default_factory=list)
    next: Answer | None = None

    def text(self, name: str, default: str = "") -> str:
        """A pair as text."""
        value = self.pairs.get(name)
        return default if value is None else value.decode()

    def number(self, name: str, default: int = 0) -> int:
        """A pair as an integer (an empty one is the default)."""
        value = self.pairs.get(name)
        return int(float(value)) if value else default

    def flag(self, name: str) -> bool:
        """A pair as a boolean."""
        return self.pairs.get(name) == b"1"

    def lines(self, name: str) -> list[str]:
        """A pair as a list."""
        text = self.text(name)
        return text.split("\n") if text else []


class _Words(dict[bytes, str]):
    """Outcomes and names as text: there are few, but for counters that name tenants."""

    def __missing__(self, raw: bytes) -> str:
        if len(self) == 1024:
            self.clear()
        self[raw] = word = raw.decode()
        return word


_word = _Words().__getitem__


def parse(raw: Any) -> Answer:
    """Read ``[outcome, name, value, …]`` or ``[outcome, pairs]``; a value that is an array is a nested answer."""
    if len(raw) == 2 and type(raw[1]) is dict:
        return Answer(_word(raw[0]), raw[1])
    parts = iter(raw)
    answer = Answer(_word(next(parts)))
    pairs = answer.pairs
    for name, value in zip(parts, parts, strict=False):
        if type(value) is not list:
            pairs[_word(name)] = value
        elif name == b"next":
            answer.next = parse(value)
        else:
            answer.rows.append(parse(value))
    return answer


class Queue:
    """One pool's queue."""

    def __init__(self, caller: Caller, pool: str = "default", seal: Seal | None = None) -> None:
        """``seal`` encrypts payloads and results at rest."""
        self._caller = caller
        self.seal = seal or Seal()
        self.pool = pool
        self.prefix = f"emq:{{{pool}}}:"
        self._turns = turns.Turns(caller.fcall, self.prefix)

    async def call(
        self, function: str, pairs: Iterable[tuple[str, Value | None]] = (), read: Callable[[Any], Answer] = parse
    ) -> Answer:
        """Call ``emq_<function>`` and read its answer."""
        given = dict(pairs)
        job = str(given.get("job") or "")
        if self.seal.active and isinstance(result := given.get("result"), str):
            given["result"] = self.seal.close_json(result.encode(), result_of(job))
        args = flatten(given.items())
        if function in turns.FUNCTIONS:
            raw = await self._turns.call(function, args)
        else:
            raw = await self._caller.fcall(f"emq_{function}", self.prefix, args)
        return self._opened(read(raw), job)

    def _opened(self, answer: Answer, job: str) -> Answer:
        """An answer with its payload and result decrypted."""
        job = answer.text("job_id") or job
        if "payload" in answer.pairs:
            answer.pairs["payload"] = self.seal.open(answer.pairs["payload"], payload_of(job))
        if "result" in answer.pairs:
            answer.pairs["result"] = self.seal.open_json(answer.pairs["result"], result_of(job))
        if answer.next is not None:
            self._opened(answer.next, "")
        return answer

    async def _must(self, function: str, what: str, **args: Value | None) -> Answer:
        """Call, and raise what a refusal means for ``what``."""
        answer = await self.call(function, args.items())
        return require(answer, what)

    # -- adding and ending work ---------------------------------------------------------------------------------------

    async def submit(
        self, tenant: str, jobs: Sequence[NewJob], limits: Mapping[str, Value | None] | None = None
    ) -> list[Answer]:
        """Submit jobs in their order; one answer a job, refusals included (see :func:`require`).

        ``limits`` are the tenant's and the key's.

        Each job is added whole or not at all. Many go in several calls, so that none holds Redis for long. When Redis
        goes away (or is full) between two of them, the jobs that are in have their answers, and the rest the outcome
        ``unavailable`` (or ``queue_full``); when it raises, nothing is known to be in. The same ids may be sent again.
        """
        parts = list(parts_of(jobs))
        if len(parts) == 1:
            args = submission(tenant, limits, parts[0], self.seal)
            return [parse(row) for row in await self._caller.fcall("emq_submit", self.prefix, args)]
        calls = (submission(tenant, limits, part, self.seal) for part in parts)
        outcomes: list[list[Answer] | Refusal] = []
        async with aclosing(self._caller.fcalls("emq_submit", self.prefix, calls)) as raws:
            async for raw in raws:
                outcomes.append(raw if isinstance(raw, Refusal) else [parse(row) for row in raw])
        return _answers(parts, outcomes)

    async def cancel(self, job_id: str, tenant: str = "", reason: str = "", waiting: bool = False) -> Answer:
        """Cancel; a running job stays ``processing`` until its worker has stopped it.

        With ``waiting`` one that a worker holds is left alone, as ``Conflict``.
        """
        pairs = {"job": job_id, "tenant": tenant, "reason": reason, "waiting": waiting or None}
        return await self._must("cancel", f"job {job_id}", **pairs)

    async def retry(self, job_id: str, tenant: str = "", *, elsewhere: bool = False) -> Answer:
        """Start a new round of a finished job; ``elsewhere``: not by its last worker, while another can run it."""
        return await self._must("retry", f"job {job_id}", job=job_id, tenant=tenant, elsewhere=elsewhere or None)

    async def delete(self, job_id: str, tenant: str = "") -> Answer:
        """Forget a job that has ended; answers its tenant."""
        return await self._must("delete", f"job {job_id}", job=job_id, tenant=tenant)

    async def set_priority(
        self, job_id: str, tenant: str = "", *, priority: int | None = None, front: bool = False
    ) -> Answer:
        """Move a waiting job."""
        return await self._must(
            "priority", f"job {job_id}", job=job_id, tenant=tenant, priority=priority, front=front or None
        )

    async def cancel_group(self, tenant: str, group: str, reason: str = "", limit: int = 25) -> Answer:
        """Cancel up to ``limit`` jobs of a group; ``more`` says that some are left."""
        return await self._must(
            "cancel_group", f"group {group}", tenant=tenant, group=group, reason=reason, limit=limit
        )

    # -- workers ------------------------------------------------------------------------------------------------------

    async def worker_call(self, function: str, pairs: Mapping[str, Value | None]) -> Answer:
        """A worker's call, for the gateway: the outcome is the gateway's to translate."""
        return await self.call(function, pairs.items())

    async def pause(self, scope: str, target: str, on: bool) -> Answer:
        """Pause or resume ``pool``, a ``tenant`` or a ``worker``."""
        return await self._must("pause", f"{scope} {target}", scope=scope, id=target, on=on)

    async def tenant(self, tenant: str, **limits: Value | None) -> Answer:
        """Set a tenant's ``weight`` and ``max_running`` (``default``: as everybody's); answers what it has."""
        return await self._must("tenant", f"tenant {tenant}", tenant=tenant, **limits)

    async def drain(self, worker: str, on: bool = True) -> Answer:
        """Let a worker finish what it has and take nothing new."""
        return await self._must("drain", f"worker {worker}", worker=worker, on=on)

    async def sweep(self, limit: int = 20) -> Answer:
        """A part of the janitor's round: lapsed leases, due jobs, expiry, retention; ``more``: some is left."""
        return await self.call("sweep", [("limit", limit)])

    async def configure(self, **config: Value | None) -> Answer:
        """Write the settings the functions read; answers the deployment's id."""
        return await self.call("configure", config.items())

    # -- reading ------------------------------------------------------------------------------------------------------

    async def job(self, job_id: str, tenant: str = "") -> Answer:
        """A job's record with its position."""
        return await self._must("job", f"job {job_id}", job=job_id, tenant=tenant)

    async def jobs(self, job_ids: Sequence[str], tenant: str = "") -> list[Answer]:
        """The records of those that there are, without their positions."""
        rows = await self._each("job", job_ids, RECORDS, tenant)
        return [self._opened(row, "") for row in rows]

    async def _each(self, function: str, job_ids: Sequence[str], most: int, tenant: str) -> list[Answer]:
        """The rows of a function that takes several jobs, of so many at a time."""
        rows: list[Answer] = []
        for start in range(0, len(job_ids), most):
            part = "\n".join(job_ids[start : start + most])
            rows += (await self.call(function, [("jobs", part), ("tenant", tenant)])).rows
        return rows

    async def payload(self, job_id: str, tenant: str = "") -> Answer:
        """A job's ``payload`` and ``spec``."""
        return await self._must("payload", f"job {job_id}", job=job_id, tenant=tenant)

    async def deliveries(self, job_id: str, tenant: str = "", redeliver: str | None = None) -> Answer:
        """The ``log`` of a job's webhook deliveries; ``redeliver`` names an entry of it that is due again."""
        return await self._must("deliveries", f"job {job_id}", job=job_id, tenant=tenant, redeliver=redeliver)

    async def list_jobs(
        self,
        tenant: str = "",
        status: Sequence[str] = (),
        limit: int = 50,
        before: str = "",
        filters: Mapping[str, Value | None] | None = None,
    ) -> Answer:
        """Newest first; ``rows`` are records, ``next`` (a pair) continues, also after a page that is not full.

        ``filters``: ``worker``, ``error``, ``model``, ``group``, ``labels``, ``dead``, ``since``, ``until``.
        """
        page: dict[str, Value | None] = {
            "tenant": tenant,
            "status": "\n".join(status),
            "limit": limit,
            "before": before,
        }
        return await self.call("list", [*page.items(), *(filters or {}).items()])

    async def waiting(
        self, tenant: str = "", *, priority: int | None = None, after: str = "", limit: int = 50
    ) -> Answer:
        """Waiting jobs in claim order (rows ``job``), and the classes that nobody can run (rows ``class``)."""
        return await self.call(
            "waiting", [("tenant", tenant), ("priority", priority), ("after", after or None), ("limit", limit)]
        )

    async def ended(
        self,
        *,
        since: int | None = None,
        until: int | None = None,
        limit: int = 100,
        read: Callable[[Any], Answer] = parse,
        **filters: str,
    ) -> Answer:
        """Jobs by when they ended, the latest first; ``next`` is the ``until`` that goes on.

        Filters: ``tenant``, ``worker``, ``status`` (lines; else completed and failed).
        """
        page: dict[str, Value | None] = {"since": since, "until": until, "limit": limit}
        return await self.call("ended", [*page.items(), *filters.items()], read)

    async def stats(self, tenant: str = "") -> Answer:
        """Counts, totals, depth by priority, workers."""
        return await self.call("stats", [("tenant", tenant)])

    async def metrics(self, classes: Iterable[str] = ()) -> Answer:
        """Histograms, and what waits by class (``classes`` first); one row a class."""
        return await self.call("metrics", [("classes", "\n".join(classes))])

    async def workers(self, worker: str = "", *, jobs: bool = False, read: Callable[[Any], Answer] = parse) -> Answer:
        """The fleet's records, one row a worker; read a hundred (with ``jobs``, 40) at a time, so that no call is long.

        The names are read first: heartbeats change the order, and each worker is to be there once.
        ``jobs``: each row has rows of its own, what the worker does with each of its jobs.
        """
        names = [worker] if worker else (await self.call("workers", [("names", 1)])).lines("names")
        step = 40 if jobs else 100
        names = [name for name in names if "\n" not in name]  # a URL may ask for anything
        answer = Answer("ok")
        for start in range(0, len(names), step):
            part = "\n".join(names[start : start + step])
            answer.rows += (await self.call("workers", [("worker", part), ("jobs", jobs or None)], read)).rows
        return answer

    async def fleet(self, known: Sequence[str] = ()) -> Answer:
        """The live capability profiles, one row a profile; without the JSON of those that are ``known``."""
        told: dict[str, bytes] = {}
        while True:
            answer = await self.call("fleet", [("known", "\n".join([*known, *told]))])
            told |= {row.text("profile"): row.pairs["json"] for row in answer.rows if row.pairs["json"]}
            if not answer.flag("more"):
                break
        for row in answer.rows:
            row.pairs["json"] = told.get(row.text("profile"), b"")
        return answer

    async def ranges(self, profile: str) -> bytes:
        """What values the inputs of a profile's node classes take, as its workers told it; empty: not told."""
        return (await self.call("ranges", [("profile", profile)])).pairs.get("ranges", b"")

    async def group(self, tenant: str, group: str) -> Answer:
        """A group's counts."""
        return await self._must("group", f"group {group}", tenant=tenant, group=group)

    async def watch(self, job_id: str, tenant: str = "", *, px: int | None = None, again: bool = False) -> Answer:
        """Say for 15 s that somebody watches the job's previews, up to ``px`` pixels; ``again``: still does."""
        return await self._must("watch", f"job {job_id}", job=job_id, tenant=tenant, px=px or None, again=again or None)

    async def lease(self, job_id: str, attempt: int, token: str) -> Answer:
        """Check an upload's ticket."""
        return await self._must("lease", f"job {job_id}", job=job_id, attempt=attempt, token=token)

    async def replicas(self) -> list[str]:
        """Where the pool's brokers reach each other, those that live."""
        return (await self.call("replicas")).lines("replicas")

    async def forecast(
        self, tenant: str = "", *, job: str | None = None, job_class: str = "", priority: int = 0
    ) -> Answer:
        """What lies before a waiting ``job``, or before one of ``job_class`` that would be submitted now."""
        return await self.call(
            "forecast", [("tenant", tenant), ("job", job), ("class", job_class), ("priority", priority)]
        )

    async def forecasts(self, job_ids: Sequence[str]) -> list[Answer]:
        """What lies before each of several waiting jobs."""
        return await self._each("forecast", job_ids, FORECASTS, "")

    async def library(self) -> int:
        """The version of the loaded functions."""
        return (await self.call("version")).number("library")


_FULL = {
    "pool": "The queue is full; try again later.",
    "tenant": "Your tenant has as many jobs waiting as it may; try again when some have started.",
    "bytes": "Your tenant's waiting jobs have as many bytes as they may; try again when some have started.",
}


def _answers(parts: Sequence[Sequence[NewJob]], outcomes: Sequence[list[Answer] | Refusal]) -> list[Answer]:
    """One answer a job of a submit in several calls, of which the last may not have been made."""
    refusals = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if refusals and len(refusals) == len(outcomes):
        raise refusals[0]
    answers: list[Answer] = []
    for number, part in enumerate(parts):
        outcome = outcomes[number] if number < len(outcomes) else refusals[-1]
        answers += [Answer(outcome.code)] * len(part) if isinstance(outcome, Refusal) else outcome
    return answers


def require(answer: Answer, what: str) -> Answer:
    """Return a good answer; raise what a refusal means."""
    outcome = answer.outcome
    if outcome == "not_found":
        raise NotFound(f"There is no {what}.", what=what)
    if outcome == "conflict":
        state = answer.text("status")
        raise Conflict(f"{what.capitalize()} is {state}.", reason=answer.text("reason", "state"), status=state)
    if outcome == "stale_lease":
        raise Conflict(f"The lease on {what} is no longer held.", reason="stale_lease")
    if outcome == "queue_full":
        raise QueueFull(
            _FULL.get(answer.text("scope"), _FULL["pool"]),
            scope=answer.text("scope"),
            retry_after_s=max(1, answer.number("retry_after_ms", 1000) // 1000),
        )
    if outcome == "rate_limited":
        raise RateLimited(
            "Too many jobs a second; send the rest a little later.",
            scope=answer.text("scope"),
            retry_after_s=max(0.001, answer.number("retry_after_ms", 1000) / 1000),
        )
    if outcome in ("loading", "unavailable"):
        raise Unavailable("The queue is not ready; try again.")
    return answer
