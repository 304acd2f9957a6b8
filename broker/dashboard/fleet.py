"""``/``: one card (or row) a GPU, with what it does right now; and what is done to workers."""

from __future__ import annotations

from functools import partial
from typing import Any

from aiohttp import web

from broker.access.identity import Role
from broker.api.services import Services, services
from broker.dashboard.forms import done, read_form
from broker.dashboard.frame import Page, View, add_action, add_page
from broker.dashboard.previews import PREVIEWS, Previews

MOST = 400
"""Workers on one page."""


def add_to(app: web.Application) -> None:
    """Register the page and its actions."""
    add_page(app, Page("fleet", "/", "Fleet", "fleet.html", partial(read, app), nav="Fleet"))
    for verb in ("pause", "resume", "drain"):
        add_action(app, f"/ui/workers/{{worker_id}}/{verb}", act, Role.ADMIN)


async def read(app: web.Application, parts: Services, view: View) -> dict[str, Any]:
    """The workers, live ones first, with what each does; other tenants' jobs are not named."""
    workers, load = await parts.operations.working(), await parts.history.gpu_load()
    for worker in workers:
        dress(worker, load, app[PREVIEWS], view)
    live = [worker for worker in workers if worker["status"] != "offline"]
    gone = [worker for worker in workers if worker["status"] == "offline"]
    shown = (live + gone)[:MOST]
    return {"workers": shown, "hidden": len(workers) - len(shown), "layout": view.get("layout", "grid")}


def dress(worker: dict[str, Any], load: dict[str, list[float]], previews: Previews, view: View) -> None:
    """Add what a card shows beyond the record: how busy it was, its GPUs in a line, what may be seen of its jobs."""
    worker["history"] = tuple(load.get(worker["worker_id"], ()))
    worker["gpu"] = ", ".join(gpu["name"] for gpu in worker["gpus"])
    if worker["doing"] and worker["status"] == "idle":
        worker["status"] = "busy"  # the heartbeat that says so is still to come
    for job in worker["doing"]:
        job["mine"] = view.sees in ("", job["tenant"])
        job["preview"] = previews.version(job["job_id"])
    own = (job["job_id"] for job in worker["doing"] if job["mine"] and job["phase"] != "finishing")
    worker["runs"] = next(own, "")


async def act(request: web.Request) -> web.StreamResponse:
    """Pause, resume or drain a worker."""
    form = await read_form(request)
    ops, worker = services(request).operations, request.match_info["worker_id"]
    verb = request.path.rpartition("/")[2]
    if verb == "drain":
        await ops.drain(worker)
        return done(request, form, f"{worker} finishes what it has and takes nothing new.")
    await ops.pause("worker", worker, verb == "pause")
    return done(request, form, f"{worker} takes no more jobs." if verb == "pause" else f"{worker} takes jobs again.")
