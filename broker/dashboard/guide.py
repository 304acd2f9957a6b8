"""``/help`` for people, and ``/style``: every component on one page."""

from __future__ import annotations

import time
from typing import Any

from aiohttp import web

from broker.api.services import Services
from broker.dashboard.frame import Page, View, add_page
from broker.protocol.base import JobStatus


def add_to(app: web.Application) -> None:
    """Register the pages."""
    add_page(app, Page("help", "/help", "Help", "help.html", read, nav="Help", every_s=5))
    add_page(app, Page("style", "/style", "Style", "style.html", read, every_s=5))


async def read(parts: Services, view: View) -> dict[str, Any]:
    """What the words mean."""
    return {"states": [state.value for state in JobStatus], "now": round(time.time()) * 1000}
