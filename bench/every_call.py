"""Calls of every function of the queue on a pool that is full: none may hold the server up."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from bench.simulation import Call, Pool, Worker, claiming, finishing, job, profile, submission
from broker.queue.loader import library
from broker.queue.new_job import SUBMIT_CHUNK
from broker.queue.queue import Answer, parse
from broker.queue.turns import MOST, sections

SLOW_US = 5000
TRIES = 3
FUNCTIONS = frozenset(re.findall(r"'emq_(\w+)'", library().text))


class Caller:
    """Calls functions and notes how much of the server's CPU each call took, in µs.

    The slow log has the wall's time, in which other processes have their turns; this is what the server itself used.
    """

    def __init__(self, pool: Pool, models: list[str]) -> None:
        self.pool, self.models = pool, models
        self.calls: list[tuple[str, float]] = []

    def _cpu_us(self) -> float:
        used: dict[str, float] = self.pool.redis.info("cpu")
        return (used["used_cpu_user_main_thread"] + used["used_cpu_sys_main_thread"]) * 1e6

    def call(self, function: str, *args: bytes | str) -> Answer:
        """One call."""
        return parse(self.raw((function, list(args))))

    def raw(self, call: Call) -> Any:
        """One call whose answer is a list, or whose arguments are made elsewhere."""
        return self.measure(call[0], lambda: self.pool.raw(*call))

    def measure(self, name: str, make: Callable[[], Any]) -> Any:
        """Whatever the server does."""
        before = self._cpu_us()
        answer = make()
        self.calls.append((name, self._cpu_us() - before))
        return answer

    def register(self, worker: Worker, capabilities: str, slots: int = 1) -> None:
        """A worker comes."""
        more: list[bytes | str] = ["machine", "m", "profile", capabilities, "info", "{}", "slots", str(slots)]
        assert self.call("register", *worker.who, *more).outcome == "ok"

    def submit(self, count: int, **more: Any) -> list[str]:
        """Jobs of one class; their ids."""
        jobs = [job(b"{}", self.models[:1], **more) for _ in range(count)]
        for begin in range(0, count, SUBMIT_CHUNK):
            for row in self.raw(("submit", submission("tenant1", jobs[begin : begin + SUBMIT_CHUNK]))):
                assert parse(row).outcome == "ok", row
        return [each.job_id for each in jobs]

    def start(self, worker: Worker) -> tuple[Answer, list[bytes | str]]:
        """Claim and report; the answer, and the arguments that name the claim."""
        got = parse(self.raw(("claim", claiming(worker))))
        assert got.outcome == "job", got
        held: list[bytes | str] = ["job", got.text("job_id"), "token", got.text("lease")]
        assert self.call("report", *held, "p", "1", "data", '{"progress":1}', "store", "1").outcome == "ok"
        return got, held


def of_workers(on: Caller, worker: Worker) -> None:
    """A job's way with each end it can have; workers that come and go."""
    on.submit(100)
    got, held = on.start(worker)
    on.call("watch", "job", got.text("job_id"), "tenant", "")
    on.call("preview", *held, "frame", "1", "data", "x" * 40_000)
    on.call("lease", "job", got.text("job_id"), "attempt", got.text("attempt"), "token", got.text("lease"))
    on.call("keep", "instance", worker.name)
    on.call("executed", *held, "timings", "{}", "exec_ms", "900", "cold", "0")
    on.raw(("finish", finishing(worker, got, 1000, cold=False, claim=False)))
    together(on, Worker(f"{worker.name}-many"))
    _, held = on.start(worker)
    on.call("fail", *held, "code", "node_error", "error", '{"code":"node_error"}')
    claimed = parse(on.raw(("claim", claiming(worker))))
    on.call("release", "job", claimed.text("job_id"), "token", claimed.text("lease"), "reason", "bench")
    on.call("heartbeat", *worker.who, "status", "idle", "jobs", "")
    on.call("offer", *worker.who)
    for leaving in ("leave", "gone", "bye"):
        new = Worker(f"{worker.name}-{leaving}")
        on.register(new, profile([*on.models[:3], leaving]))
        on.start(new)
        on.call(leaving, *new.who)


def together(on: Caller, worker: Worker) -> None:
    """Ends of as many jobs as a broker puts into one call."""
    on.register(worker, profile(on.models), MOST)
    ends = [("finish", finishing(worker, on.start(worker)[0], 1000, cold=False)) for _ in range(MOST)]
    on.raw(("turns", sections(ends)))
    on.call("bye", *worker.who)


def of_people(on: Caller, worker: Worker) -> None:
    """What people do to jobs, groups, tenants and workers, and what they look at."""
    first, second, third, *_ = on.submit(100, group="bench", hook="cancelled")
    on.call("priority", "job", first, "tenant", "", "priority", "3")
    on.call("priority", "job", second, "tenant", "", "front", "1")
    on.call("cancel", "job", third, "tenant", "", "reason", "bench")
    on.call("retry", "job", third, "tenant", "")
    on.call("cancel", "job", third, "tenant", "", "reason", "bench")
    entries = on.call("outbox", "limit", "20", "lease_ms", "1000").lines("entries")
    on.call("delivered", "entry", entries[0].rsplit(" ", 1)[0], "log", "{}")
    on.call("deliveries", "job", third, "tenant", "")
    on.call("delete", "job", third, "tenant", "")
    on.call("group", "tenant", "tenant1", "group", "bench")
    on.call("cancel_group", "tenant", "tenant1", "group", "bench", "reason", "bench")
    for scope, name in (("pool", ""), ("tenant", "tenant1"), ("worker", worker.name)):
        for on_off in ("1", "0"):
            on.call("pause", "scope", scope, "id", name, "on", on_off)
            on.raw(("claim", claiming(worker)))
    for on_off in ("1", "0"):
        on.call("drain", "worker", worker.name, "on", on_off)
    on.call("tenant", "tenant", "tenant2", "weight", "2", "max_running", "1")
    read(on, first)


def read(on: Caller, waiting: str) -> None:
    """Records, listings, forecasts, figures."""
    for tenant in ("", "tenant1"):
        on.call("job", "job", waiting, "tenant", tenant)
        on.call("list", "tenant", tenant, "limit", "250")
        on.call("waiting", "tenant", tenant, "limit", "100")
        on.call("ended", "tenant", tenant, "limit", "250")
        on.call("stats", "tenant", tenant)
    on.call("payload", "job", waiting, "tenant", "")
    on.call("forecast", "tenant", "tenant1", "job", waiting)
    on.call("class", "class", job(b"", on.models[:1]).job_class)
    on.call("metrics")
    on.call("workers", "limit", "100", "jobs", "1")
    profiles = on.call("fleet").rows
    on.call("ranges", "profile", profiles[0].text("profile"))
    on.call("replicas")
    on.call("version")


def of_brokers(on: Caller, waiting: str) -> None:
    """What brokers do by themselves."""
    on.call("configure", "lease_ms", "30000")
    on.call("throttle", "name", "bench", "rate", "10", "burst", "10")
    on.call("use", "replica", "bench", "ttl_ms", "1000", "changes", "sockets 1 10")
    on.call("sweep", "limit", "100")
    on.call("traces", "limit", "100")
    on.call("repair", "job", waiting)


def costs(pool: Pool, models: list[str], fleet: list[Worker], tries: int = TRIES) -> dict[str, float]:
    """Call every function, by workers that can run everything; the CPU of each one's longest call, in µs.

    All calls are made ``tries`` times (fewer when none was slow), and of each the best counts: what the server did
    besides, and what other processes took of the caches, is not the function's.
    """
    best: list[tuple[str, float]] = []
    for worker in fleet[:tries]:
        on = Caller(pool, models)
        of_workers(on, worker)
        of_people(on, worker)
        of_brokers(on, on.submit(1)[0])
        best = [min(both, key=lambda call: call[1]) for both in zip(best or on.calls, on.calls, strict=True)]
        if all(us <= SLOW_US for _, us in best):
            break
    longest: dict[str, float] = {}
    for name, us in best:
        longest[name] = max(us, longest.get(name, 0))
    return longest
