"""Work through EMQ."""

from __future__ import annotations

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp import web

from broker.client import Client, Event, Preview
from broker.errors import NotFound
from broker.protocol.base import JobStatus
from broker.protocol.events import JobCompleted, JobFailed, JobProgress, JobUpdate
from broker.protocol.records import Job, Output

Message = dict[str, Any]
OUTPUT = re.compile(r"api/jobs/[\w-]+/outputs/[^/]+")
"""Paths of links to outputs."""


class Backend(ABC):
    """Where the work is done."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    @abstractmethod
    async def submit(self, user: str, workflow: Message, priority: int, once: str | None) -> str:
        """A new job's id; the same ``once`` gives the same job."""

    @abstractmethod
    def events(self, job: str, after: str | None) -> AsyncGenerator[Message | bytes]:
        """A job's messages to its end, each with an ``event`` to go on after; previews are bytes."""

    @abstractmethod
    async def status(self, user: str, jobs: Sequence[str], strict: bool = False) -> list[Message]:
        """What each job is doing; what is not the user's is ``unknown``, or with ``strict`` raises ``NotFound``."""

    @abstractmethod
    async def cancel(self, job: str) -> None:
        """Ask for a job's end."""

    @abstractmethod
    async def serve(self, request: web.Request) -> web.StreamResponse:
        """A file of a result."""


class QueueBackend(Backend):
    """Jobs in the queue behind ``url`` (NGINX before the brokers). It keeps nothing: a job knows its user."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self._emq = Client(url, key)

    async def __aenter__(self) -> Self:
        await self._emq.__aenter__()
        self._http = aiohttp.ClientSession(auto_decompress=False)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._http.close()
        await self._emq.__aexit__(*error)

    async def submit(self, user: str, workflow: Message, priority: int, once: str | None) -> str:
        job = await self._emq.submit(workflow, priority=priority, idempotency_key=once, metadata={"user": user})
        return job.id

    async def events(self, job: str, after: str | None) -> AsyncGenerator[Message | bytes]:
        async with aclosing(self._emq.handle(job).events(after=after, previews=True)) as events:
            async for event in events:
                message = event.image if isinstance(event, Preview) else _message(event)
                if message is not None:
                    yield message

    async def status(self, user: str, jobs: Sequence[str], strict: bool = False) -> list[Message]:
        return list(await asyncio.gather(*(self._status(user, job, strict) for job in jobs)))

    async def _status(self, user: str, job_id: str, strict: bool) -> Message:
        try:
            job = await self._emq.job(job_id)
            if not isinstance(job.metadata, dict) or job.metadata.get("user") != user:
                raise NotFound("There is no such job.")
        except NotFound:
            if strict:
                raise
            return {"job": job_id, "status": "unknown"}
        return _record(job)

    async def cancel(self, job: str) -> None:
        await self._emq.cancel(job, "cancelled by its user")

    async def serve(self, request: web.Request) -> web.StreamResponse:
        # The link is signed by the broker, so it says itself what may be read; the key here would open much more.
        path = request.match_info["rest"]
        if not OUTPUT.fullmatch(path):
            raise web.HTTPNotFound
        wanted = {name: request.headers[name] for name in ("Range", "If-None-Match") if name in request.headers}
        url = f"{self._emq.url}/{path}?{request.query_string}"
        async with self._http.get(url, headers=wanted) as answer:
            return await relay(request, answer)


async def relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """Hand an answer on as it comes, without holding it."""
    kept = ("Content-Type", "Content-Length", "Content-Range", "Content-Disposition", "Accept-Ranges", "ETag")
    response = web.StreamResponse(status=answer.status)
    for name in kept:
        if name in answer.headers:
            response.headers[name] = answer.headers[name]
    response.headers["X-Content-Type-Options"] = "nosniff"
    await response.prepare(request)
    async for chunk in answer.content.iter_chunked(1 << 16):
        await response.write(chunk)
    return response


def _message(event: Event) -> Message | None:
    if isinstance(event, JobProgress):
        node = event.node.class_type if event.node else None
        return {"type": "progress", "event": event.event_id, "progress": event.progress, "node": node}
    if isinstance(event, JobCompleted):
        return {"type": "done", "event": event.event_id, "files": [_file(output) for output in event.result.outputs]}
    if isinstance(event, JobFailed):
        kind = "retrying" if event.will_retry else "failed"
        return {"type": kind, "event": event.event_id, "error": event.error.message}
    if isinstance(event, JobUpdate):
        if event.status in (JobStatus.COMPLETED, JobStatus.FAILED):
            return None  # the next event says more
        kind = "cancelled" if event.status == JobStatus.CANCELLED else "state"
        return {"type": kind, "event": event.event_id, "state": event.status, "position": event.position}
    return {**_record(event.record), "type": "status", "event": event.event_id}


def _record(job: Job) -> Message:
    record: Message = {"job": job.job_id, "status": job.status, "progress": job.progress, "position": job.position}
    if job.result is not None:
        record["files"] = [_file(output) for output in job.result.outputs]
    if job.error is not None:
        record["error"] = job.error.message
    return record


def _file(output: Output) -> Message:
    parts = urlsplit(urljoin("/", output.url))
    url = f"/v1/files{parts.path}?{parts.query}"
    return {"name": output.filename, "type": output.content_type, "size": output.size, "url": url}
