"""Live previews for the pages: a job is watched here for as long as somebody looks at its picture."""

from __future__ import annotations

import asyncio
import contextlib
import time

from aiohttp import web

from broker.access.identity import Role, current
from broker.api.services import services
from broker.api.streams import Picture, picture_of
from broker.dashboard.roles import ROLES
from broker.errors import EmqError
from broker.queue.events import EventHub, Preview

WATCHED_S = 8.0
MOST = 128
"""Jobs watched at once; the pictures of others stay as they are."""
_EMPTY = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
PATH = "/ui/preview/{job_id}"


class Previews:
    """The watched jobs of this replica, each with its newest frame."""

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._wanted: dict[str, float] = {}
        self._frames: dict[str, tuple[int, bytes]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def version(self, job_id: str) -> int:
        """How many frames of a job came while it was watched."""
        return self._frames.get(job_id, (0, b""))[0]

    def latest(self, job_id: str) -> Picture | None:
        """The newest picture; the job is watched from now on."""
        self._wanted[job_id] = time.monotonic()
        if job_id not in self._tasks and len(self._tasks) < MOST:
            self._tasks[job_id] = asyncio.create_task(self._watch(job_id), name="preview")
        frame = self._frames.get(job_id)
        return picture_of(frame[1]) if frame else None

    async def _watch(self, job_id: str) -> None:
        """Keep the newest frame while it is wanted."""
        try:
            with contextlib.suppress(EmqError, TimeoutError):
                async with self._hub.subscribe(job_id, previews=True, until_end=True) as events:
                    while True:
                        async with asyncio.timeout(WATCHED_S):
                            item = await anext(events, None)
                        if item is None or time.monotonic() - self._wanted[job_id] > WATCHED_S:
                            return
                        if isinstance(item, Preview):
                            self._frames[job_id] = (self.version(job_id) + 1, item.data)
        finally:
            for known in (self._tasks, self._frames, self._wanted):
                known.pop(job_id, None)

    async def stop(self) -> None:
        """Watch nothing any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


PREVIEWS = web.AppKey("previews", Previews)


def add_to(app: web.Application) -> None:
    """Register the pictures."""
    app[ROLES]["GET", PATH] = Role.VIEWER
    app.router.add_get(PATH, show)


async def show(request: web.Request) -> web.Response:
    """The newest preview of a job; an empty picture while there is none."""
    job_id = request.match_info["job_id"]
    await services(request).operations.queue.job(job_id, current(request).sees)
    found = request.config_dict[PREVIEWS].latest(job_id)
    if found is None:
        return web.Response(body=_EMPTY, content_type="image/svg+xml")
    return web.Response(body=found.image, content_type=found.content_type)
