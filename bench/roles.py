"""Runs a peer's roles as processes against a server, and measures one figure after another."""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.catalog import Peer
from bench.peers.install import interpreter
from bench.server import Server, server
from bench.stack import ROOT

STAMP = struct.Struct("dd")
Stamps = list[tuple[float, float]]
Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    scale: float = 1.0
    fsync: str = "everysec"
    single: int = 4_000
    bulk: int = 20_000
    latency_s: float = 6
    idle_s: float = 6

    def count(self, jobs: int) -> int:
        """A number of jobs at this scale."""
        return max(200, int(jobs * self.scale))


@dataclass(slots=True)
class Bench:
    """A peer on a server."""

    peer: Peer
    up: Server
    folder: Path
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / f"{self.peer.module}.log"

    def _environment(self, stamps: Path) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("EMQ_", "REDIS_", "PYTHON"))}
        paths = {"BENCH_REDIS_URL": self.up.url, "BENCH_STAMPS": str(stamps), "PYTHONPATH": str(ROOT)}
        return kept | paths | {"PYTHONWARNINGS": "ignore"}

    def produce(self, way: str, count: int) -> float:
        """Enqueue ``count`` jobs in a process of their own; answers jobs a second."""
        command = [*interpreter(self.peer), "produce", way, str(count)]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment(self.folder / "none"), capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{self.peer.name} could not enqueue:\n{done.stdout}\n{done.stderr}")
        return float(done.stdout.split()[-1])

    @contextmanager
    def worker(self, in_flight: int) -> Iterator[Worker]:
        """A worker process for the time of the block."""
        stamps = Path(tempfile.mkstemp(dir=self.folder)[1])
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [*interpreter(self.peer), "work", str(in_flight)], cwd=self.folder, env=self._environment(stamps),
                stdout=log, stderr=log,
            )  # fmt: skip
        try:
            yield Worker(self, process, stamps)
        finally:
            process.kill()
            process.wait()


@dataclass(slots=True)
class Worker:
    """A running worker process."""

    bench: Bench
    process: subprocess.Popen[bytes]
    stamps: Path

    def started(self, count: int, seconds: float = 120) -> Stamps:
        """Wait until ``count`` jobs have started; when each was made and when it started."""
        end = time.monotonic() + seconds
        while self.stamps.stat().st_size < count * STAMP.size:
            if self.process.poll() is not None or time.monotonic() > end:
                tail = self.bench.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self.bench.peer.name} did not run {count} jobs:\n{tail}")
            time.sleep(0.01)
        return list(STAMP.iter_unpack(self.stamps.read_bytes()))[:count]

    def warm(self, way: str = "single", jobs: int = 20) -> int:
        """Run a few jobs, so that the worker is up; answers how many."""
        self.bench.produce(way, jobs)
        self.started(jobs)
        time.sleep(0.5)
        return jobs


def rate(stamps: Stamps) -> float:
    """Jobs a second between the first and the last start, the first 2 % left out."""
    starts = sorted(start for _, start in stamps)[len(stamps) // 50 :]
    return (len(starts) - 1) / (starts[-1] - starts[0])


def enqueueing(bench: Bench, plan: Plan, out: Figures) -> int:
    """Single and bulk enqueue; answers how many jobs wait."""
    count = plan.count(plan.single)
    bench.produce("single", 20)  # what is there once, such as functions, is no cost of a job
    with bench.up.spent() as spent:
        out["enqueue single /s"] = bench.produce("single", count)
    cost = spent[0]
    out["bytes a job"] = cost.bytes / count
    out["enqueue cpu us"], out["enqueue calls"] = cost.cpu_us / count, cost.calls / count
    if not bench.peer.bulk:
        return 20 + count
    more = plan.count(plan.bulk)
    out["enqueue bulk /s"] = bench.produce("bulk", more)
    return 20 + count + more


def small_bulks(bench: Bench, plan: Plan, out: Figures) -> None:
    """Bulk enqueue of fewer jobs a call."""
    bench.produce("single", 20)
    out["enqueue bulk100 /s"] = bench.produce("bulk100", plan.count(plan.bulk))


def draining(bench: Bench, in_flight: int, jobs: int, waiting: int) -> Figures:
    """Drain what waits (filled up to ``jobs``) with one worker process."""
    if waiting < jobs:
        bench.produce("bulk" if bench.peer.bulk else "single", jobs - waiting)
    total = max(jobs, waiting)
    with bench.up.spent() as spent, bench.worker(in_flight) as worker:
        stamps = worker.started(total)
        time.sleep(0.1)
    out = {f"drain {in_flight} /s": rate(stamps)}
    if in_flight == 1:  # with more in flight some put several jobs into one call, others do not
        out |= {"work cpu us": spent[0].cpu_us / total, "work calls": spent[0].calls / total}
        out["work functions"] = spent[0].functions / total
    return out


def waiting_worker(bench: Bench, plan: Plan, out: Figures) -> None:
    """Idle load, then latency at 50 jobs/s on the otherwise idle worker."""
    with bench.worker(32 if bench.peer.parallel else 1) as worker:
        known = worker.warm()
        with bench.up.spent() as spent:
            time.sleep(plan.idle_s)
        out["idle calls /s"] = spent[0].calls / spent[0].seconds
        count = max(50, int(50 * plan.latency_s))
        bench.produce("paced", count)
        waits = sorted((start - made) * 1000 for made, start in worker.started(known + count)[known + 25 :])
    out["latency p50 ms"] = statistics.median(waits)
    out["latency p95 ms"], out["latency p99 ms"] = waits[int(len(waits) * 0.95)], waits[int(len(waits) * 0.99)]


def measure(peer: Peer, plan: Plan) -> Figures:
    """Every figure of a peer, each step on a fresh server."""
    out: Figures = {}
    with tempfile.TemporaryDirectory(prefix="emq-bench-") as tmp:
        folder = Path(tmp)
        with server(plan.fsync) as up:
            bench = Bench(peer, up, folder)
            waiting = enqueueing(bench, plan, out)
            if peer.parallel:
                out |= draining(bench, 32, plan.count(peer.jobs), waiting)
        if peer.bulk:
            with server(plan.fsync) as up:
                small_bulks(Bench(peer, up, folder), plan, out)
        with server(plan.fsync) as up:
            out |= draining(Bench(peer, up, folder), 1, plan.count(peer.jobs_one), 0)
        with server(plan.fsync) as up:
            waiting_worker(Bench(peer, up, folder), plan, out)
    out["cpu us a job"] = out["enqueue cpu us"] + out["work cpu us"]
    out["calls a job"] = out["enqueue calls"] + out["work calls"]
    return out
