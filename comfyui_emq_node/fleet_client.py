"""The broker as a client sees it, for the jobs that ComfyUI's own page sends to the fleet.

A graph that names files of this ComfyUI's input folder goes with them: another machine has other files there.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp

from .settings import Settings

if TYPE_CHECKING:
    from .worker import Worker

DEPTH_S = 2.0
"""The queue's figures are asked for at most this often, however many pages look."""
ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")


class Unanswered(Exception):
    """The broker refuses, or there is none; ``details`` are its own."""

    def __init__(self, status: int, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.details = status, dict(details or {})


class LocalFiles(Protocol):
    """Finds the files that a graph of this ComfyUI names."""

    def input_file(self, name: str) -> str | None:
        """The path of a file that an input names."""

    def file_kind(self, class_type: str, name: str) -> str | None:
        """What kind of file an input of a class takes."""


class FleetClient:
    """Asks whichever broker is there, with ``EMQ_SUBMIT_KEY`` or else the worker's own key."""

    def __init__(self, settings: Settings, local: LocalFiles, worker: Callable[[], Worker | None]) -> None:
        self._settings, self._local, self._worker = settings, local, worker
        self._session: aiohttp.ClientSession | None = None
        self._depth: tuple[float, dict[str, Any] | None] = (-DEPTH_S, None)

    async def close(self) -> None:
        """Close connections."""
        if self._session is not None:
            await self._session.close()

    async def submit(self, graph: dict[str, Any], workflow: Any) -> dict[str, Any]:
        """Submit a graph of the page, with the files that it names."""
        inputs = await self._upload_inputs(graph)
        payload: dict[str, Any] = {"workflow": graph, **({"inputs": inputs} if inputs else {})}
        if isinstance(workflow, dict):
            payload["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        body = {"payload": payload, "metadata": {"source": "comfyui", "worker_id": self._settings.worker_id or ""}}
        return await self._json("POST", "/api/jobs", json=body)

    async def job(self, job_id: str) -> dict[str, Any]:
        """A job's record."""
        return await self._json("GET", f"/api/jobs/{_checked(job_id)}")

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Cancel a job."""
        return await self._json("POST", f"/api/jobs/{_checked(job_id)}/cancel", json={"reason": "at ComfyUI's page"})

    @asynccontextmanager
    async def preview(self, job_id: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer with a job's latest preview."""
        async with self._ask("GET", f"/api/jobs/{_checked(job_id)}/preview") as answer:
            yield answer

    @asynccontextmanager
    async def output(self, job_id: str, number: int, span: str | None = None) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer with one of a job's files, or with the ``span`` of it (HTTP's ``Range``)."""
        outputs = ((await self.job(job_id)).get("result") or {}).get("outputs") or []
        if number >= len(outputs):
            raise Unanswered(404, "There is no such output.")
        # The signature is good at every replica, by whatever name and below whatever path it is reached.
        _, api, rest = str(outputs[number]["url"]).partition("/api/jobs/")
        async with self._ask("GET", api + rest, {"Range": span} if span else {}) as answer:
            yield answer

    async def depth(self) -> dict[str, Any] | None:
        """Jobs that wait and run, and workers; None when the broker does not tell."""
        asked, known = self._depth
        if time.monotonic() - asked < DEPTH_S:
            return known
        self._depth = (time.monotonic(), known)
        try:
            stats = await self._json("GET", "/stats")
        except (Unanswered, aiohttp.ClientError, asyncio.TimeoutError):
            found = None
        else:
            found = {name: stats.get(name) for name in ("queued", "running", "paused")}
        self._depth = (time.monotonic(), found)
        return found

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _upload_inputs(self, graph: Mapping[str, Any]) -> dict[str, Any]:
        """Bring the files that the graph names to the broker, each content once; what ``payload.inputs`` says then."""
        found: dict[str, Any] = {}
        for node_id, node in graph.items():
            if not isinstance(node, dict) or not isinstance(node.get("inputs"), dict):
                raise Unanswered(400, f"Node {node_id} is none in ComfyUI's API format.")
            for name, value in node["inputs"].items():
                if isinstance(value, str) and value and self._local.file_kind(str(node.get("class_type")), name):
                    path = self._local.input_file(value)
                    if path is not None:
                        asset = await self._upload(path)
                        found[f"{node_id}.{name}"] = {"asset": asset, "filename": os.path.basename(path)}
        return found

    async def _upload(self, path: str) -> str:
        digest = await asyncio.get_running_loop().run_in_executor(None, _digest, path)
        place = f"/api/assets/{digest}"
        try:
            async with self._ask("HEAD", place):
                return f"blake3:{digest}"
        except Unanswered as error:
            if error.status not in (403, 404):
                raise
        with open(path, "rb") as file:  # noqa: ASYNC230 - aiohttp reads it on a thread
            where = f"{place}?filename={quote(os.path.basename(path), safe='')}"
            async with self._ask("PUT", where, data=file):
                return f"blake3:{digest}"

    def _brokers(self) -> list[str]:
        """Where a broker may answer: the one that is set, else all that told their address of late."""
        worker = self._worker()
        known = [each for pool in self._settings.pools for each in (worker.membership.brokers(pool) if worker else ())]
        found = [self._settings.broker_url] if self._settings.broker_url else known
        if not found:
            raise Unanswered(503, "No broker has told its address yet.")
        return [each.rstrip("/") for each in found]

    async def _json(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        async with self._ask(method, path, **options) as answer:
            found: dict[str, Any] = await answer.json()
            return found

    @asynccontextmanager
    async def _ask(
        self, method: str, path: str, more: Mapping[str, str] | None = None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
            self._session = aiohttp.ClientSession(timeout=timeout)
        key = self._settings.submit_key or self._settings.api_key
        headers = {"Authorization": f"Bearer {key}"} if key and "s" not in parse_qs(urlsplit(path).query) else {}
        headers.update(more or {})
        async with await self._reached(self._session, method, path, headers=headers, **options) as answer:
            if answer.status >= 400:
                raise await _refused(answer)
            yield answer

    async def _reached(
        self, session: aiohttp.ClientSession, method: str, path: str, **options: Any
    ) -> aiohttp.ClientResponse:
        """The answer of the first broker that can be reached: one that died a moment ago is still among them."""
        *others, last = self._brokers()
        for broker in others:
            with contextlib.suppress(aiohttp.ClientConnectorError):
                return await session.request(method, broker + path, **options)
        return await session.request(method, last + path, **options)


def _checked(job_id: str) -> str:
    if not 0 < len(job_id) <= 128 or not set(job_id) <= ID_CHARACTERS:
        raise Unanswered(404, "There is no such job.")
    return job_id


async def _refused(answer: aiohttp.ClientResponse) -> Unanswered:
    try:
        told = await answer.json()
    except (ValueError, aiohttp.ClientError):
        told = None
    told = told if isinstance(told, dict) else {}
    text = str(told.get("error") or f"The broker answers HTTP {answer.status}.")
    if answer.status in (401, 403):
        text += " Set EMQ_SUBMIT_KEY of this ComfyUI to a key with the scopes submit and read."
    more = {name: told[name] for name in ("code", "details") if name in told}
    return Unanswered(answer.status if answer.status != 401 else 403, text, more)


def _digest(path: str) -> str:
    """The blake3 of a file."""
    from blake3 import blake3

    hasher = blake3()
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            hasher.update(piece)
    return hasher.hexdigest()
