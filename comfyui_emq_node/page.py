"""What ComfyUI's own page asks of EMQ: routes under ``/emq`` on ComfyUI's port, for the pack's script in ``web/``.

The browser needs no key and reaches no broker: the worker's process asks for it, with the key in its settings. Only
the page that ComfyUI itself serves may ask: other sites' requests are refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from .fleet_client import FleetClient, LocalFiles, Unanswered
from .queue import QueueAway, Refused, StaleLease, Superseded, Unregistered
from .settings import Settings

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("emq")

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
MAX_BODY = 32 << 20
SHOWN = ("Content-Type", "Content-Length", "Content-Disposition", "ETag", "Accept-Ranges", "Content-Range")


class Refusal(Exception):
    """A request is not granted; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Host(Protocol):
    """Where the worker is."""

    @property
    def worker(self) -> Worker | None:
        """The worker, once it runs."""

    async def on_worker(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do something on the worker's loop."""


def check_origin(request: web.Request) -> None:
    """Let only ComfyUI's own page ask, and programs, which send nothing of the kind.

    Raises:
        Refusal: another site's page asks, or a form does.
    """
    site = request.headers.get("Sec-Fetch-Site")
    allowed = ("same-origin", "none") if request.method == "GET" else ("same-origin",)
    if site is not None and site not in allowed:
        raise Refusal(403, "Only ComfyUI's own page may ask this.")
    origin = request.headers.get("Origin")
    if origin is not None:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or parts.netloc.lower() != request.host.lower():
            raise Refusal(403, "Only ComfyUI's own page may ask this.")
    if request.method != "GET" and request.content_type != "application/json":
        raise Refusal(415, "Send JSON (Content-Type: application/json).")


def guarded(handler: Handler) -> Handler:
    """A handler that answers what goes wrong as ``{"error"}``."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            check_origin(request)
            return await handler(request)
        except Refusal as error:
            return _said(error.status, str(error))
        except Unanswered as error:
            return _said(error.status, str(error), **error.details)
        except (QueueAway, Unregistered, Superseded, StaleLease, Refused) as error:
            return _said(503, f"The queue cannot be reached: {error}")
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            return _said(502, f"The broker cannot be reached: {error or type(error).__name__}")

    return handle


def _said(status: int, text: str, **more: Any) -> web.Response:
    return web.json_response({"error": text, **more}, status=status)


class Page:
    """The routes."""

    def __init__(self, settings: Settings, local: LocalFiles, host: Host) -> None:
        self._host = host
        self._fleet = FleetClient(settings, local, lambda: host.worker)

    def routes(self) -> list[tuple[str, str, Handler]]:
        """Method, path and handler of each."""
        table: list[tuple[str, str, Handler]] = [
            ("GET", "/emq/status", self.status),
            ("POST", "/emq/pause", self.steer),
            ("POST", "/emq/resume", self.steer),
            ("POST", "/emq/drain", self.steer),
            ("POST", "/emq/queue", self.queue),
            ("GET", "/emq/jobs/{job_id}", self.job),
            ("POST", "/emq/jobs/{job_id}/cancel", self.cancel),
            ("GET", "/emq/jobs/{job_id}/preview", self.preview),
            ("GET", "/emq/jobs/{job_id}/outputs/{number}", self.output),
        ]
        return [(method, path, guarded(handler)) for method, path, handler in table]

    async def status(self, _: web.Request) -> web.Response:
        """The worker's state, its jobs, and the queue's depth as far as its broker tells."""
        worker = self._host.worker
        told: dict[str, Any] = {"state": "starting"} if worker is None else worker.describe()
        return web.json_response({**told, "queue": await self._fleet.depth()})

    async def steer(self, request: web.Request) -> web.Response:
        """Pause, resume or drain this worker, in all its pools."""
        worker, word = self._host.worker, request.path.rsplit("/", 1)[-1]
        if worker is None:
            raise Refusal(503, "The worker has not started yet.")
        await asyncio.wait_for(self._host.on_worker(lambda: worker.steer(word)), 10)
        return web.json_response(worker.describe())

    async def queue(self, request: web.Request) -> web.Response:
        """Submit ``{"prompt": API graph, "workflow": the page's own}``; the answer is the broker's."""
        if (request.content_length or 0) > MAX_BODY:
            raise Refusal(413, f"The workflow has more than {MAX_BODY} bytes.")
        try:
            body = await request.json()
        except ValueError:
            raise Refusal(400, "The body is not JSON.") from None
        if not isinstance(body, dict) or not isinstance(body.get("prompt"), dict) or not body["prompt"]:
            raise Refusal(400, "There is no workflow to queue.")
        return web.json_response(await self._fleet.submit(body["prompt"], body.get("workflow")))

    async def job(self, request: web.Request) -> web.Response:
        """A job's record; its outputs' URLs lead through here."""
        record = await self._fleet.job(request.match_info["job_id"])
        for number, output in enumerate((record.get("result") or {}).get("outputs") or ()):
            output["url"] = f"/emq/jobs/{request.match_info['job_id']}/outputs/{number}"
        return web.json_response(record)

    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a job."""
        return web.json_response(await self._fleet.cancel(request.match_info["job_id"]))

    async def preview(self, request: web.Request) -> web.StreamResponse:
        """The latest preview of a job; 204 when there is none."""
        async with self._fleet.preview(request.match_info["job_id"]) as answer:
            return await _pass_on(request, answer)

    async def output(self, request: web.Request) -> web.StreamResponse:
        """One of a job's files."""
        number = request.match_info["number"]
        if not (number.isascii() and number.isdigit() and len(number) < 6):
            raise Refusal(404, "There is no such output.")
        span = request.headers.get("Range")  # of a video that is wound
        async with self._fleet.output(request.match_info["job_id"], int(number), span) as answer:
            return await _pass_on(request, answer)


async def _pass_on(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Stream a broker's answer, shown only as what it says it is."""
    headers = {name: answer.headers[name] for name in SHOWN if name in answer.headers}
    headers |= {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cache-Control": "private, no-cache",
    }
    response = web.StreamResponse(status=answer.status, headers=headers)
    await response.prepare(request)
    async for piece in answer.content.iter_chunked(1 << 18):
        await response.write(piece)
    await response.write_eof()
    return response
