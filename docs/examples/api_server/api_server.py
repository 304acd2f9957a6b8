"""An API server as one stands before EMQ: its own users, its own WebSocket, and all GPU work in the queue.

Browsers and apps talk to ``/v1/ws`` here and know nothing of EMQ. With ``QUEUE_ENABLED=0`` the same clients are served
straight from one ComfyUI: the way back, should the queue ever be in the way.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import WSMsgType, web
from direct import DirectBackend
from queued import Backend, QueueBackend

from broker.errors import BadMessage, EmqError, Forbidden, Unauthorized

Message = dict[str, Any]
PLANS = {"free": 0, "pro": 20, "studio": 50}
"""What a plan's jobs have as priority."""
ENDS = ("done", "failed", "cancelled")


@dataclass(frozen=True)
class User:
    """Who a token stands for."""

    name: str
    plan: str


class Session:
    """One client's socket: what it asks, and the events of the jobs it follows."""

    def __init__(self, ws: web.WebSocketResponse[bool], user: User, backend: Backend) -> None:
        self._ws = ws
        self._user = user
        self._backend = backend
        self._jobs: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Serve until the client leaves; its jobs go on without it."""
        try:
            async for frame in self._ws:
                if frame.type is WSMsgType.TEXT:
                    await self._answer(frame.data)
        finally:
            for task in self._jobs.values():
                task.cancel()
            await asyncio.gather(*self._jobs.values(), return_exceptions=True)

    async def _answer(self, text: str) -> None:
        request: Any = {}
        try:
            request = _read(text)
            await self._handle(request)
        except EmqError as error:
            number = request.get("request") if isinstance(request, dict) else None
            await self._ws.send_json({"type": "error", "request": number, "code": error.code, "error": error.message})

    async def _handle(self, request: Message) -> None:
        kind = request.get("type")
        if kind == "generate":
            await self._generate(request)
        elif kind == "status":
            jobs = await self._backend.status(self._user.name, _ids(request))
            await self._ws.send_json({"type": "status", "request": request.get("request"), "jobs": jobs})
        elif kind == "follow":
            await self._check(request)
            self._follow(str(request["job"]), request.get("after"))
        elif kind == "cancel":
            await self._check(request)
            await self._backend.cancel(str(request["job"]))
        else:
            raise BadMessage("type: one of generate, status, follow, cancel.")

    async def _generate(self, request: Message) -> None:
        workflow = request.get("workflow")
        if not isinstance(workflow, dict):
            raise BadMessage("workflow: a ComfyUI workflow in API format.")
        # A client that repeats its request after a lost answer gets the same job.
        once = f"{self._user.name}:{request['request']}" if request.get("request") else None
        job = await self._backend.submit(self._user.name, workflow, PLANS[self._user.plan], once)
        await self._ws.send_json({"type": "accepted", "request": request.get("request"), "job": job})
        self._follow(job, None)

    async def _check(self, request: Message) -> None:
        """Whether the job is this user's; raises ``BadMessage``, ``NotFound``."""
        await self._backend.status(self._user.name, [_id(request)], strict=True)

    def _follow(self, job: str, after: Any) -> None:
        old = self._jobs.pop(job, None)
        if old is not None:
            old.cancel()
        self._jobs[job] = asyncio.create_task(self._relay(job, after if isinstance(after, str) else None))

    async def _relay(self, job: str, after: str | None) -> None:
        try:
            async for item in self._backend.events(job, after):
                if isinstance(item, bytes):
                    await self._ws.send_bytes(item)
                else:
                    await self._ws.send_json({**item, "job": job})
        except EmqError as error:
            await self._ws.send_json({"type": "error", "job": job, "code": error.code, "error": error.message})
        except ConnectionError:
            return  # the client has gone; what it missed it asks for with `after`
        finally:
            if self._jobs.get(job) is asyncio.current_task():
                del self._jobs[job]


def _read(text: str) -> Message:
    try:
        request = json.loads(text)
    except ValueError:
        raise BadMessage("Send JSON.") from None
    if not isinstance(request, dict):
        raise BadMessage("Send an object with a type.")
    return request


def _id(request: Message) -> str:
    job = request.get("job")
    if not isinstance(job, str) or not job:
        raise BadMessage("job: the id that `accepted` gave.")
    return job


def _ids(request: Message) -> list[str]:
    jobs = request.get("jobs")
    if not isinstance(jobs, list) or not all(isinstance(job, str) for job in jobs) or len(jobs) > 100:
        raise BadMessage("jobs: a list of at most 100 job ids.")
    return jobs


USERS = web.AppKey("USERS", Mapping[str, User])
BACKEND = web.AppKey("BACKEND", Backend)


async def client_socket(request: web.Request) -> web.StreamResponse:
    """``GET /v1/ws``: a client's socket; its token is a header, or a subprotocol for browsers."""
    offered = [part.strip() for part in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    token = request.headers.get("Authorization", "").removeprefix("Bearer ") or (offered[1] if offered[1:] else "")
    user = request.app[USERS].get(token)
    if user is None:
        return _refusal(Unauthorized("Send the token that your account page shows."))
    if user.plan not in PLANS:
        return _refusal(Forbidden("Your account has no plan that allows this."))
    ws = web.WebSocketResponse(protocols=("v1",), heartbeat=20)
    await ws.prepare(request)
    await Session(ws, user, request.app[BACKEND]).run()
    return ws


def _refusal(error: EmqError) -> web.Response:
    return web.json_response({"code": error.code, "error": error.message}, status=error.http_status)


async def output(request: web.Request) -> web.StreamResponse:
    """``GET /v1/files/…``: a job's file; clients never see the queue's or ComfyUI's address."""
    return await request.app[BACKEND].serve(request)


def application(users: Mapping[str, User], backend: Backend) -> web.Application:
    """The server of these users, on this backend."""

    async def running(app: web.Application) -> AsyncIterator[None]:
        async with backend:
            yield

    app = web.Application()
    app[USERS], app[BACKEND] = users, backend
    app.cleanup_ctx.append(running)
    app.router.add_get("/v1/ws", client_socket)
    app.router.add_get("/v1/files/{rest:.+}", output)
    return app


def backend_from(environment: Mapping[str, str]) -> Backend:
    """The queue, or with ``QUEUE_ENABLED=0`` one ComfyUI."""
    if environment.get("QUEUE_ENABLED", "1") == "0":
        return DirectBackend(environment.get("COMFYUI_URL", "http://127.0.0.1:8188"))
    return QueueBackend(environment.get("QUEUE_URL", "http://127.0.0.1:8000"), environment.get("QUEUE_KEY"))


def users_from(text: str) -> dict[str, User]:
    """Users as ``token:name:plan``, comma-separated; a real server asks its database."""
    entries = [entry.split(":") for entry in text.split(",") if entry]
    return {token: User(name, plan) for token, name, plan in entries}


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        web.run_app(
            application(users_from(os.environ.get("USERS", "demo:demo:pro")), backend_from(os.environ)),
            host="127.0.0.1",
            port=int(os.environ.get("PORT", "9000")),
        )
