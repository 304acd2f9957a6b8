"""Loads, waits and predicted starts: the real functions against plain first-in-first-out, in simulated time."""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field

from bench.simulation import Pool, Worker, job, profile
from broker.jobs.estimates import Forecast
from broker.queue.queue import Answer, NewJob

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
