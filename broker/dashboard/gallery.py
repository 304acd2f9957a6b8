"""``/gallery``: what completed jobs made, the latest first."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

from aiohttp import web

from broker.api.services import Services
from broker.dashboard.frame import PAGES, Page, View, add_page

PAGE = 24
KEPT_S, MOST_KEPT = 60.0, 1000
KINDS = ("image", "video", "audio", "text", "file")


def add_to(app: web.Application) -> None:
    """Register the page."""
    reads = partial(read, app, Records())
    add_page(app, Page("gallery", "/gallery", "Gallery", "gallery.html", reads, nav="Gallery", every_s=0.75))


async def read(app: web.Application, records: Records, parts: Services, view: View) -> dict[str, Any]:
    """The outputs of a page of jobs; ``until`` (epoch ms) goes on, ``kind`` and ``worker`` choose."""
    until, kind, address = _moment(view.get("until")), view.get("kind"), app[PAGES].addresses.steady
    jobs, older = await parts.history.ended(
        until=until, limit=PAGE, status="completed", worker=view.get("worker"), tenant=view.sees
    )
    found = await records.of(parts, jobs, view)
    shown = [(record, _addressed(output, address)) for record in found for output in _outputs(record, kind)]
    return {"shown": shown, "older": older, "until": until, "kind": kind, "kinds": KINDS, "worker": view.get("worker")}


def _addressed(output: dict[str, Any], address: Callable[[str], str]) -> dict[str, Any]:
    return {**output, "url": address(output["url"])} if output.get("url") else output


class Records:
    """The records of jobs that have ended, each kept for a minute: an open page shows mostly the same ones."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str, int], tuple[float, dict[str, Any]]] = OrderedDict()

    async def of(self, parts: Services, jobs: list[dict[str, Any]], view: View) -> list[dict[str, Any]]:
        """The records of jobs that the history names; those are left out that have gone meanwhile."""
        now = time.monotonic()
        names = {job["job_id"]: (view.sees, job["job_id"], job["finished_at"]) for job in jobs}
        found = {job: self._known[name][1] for job, name in names.items() if view.live and self._fresh(name, now)}
        missing = [job for job in names if job not in found]
        for record in await parts.operations.records(missing, view.sees):
            job = record["job_id"]
            self._known[names[job]] = (now, record)
            self._known.move_to_end(names[job])
            found[job] = record
        while len(self._known) > MOST_KEPT or (self._known and not self._fresh(next(iter(self._known)), now)):
            self._known.popitem(last=False)
        return [found[job] for job in names if job in found]

    def _fresh(self, name: tuple[str, str, int], now: float) -> bool:
        return name in self._known and now - self._known[name][0] < KEPT_S


def _moment(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _outputs(record: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    outputs = (record["result"] or {}).get("outputs", [])
    return [output for output in outputs if not kind or output.get("kind") == kind]
