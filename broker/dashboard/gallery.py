"""``/gallery``: what completed jobs made, the latest first."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from broker.api.services import Services
from broker.dashboard.frame import Page, View, add_page
from broker.errors import NotFound

PAGE = 24
KINDS = ("image", "video", "audio", "text", "file")


def add_to(app: web.Application) -> None:
    """Register the page."""
    add_page(app, Page("gallery", "/gallery", "Gallery", "gallery.html", read, nav="Gallery", every_s=0.8))


async def read(parts: Services, view: View) -> dict[str, Any]:
    """The outputs of a page of jobs; ``until`` (epoch ms) goes on, ``kind`` and ``worker`` choose."""
    until, kind = _moment(view.get("until")), view.get("kind")
    jobs, older = await parts.history.ended(
        until=until, limit=PAGE, status="completed", worker=view.get("worker"), tenant=view.sees
    )
    records = await asyncio.gather(*(_record(parts, job["job_id"], view.sees) for job in jobs))
    shown = [(record, output) for record in records if record for output in _outputs(record, kind)]
    return {"shown": shown, "older": older, "until": until, "kind": kind, "kinds": KINDS, "worker": view.get("worker")}


def _moment(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None


async def _record(parts: Services, job_id: str, tenant: str) -> dict[str, Any] | None:
    try:
        return await parts.operations.record(job_id, tenant)
    except NotFound:
        return None  # its record has gone meanwhile


def _outputs(record: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    outputs = (record["result"] or {}).get("outputs", [])
    return [output for output in outputs if not kind or output.get("kind") == kind]
