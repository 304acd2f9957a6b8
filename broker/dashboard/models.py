"""``/models``: which model files the fleet has, where they are loaded, how much they are used, what a load costs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aiohttp import web

from broker.api.services import Services
from broker.dashboard.frame import Page, View, add_page
from broker.jobs.demand import Demand, Wanted

MOST = 500
HOUR_MIN = 60


@dataclass(slots=True)
class Model:
    """One model file. ``jobs`` ended in the last hour; run times are p50 in ms."""

    name: str
    folder: str
    on: int = 0
    """Live workers that have the file."""
    loaded: list[str] = field(default_factory=list)
    jobs: int = 0
    failed: int = 0
    run_ms: float | None = None
    wanted: Wanted = field(default_factory=Wanted)


def add_to(app: web.Application) -> None:
    """Register the page."""
    add_page(
        app, Page("models", "/models", "Models", "models.html", partial(read, Demand()), nav="Models", every_s=0.75)
    )


async def read(demand: Demand, parts: Services, view: View) -> dict[str, Any]:
    """The model files that live workers have, the most used first; ``folder`` and ``q`` choose."""
    fleet = await parts.operations.fleet.view()
    workers = await parts.operations.working(max_age_s=view.max_age_s)
    models: dict[str, Model] = {}
    for profile in fleet.profiles:
        for folder, names in profile.models.items():
            for name in names:
                models.setdefault(f"{folder}/{name}", Model(name, folder)).on += fleet.workers[profile.profile_id]
    live = [worker for worker in workers if worker["status"] != "offline"]
    _loaded(models, live)
    _used(models, await parts.history.samples(HOUR_MIN))
    folders: dict[str, int] = defaultdict(int)
    wanted_by = await demand.by_model(parts.operations.queue)
    for model in models.values():
        folders[model.folder] += 1
        model.wanted = wanted_by.get(model.name, model.wanted)
    wanted, text = view.get("folder"), view.get("q").casefold()
    found = [
        model for model in models.values()
        if (not wanted or model.folder == wanted) and (not text or text in model.name.casefold())
    ]  # fmt: skip
    found.sort(key=lambda model: (-model.jobs, -model.wanted.waiting, -len(model.loaded), model.folder, model.name))
    return {"models": found[:MOST], "hidden": len(found) - MOST, "folders": dict(sorted(folders.items())),
            "folder": wanted, "q": view.get("q"), "total": len(models), "live": len(live)}  # fmt: skip


def _loaded(models: dict[str, Model], live: list[dict[str, Any]]) -> None:
    by_name: dict[str, list[Model]] = defaultdict(list)
    for model in models.values():
        by_name[model.name].append(model)
    for worker in live:
        for name in worker["loaded_models"]:
            for model in by_name.get(name.replace("\\", "/").rpartition(":")[2], by_name.get(name, [])):
                model.loaded.append(worker["worker_id"])


def _used(models: dict[str, Model], samples: list[dict[str, Any]]) -> None:
    """Jobs of the samples' kinds that name a file; the run time is the latest minute's."""
    by_name: dict[str, list[Model]] = defaultdict(list)
    for model in models.values():
        by_name[model.name].append(model)
    for sample in samples:
        for kind, figures in sample["kinds"].items():
            for name in kind.split(" + "):
                for model in by_name.get(name, []):
                    model.jobs += figures["n"]
                    model.failed += figures["failed"]
                    model.run_ms = figures["run_ms"][0] if figures["run_ms"] else model.run_ms
