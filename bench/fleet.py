"""``python -m bench fleet``: a simulated fleet of 10,000 GPUs on the real functions, time set by hand.

Brokers and workers are simulated: they make the calls that real ones make, at the pace of the simulated clock. Printed
is what the Redis process spends on a simulated second, call by call, and so how many GPUs one Redis carries.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from bench.affinity import LOAD_MS, START
from bench.server import Server, server
from bench.simulation import Call, Pool, Worker, claiming, finishing, job, profile, submission
from broker.queue.queue import Answer, parse

MODELS = [f"model{number}.safetensors" for number in range(40)]
PROFILES, TENANTS, BULK = 20, 50, 10
TICK_MS, BEAT_MS, REPORT_MS = 500, 10_000, 1_000
PART = 500
"""Calls of one trip."""
PLANNED_LOAD = 0.6
"""The share of a core that is planned with: the rest is for bursts, failover and persistence."""


@dataclass(slots=True)
class Gpu:
    """A simulated worker and what it runs."""

    worker: Worker
    models: list[str]
    running: Answer | None = None
    took_ms: int = 0
    cold: bool = False
    reports: int = 0


@dataclass(slots=True)
class Costs:
    """What each kind of call cost."""

    cpu_us: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)

    def each(self, kind: str) -> float:
        """Redis CPU of one call (for submits: of one job), in µs."""
        return self.cpu_us[kind] / max(1, self.calls[kind])


class Fleet:
    """The fleet and its simulated time."""

    def __init__(self, up: Server, pool: Pool, gpus: int, run_ms: int) -> None:
        self.up, self.pool, self.run_ms = up, pool, run_ms
        self.dice = random.Random(5)
        self.now = 0
        self.costs = Costs()
        self.model_of: dict[str, str] = {}
        self.loads = self.started = 0
        self.ends: list[tuple[int, int]] = []
        self.gpus = []
        for number in range(gpus):
            mine = random.Random(number % PROFILES).sample(MODELS, 8)
            self.gpus.append(Gpu(Worker(f"gpu{number}"), mine))

    def _run(self, kind: str, calls: list[Call], jobs: int = 0) -> list[Any]:
        """Make calls of one kind, and book what Redis spent."""
        out: list[Any] = []
        with self.up.spent() as spent:
            for start in range(0, len(calls), PART):
                out += self.pool.calls(calls[start : start + PART])
        self.costs.cpu_us[kind] += int(spent[0].cpu_us)
        self.costs.calls[kind] += jobs or len(calls)
        return out

    def register(self) -> None:
        """All workers say hello and claim."""
        self.pool.at(START)
        for gpu in self.gpus:
            self.pool.register(gpu.worker, profile(gpu.models))
        answers = self._run("claim", [("claim", claiming(gpu.worker)) for gpu in self.gpus])
        for number, raw in enumerate(answers):
            self._start(number, parse(raw), stagger=True)

    def submit(self, count: int) -> None:
        """New jobs, ten a call."""
        by_tenant: dict[str, list[Any]] = defaultdict(list)
        for _ in range(count):
            model = MODELS[min(len(MODELS) - 1, int(self.dice.paretovariate(0.5)) - 1)]
            new = job(b"{}" + b" " * 600, [model])
            self.model_of[new.job_id] = model
            by_tenant[f"tenant{self.dice.randrange(TENANTS)}"].append(new)
        calls: list[Call] = []
        for tenant, jobs in by_tenant.items():
            for start in range(0, len(jobs), BULK):
                calls.append(("submit", submission(tenant, jobs[start : start + BULK])))
        self._run("submit", calls, count)

    def _start(self, number: int, answer: Answer, *, stagger: bool = False) -> None:
        gpu = self.gpus[number]
        gpu.running, gpu.reports = None, 0
        if answer.outcome != "job":
            assert answer.outcome in ("none", "again"), answer
            return
        model = self.model_of.pop(answer.text("job_id"))
        gpu.running, gpu.cold = answer, gpu.worker.loaded != model
        gpu.worker.loaded = model
        run = self.dice.expovariate(1 / self.run_ms) + 500
        gpu.took_ms = int(run + LOAD_MS * gpu.cold)
        self.loads += gpu.cold
        self.started += 1
        early = self.dice.random() if stagger else 0
        heapq.heappush(self.ends, (self.now + int(gpu.took_ms * (1 - early)), number))

    def tick(self, arrivals: int) -> None:
        """Half a second: ends of jobs, new jobs, reports, heartbeats, a sweep."""
        self.now += TICK_MS
        self.pool.at(START + self.now)
        self.submit(arrivals)
        ended = []
        while self.ends and self.ends[0][0] <= self.now:
            ended.append(heapq.heappop(self.ends)[1])
        calls: list[Call] = []
        for number in ended:
            gpu = self.gpus[number]
            assert gpu.running
            calls.append(("finish", finishing(gpu.worker, gpu.running, gpu.took_ms, gpu.cold)))
        for number, raw in zip(ended, self._run("finish+claim", calls), strict=True):
            answer = parse(raw)
            assert answer.outcome == "ok", answer
            assert answer.next, answer
            self._start(number, answer.next)
        self._run("report", self._reports())
        self._run("heartbeat", self._beats())
        self._run("sweep", [("sweep", ["limit", "100"])])

    def _turn(self, every_ms: int) -> range:
        """The workers whose turn it is, spread evenly over ``every_ms``."""
        parts = every_ms // TICK_MS
        return range((self.now // TICK_MS) % parts, len(self.gpus), parts)

    def _reports(self) -> list[Call]:
        calls: list[Call] = []
        for number in self._turn(REPORT_MS):
            gpu = self.gpus[number]
            if gpu.running:
                gpu.reports += 1
                calls.append(("report", [
                    "job", gpu.running.text("job_id"), "token", gpu.running.text("lease"), "p", str(gpu.reports),
                    "data", '{"progress":50.0,"node":{"id":"3","class_type":"KSampler"},"nodes_done":3,"attempt":1}',
                    "store", "1" if gpu.reports % 5 == 1 else "0",
                ]))  # fmt: skip
        return calls

    def _beats(self) -> list[Call]:
        calls: list[Call] = []
        for number in self._turn(BEAT_MS):
            gpu = self.gpus[number]
            jobs = f"{gpu.running.text('job_id')} {gpu.running.text('lease')}" if gpu.running else ""
            status = "busy" if gpu.running else "idle"
            calls.append(("heartbeat", [*gpu.worker.who, "status", status, "jobs", jobs, "loaded", gpu.worker.loaded]))
        return calls


def report(fleet: Fleet, seconds: int, jobs_per_s: float) -> None:
    """What a simulated second costs, and what one Redis carries."""
    print(f"{'call':14}{'calls/s':>12}{'us each':>10}{'% of a core':>13}")
    whole = 0.0
    for kind in ("submit", "finish+claim", "report", "heartbeat", "sweep"):
        per_s = fleet.costs.calls[kind] / seconds
        share = fleet.costs.cpu_us[kind] / seconds / 10_000
        whole += share
        print(f"{kind:14}{per_s:12,.0f}{fleet.costs.each(kind):10.0f}{share:13.1f}")
    busy = sum(gpu.running is not None for gpu in fleet.gpus)
    print(f"together {whole:.0f} % of a core at {jobs_per_s:,.0f} jobs/s; {busy:,} of {len(fleet.gpus):,} GPUs run")
    print(f"model loads: {fleet.loads / max(1, fleet.started):.2f} of the starts")
    per_job = fleet.costs.each("submit") + fleet.costs.each("finish+claim")
    per_gpu_s = fleet.costs.each("report") * 1000 / REPORT_MS + fleet.costs.each("heartbeat") * 1000 / BEAT_MS
    print(f"\nGPUs that one Redis carries at {PLANNED_LOAD:.0%} of a core, one report a second and GPU:")
    for run_s in (2, 5, 10, 30, 60, 300):
        gpus = PLANNED_LOAD * 1e6 / (per_job / run_s + per_gpu_s)
        print(f"  jobs of {run_s:3} s: {gpus:9,.0f} GPUs, {gpus / run_s:8,.0f} jobs/s")


def main(argv: list[str] | None = None) -> int:
    """Run the simulation."""
    parser = argparse.ArgumentParser(prog="bench fleet", description=__doc__)
    parser.add_argument("--gpus", type=int, default=10_000)
    parser.add_argument("--seconds", type=int, default=40, help="simulated")
    parser.add_argument("--run", type=float, default=10, help="mean run of a job, seconds, loads apart")
    args = parser.parse_args(argv)
    with server("everysec") as up:
        pool = Pool(up.redis, lease_ms=30_000)
        fleet = Fleet(up, pool, args.gpus, int(args.run * 1000))
        fleet.submit(args.gpus * 3)
        fleet.register()
        fleet.costs = Costs()
        done = fleet.started
        rate = args.gpus / args.run
        for _ in range(args.seconds * 1000 // TICK_MS):
            fleet.tick(int(rate * TICK_MS / 1000))
        report(fleet, args.seconds, (fleet.started - done) / args.seconds)
        used = up.redis.info("memory")["used_memory"]
        waiting = pool.call("stats", "tenant", "").text("pending")
        print(f"\n{used / 1e6:,.0f} MB in use, {waiting} jobs wait")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
