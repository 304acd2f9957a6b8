"""Loads, waits and predicted starts: the real functions against plain first-in-first-out, in simulated time."""

from __future__ import annotations

import bisect
import heapq
import math
import random
from collections import deque
from dataclasses import dataclass, field

from bench.simulation import Pool, Worker, job, profile
from broker.jobs.estimates import Forecast
from broker.queue.new_job import NewJob
from broker.queue.queue import Answer

MODELS = 8
WORKERS = 4
RUN_MS, LOAD_MS = 4_000, 15_000
START = 1_800_000_000_000


@dataclass(slots=True)
class Outcome:
    """What a policy did with the stream."""

    loads: int = 0
    waits_ms: list[int] = field(default_factory=list)
    predicted: int = 0
    within_p50: float = 0.0
    """The share of the predicted starts that came by their p50."""
    within_p90: float = 0.0

    def p95_s(self) -> float:
        """95th percentile of the wait for a start."""
        return sorted(self.waits_ms)[int(len(self.waits_ms) * 0.95)] / 1000


def stream(jobs: int, per_s: float, seed: int = 1) -> list[tuple[int, str]]:
    """Arrivals (ms, model): Poisson, models evenly mixed."""
    dice = random.Random(seed)
    at, out = 0.0, []
    for _ in range(jobs):
        at += dice.expovariate(per_s) * 1000
        out.append((int(at), f"model{dice.randrange(MODELS)}.safetensors"))
    return out


def fifo(arrivals: list[tuple[int, str]]) -> Outcome:
    """The oldest job goes to whoever is free."""
    out = Outcome()
    free = [(0, number, "") for number in range(WORKERS)]
    heapq.heapify(free)
    for at, model in arrivals:
        since, number, loaded = heapq.heappop(free)
        start = max(at, since)
        cold = loaded != model
        out.loads += cold
        out.waits_ms.append(start - at)
        heapq.heappush(free, (start + RUN_MS + LOAD_MS * cold, number, model))
    return out


class Foresight:
    """One that knows all arrivals, holds no work back, and lets wait whom it likes: how few loads are possible, about.

    A job starts at once while a worker is idle: on one with its model, else on the one whose model is needed last. A
    worker that gets free takes the oldest job of its model, else the oldest of all. That these are the fewest loads of
    any such policy is not proven.
    """

    def __init__(self, arrivals: list[tuple[int, str]]) -> None:
        self.out = Outcome()
        self._arrivals = arrivals
        self._times: dict[str, list[int]] = {}
        for at, model in arrivals:
            self._times.setdefault(model, []).append(at)
        self._loaded = [""] * WORKERS
        self._idle = set(range(WORKERS))
        self._ends: list[tuple[int, int]] = []

    def run(self) -> Outcome:
        """Replay the stream."""
        coming, waiting = deque(self._arrivals), list[tuple[int, str]]()
        while coming or self._ends:
            if coming and (not self._ends or coming[0][0] <= self._ends[0][0]):
                at, model = coming.popleft()
                if self._idle:
                    self._start(self._place(model, at), (at, model), at)
                else:
                    waiting.append((at, model))
            else:
                now, worker = heapq.heappop(self._ends)
                self._idle.add(worker)
                if waiting:
                    warm = (number for number, (_, model) in enumerate(waiting) if model == self._loaded[worker])
                    self._start(worker, waiting.pop(next(warm, 0)), now)
        return self.out

    def _place(self, model: str, now: int) -> int:
        return max(self._idle, key=lambda worker: (self._loaded[worker] == model, self._needed(worker, now)))

    def _needed(self, worker: int, now: int) -> float:
        """When the model of an idle worker is needed next; never, if another idle one has it too."""
        model = self._loaded[worker]
        times = self._times.get(model, [])
        index = bisect.bisect_right(times, now)
        if index == len(times) or any(self._loaded[other] == model for other in self._idle - {worker}):
            return math.inf
        return times[index]

    def _start(self, worker: int, job: tuple[int, str], now: int) -> None:
        at, model = job
        cold = self._loaded[worker] != model
        self.out.loads += cold
        self.out.waits_ms.append(now - at)
        self._loaded[worker] = model
        self._idle.discard(worker)
        heapq.heappush(self._ends, (now + RUN_MS + LOAD_MS * cold, worker))


def predict(pool: Pool, new: NewJob) -> None:
    """Note when the job is expected to start, as a broker does at the submit."""
    answer = pool.call("forecast", "tenant", "default", "class", new.job_class, "priority", "0")
    if forecast := Forecast.read(answer):
        new.estimate = forecast.predict().stored()


def emq(pool: Pool, arrivals: list[tuple[int, str]]) -> Outcome:
    """The queue's own choice, with simulated workers that load and run as long as the plain queue's."""
    out, made = Outcome(), dict[str, tuple[int, str]]()
    workers = {f"w{number}": Worker(f"w{number}") for number in range(WORKERS)}
    pool.at(START)
    for worker in workers.values():
        pool.register(worker, profile([f"model{n}.safetensors" for n in range(MODELS)]))
        assert pool.claim(worker) is None
    idle, pending, ends = set(workers), deque(arrivals), list[tuple[int, str, Answer, bool]]()

    def start(name: str, got: Answer, now: int) -> None:
        worker, (at, model) = workers[name], made.pop(got.text("job_id"))
        cold = worker.loaded != model
        out.loads += cold
        out.waits_ms.append(now - at)
        worker.loaded = model
        idle.discard(name)
        pool.call("report", "job", got.text("job_id"), "token", got.text("lease"), "p", "1", "data", '{"progress":0}')
        heapq.heappush(ends, (now + RUN_MS + LOAD_MS * cold, name, got, cold))

    while pending or ends:
        if pending and (not ends or pending[0][0] <= ends[0][0]):
            now, model = pending.popleft()
            pool.at(START + now)
            new = job(b"{}", [model])
            made[new.job_id] = (now, model)
            predict(pool, new)
            pool.submit("default", [new])
            for name in [name for name in idle if pool.hinted(workers[name])]:
                if got := pool.claim(workers[name]):
                    start(name, got, now)
        else:
            now, name, done, cold = heapq.heappop(ends)
            pool.at(START + now)
            got = pool.finish(workers[name], done, RUN_MS + LOAD_MS * cold, cold)
            idle.add(name)
            if got:
                start(name, got, now)
    stats = pool.call("stats", "tenant", "")
    out.predicted = stats.number("est_total")
    out.within_p50 = stats.number("est_within_p50_total") / max(1, out.predicted)
    out.within_p90 = stats.number("est_within_p90_total") / max(1, out.predicted)
    return out
