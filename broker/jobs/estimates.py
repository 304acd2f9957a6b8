"""When a waiting job is expected to start, from what lies before it (``emq_forecast``)."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from broker.errors import EmqError
from broker.protocol.records import EstimatedStart
from broker.queue.queue import Answer, Queue

MAX_AGE_S = 1.0
"""How long a forecast serves further submits of the same class, tenant and priority."""
DISPATCH_MS = (50, 1000)
"""p50 and p90 of the way from a free worker's wake-up to the start."""
MODEL_ERROR = 0.3
"""Part of a predicted wait that the model itself may be wrong by (a standard deviation): no warm jumps are foreseen."""
_P90 = 1.2816
"""A normal distribution's 90th percentile, in standard deviations."""
_DIGITS = 8
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True)
class Prediction:
    """Expected waits in ms from now: half of such jobs start within ``p50``, nine of ten within ``p90``."""

    p50: int
    p90: int

    def after(self, ms: int) -> Prediction:
        """The same for a job that may not start for ``ms``."""
        return Prediction(max(self.p50, ms), max(self.p90, ms + self.p90 - self.p50))

    def stored(self) -> str:
        """As a job's record keeps it."""
        return f"{self.p50} {self.p90}"

    def public(self, now: int) -> EstimatedStart:
        """As clients get it: epoch ms."""
        return EstimatedStart(p50=now + self.p50, p90=now + self.p90)


@dataclass(slots=True)
class Forecast:
    """What ``emq_forecast`` says; times in ms."""

    now: int
    run: float
    spread: float
    """Standard deviation of a run, as a part of the average."""
    workers: int
    busy: int
    rest: float | None
    ahead: float
    ahead_ms: float

    @classmethod
    def read(cls, answer: Answer) -> Forecast | None:
        """``None`` when too little is known (under five runs, nobody who could run it, a pause)."""
        if answer.outcome != "ok":
            return None
        ring = answer.text("ring")
        runs = [int(ring[i : i + _DIGITS]) for i in range(0, len(ring), _DIGITS)]
        average = fmean(runs) if runs else 0.0
        rest = answer.text("rest_ms")
        return cls(
            now=answer.number("now"),
            run=max(1.0, float(answer.text("run_ms", "1"))),
            spread=_deviation(runs, average) / average if average else 0.0,
            workers=max(1, answer.number("workers")),
            busy=answer.number("busy"),
            rest=float(rest) if rest else None,
            ahead=float(answer.text("ahead", "0")),
            ahead_ms=float(answer.text("ahead_ms", "0")),
        )

    def predict(self, extra: int = 0) -> Prediction:
        """The wait of a job with ``extra`` more jobs of its own class before it.

        Workers take jobs as they become free, so the next start is when the total work ahead, spread over all of them,
        has come down to less than one run each.
        """
        jobs, work = self.ahead + extra, self.ahead_ms + extra * self.run
        if self.busy + jobs < self.workers:
            return Prediction(*DISPATCH_MS)
        unknown = self.rest is None
        rest = self.busy * self.run / 2 if self.rest is None else self.rest
        mean = max(0.0, (rest + work - (self.workers - 1) / 2 * self.run) / self.workers)
        phase = self.busy * self.run**2 / 12 if unknown or self.workers > 1 else (self.spread * self.run) ** 2
        queue = (self.spread * work) ** 2 / max(1.0, jobs)
        deviation = math.sqrt((phase + queue) / self.workers**2 + (MODEL_ERROR * mean) ** 2)
        p50 = round(mean) + DISPATCH_MS[0]
        return Prediction(p50, max(round(mean + _P90 * deviation), p50) + DISPATCH_MS[0])


def _deviation(runs: Sequence[int], average: float) -> float:
    """The standard deviation; ``statistics.pstdev`` calculates with fractions, which takes twenty times as long."""
    return math.dist(runs, [average] * len(runs)) / math.sqrt(len(runs))


def _start(forecast: Forecast | None) -> EstimatedStart | None:
    return forecast.predict().public(forecast.now) if forecast else None


@dataclass(slots=True)
class _Known:
    taken_at: float
    forecast: Forecast | None
    since: int = 0
    """Jobs that this replica has submitted there since."""


class Forecasts:
    """Predictions for submits, from forecasts that are at most a second old, and for waiting jobs, fresh."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._known: OrderedDict[tuple[str, str, int], _Known] = OrderedDict()

    async def at_submit(self, tenant: str, class_id: str, priority: int, *, count: bool = True) -> Prediction | None:
        """For a job that is about to be submitted; ``count=False`` for one that is not, in the end."""
        key = (tenant, class_id, priority)
        known = self._known.get(key)
        if known is None or time.monotonic() - known.taken_at > MAX_AGE_S:
            known = self._known[key] = _Known(time.monotonic(), await self._ask(tenant, class_id, priority))
            self._known.move_to_end(key)
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        if known.forecast is None:
            return None
        prediction = known.forecast.predict(known.since)
        known.since += count
        return prediction

    async def of_job(self, job_id: str) -> EstimatedStart | None:
        """When a waiting job is expected to start."""
        try:
            forecast = Forecast.read(await self._queue.forecast(job=job_id))
        except EmqError:
            return None  # the record is good without it
        return _start(forecast)

    async def of_jobs(self, job_ids: Sequence[str]) -> list[EstimatedStart | None]:
        """The same of several."""
        try:
            answers = await self._queue.forecasts(job_ids)
        except EmqError:
            return [None] * len(job_ids)
        return [_start(Forecast.read(answer)) for answer in answers]

    async def _ask(self, tenant: str, class_id: str, priority: int) -> Forecast | None:
        try:
            answer = await self._queue.forecast(tenant=tenant, job_class=class_id, priority=priority)
        except EmqError:
            return None  # the submit itself will say what is wrong
        return Forecast.read(answer)
