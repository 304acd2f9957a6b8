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
MOST_TENANTS = 100


def add_to(app: web.Application) -> None:
    """Register the page and its actions."""
    add_page(app, Page("fleet", "/", "Fleet", "fleet.html", partial(read, app, Dressed()), nav="Fleet"))
    for verb in ("pause", "resume", "drain"):
        add_action(app, f"/ui/workers/{{worker_id}}/{verb}", act, Role.ADMIN)


async def read(app: web.Application, dressed: Dressed, parts: Services, view: View) -> dict[str, Any]:
    """The workers, live ones first, with what each does; other tenants' jobs are not named."""
    told, load = await parts.operations.working(max_age_s=view.max_age_s), await parts.history.gpu_load()
    workers = dressed.all(told, load, app[PREVIEWS], view)
    live = [worker for worker in workers if worker["status"] != "offline"]
    gone = [worker for worker in workers if worker["status"] == "offline"]
    shown = (live + gone)[:MOST]
    return {"workers": shown, "hidden": len(workers) - len(shown), "layout": view.get("layout", "grid")}


class Dressed:
    """What cards showed last, by whose jobs may be seen: most workers are what they were half a second ago."""

    def __init__(self) -> None:
        self._known: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {}

    def all(
        self, told: list[dict[str, Any]], load: dict[str, list[float]], previews: Previews, view: View
    ) -> list[dict[str, Any]]:
        """All workers, dressed anew where something has changed."""
        known, found = self._known.get(view.sees, {}), {}
        for worker in told:
            name = worker["worker_id"]
            now = worker, load.get(name), [previews.version(job["job_id"]) for job in worker["doing"]]
            before = known.get(name)
            found[name] = before if before and before[0] == now else (now, dress(worker, load, previews, view))
        if len(self._known) > MOST_TENANTS:
            self._known.clear()
        self._known[view.sees] = found
        return [worker for _, worker in found.values()]


def dress(told: dict[str, Any], load: dict[str, list[float]], previews: Previews, view: View) -> dict[str, Any]:
    """What a card shows beyond the record: how busy it was, its GPUs in a line, what may be seen of its jobs."""
    doing = [
        {**job, "mine": view.sees in ("", job["tenant"]), "preview": previews.version(job["job_id"])}
        for job in told["doing"]
    ]
    own = (job["job_id"] for job in doing if job["mine"] and job["phase"] != "finishing")
    history, runs = tuple(load.get(told["worker_id"], ())), next(own, "")
    status = "busy" if doing and told["status"] == "idle" else told["status"]  # its heartbeat is still to come
    gpu = ", ".join(gpu["name"] for gpu in told["gpus"])
    return {
        **told, "doing": doing, "runs": runs, "status": status, "history": history, "gpu": gpu,
        # What all of a card follows from, and what follows neither from its jobs' progress nor from its heartbeats.
        "shown": (told, history, [job["preview"] for job in doing]),
        "fixed": (
            status, told["paused"], told["draining"], told["simulated"], gpu, told["loaded_models"], history, runs,
        ),
    }  # fmt: skip


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
