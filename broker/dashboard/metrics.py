"""``/metrics-view``: throughput, waits and runs, how busy the GPUs are, who uses them."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import Any

from aiohttp import web

from broker.api.services import Services
from broker.dashboard.frame import Page, View, add_page
from broker.jobs.history import OTHERS

SPANS = {"60": "1 h", "360": "6 h", "1440": "24 h"}
POINTS = 60
MOST_KINDS, MOST_GPUS = 15, 24


def add_to(app: web.Application) -> None:
    """Register the page."""
    add_page(
        app,
        Page(
            "metrics", "/metrics-view", "Metrics", "metrics.html", partial(read, Figures()), nav="Metrics", every_s=0.75
        ),
    )


async def read(figures: Figures, parts: Services, view: View) -> dict[str, Any]:
    """Sixty points over the last minutes (``span``), and tables by kind of job and tenant."""
    minutes = int(view.get("span", "60")) if view.get("span", "60") in SPANS else 60
    found = figures.of(await parts.history.samples(minutes), minutes)
    tenants = found["tenants"]
    if view.sees:
        tenants = {name: number for name, number in tenants.items() if name == view.sees}
    estimates = (await parts.operations.stats("", view.max_age_s))["estimates"]
    return {**found, "minutes": minutes, "spans": SPANS, "tenants": tenants, "estimates": estimates}


class Figures:
    """What follows from the samples of a span: the page is looked at far more often than there is a new one."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[int, int], dict[str, Any]]] = {}

    def of(self, samples: list[dict[str, Any]], minutes: int) -> dict[str, Any]:
        """The charts and tables."""
        state = len(samples), samples[-1]["t"] if samples else 0
        known = self._known.get(minutes)
        if known is None or known[0] != state:
            known = self._known[minutes] = state, _figures(samples, max(1, minutes // POINTS))
        return known[1]


def _figures(samples: list[dict[str, Any]], size: int) -> dict[str, Any]:
    groups = [samples[at : at + size] for at in range(0, len(samples), size)]
    if len(groups) == 1:
        groups *= 2  # a course has two ends
    return {
        "size": size, "samples": len(samples), "charts": _charts(groups, size), "kinds": _kinds(samples)[:MOST_KINDS],
        "gpus": _gpus(groups), "tenants": _tenants(samples),
    }  # fmt: skip


def _charts(groups: list[list[dict[str, Any]]], size: int) -> list[dict[str, Any]]:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values) if values else 0

    done = [sum(k["n"] - k["failed"] for s in g for k in s["kinds"].values()) / size for g in groups]
    failed = [sum(k["failed"] for s in g for k in s["kinds"].values()) / size for g in groups]
    busy = [mean([load for s in g for load in s["gpus"].values()]) for g in groups]
    return [
        {"name": "Completed a minute", "unit": "", "values": done, "kind": "good"},
        {"name": "Failed a minute", "unit": "", "values": failed, "kind": "bad"},
        {"name": "Waiting", "unit": "", "values": [g[-1]["queued"] for g in groups], "kind": "wait"},
        {"name": "GPUs busy", "unit": " %", "values": busy, "kind": "busy", "most": 100},
        {"name": "Wait, p95", "unit": " s", "values": [_p95(g, "wait_ms") for g in groups], "kind": "wait"},
        {"name": "Run, p95", "unit": " s", "values": [_p95(g, "run_ms") for g in groups], "kind": "busy"},
    ]


def _gpus(groups: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """How busy each GPU was, in percent, the least busy first: over the time, and point by point."""
    names = {name for group in groups for sample in group for name in sample["gpus"]}
    rows = []
    for name in names:
        points = [[sample["gpus"].get(name, 0) for sample in group] for group in groups]
        values = [sum(point) / len(point) for point in points]
        rows.append({"worker_id": name, "busy": sum(values) / len(values), "values": values})
    return sorted(rows, key=lambda row: (row["busy"], row["worker_id"]))[:MOST_GPUS]


def _p95(group: list[dict[str, Any]], name: str) -> float:
    """The worst kind's p95, in s: an average of quantiles would be none."""
    found = [k[name][1] for sample in group for k in sample["kinds"].values() if k[name]]
    return float(max(found, default=0)) / 1000


def _kinds(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each kind of job did; waits and runs are the medians and the worst p95 of its minutes, in ms."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in samples:
        for kind, figures in sample["kinds"].items():
            found[kind].append(figures)
    rows = [
        {
            "kind": kind, "model": "" if kind.startswith(("class ", OTHERS)) else kind.partition(" + ")[0],
            "n": sum(f["n"] for f in minutes), "failed": sum(f["failed"] for f in minutes),
            "wait_p50": _over(minutes, "wait_ms", "p50"), "wait_p95": _over(minutes, "wait_ms", "p95"),
            "run_p50": _over(minutes, "run_ms", "p50"), "run_p95": _over(minutes, "run_ms", "p95"),
        }
        for kind, minutes in found.items()
    ]  # fmt: skip
    return sorted(rows, key=lambda row: -row["n"])


def _over(minutes: list[dict[str, Any]], name: str, which: str) -> float | None:
    pairs = sorted(figures[name] for figures in minutes if figures[name])
    if not pairs:
        return None
    if which == "p50":
        return float(sorted(pair[0] for pair in pairs)[len(pairs) // 2])
    return float(max(pair[1] for pair in pairs))


def _tenants(samples: list[dict[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for sample in samples:
        for name, number in sample["tenants"].items():
            counts[name] += number
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))
