"""Work on one ComfyUI without any queue but its own: no priorities, no retries, nothing survives its end."""

from __future__ import annotations

import asyncio
import json
import struct
import uuid
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Self
from urllib.parse import urlencode

import aiohttp
from aiohttp import web
from queued import Backend, Message, relay

from broker.errors import InvalidWorkflow, NotFound, Unavailable

PREVIEW = 1
"""ComfyUI's binary event with a plain preview: event, format, image."""


class DirectBackend(Backend):
    """The ComfyUI at ``url``, over its own HTTP and WebSocket."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._client = uuid.uuid4().hex
        self._owners: dict[str, str] = {}
        self._asked: set[str] = set()
        """Jobs whose request is not answered yet: ComfyUI may have begun one by then, and even ended it."""
        self._ends: dict[str, Message] = {}
        self._heard: dict[str, list[asyncio.Queue[Message | bytes]]] = {}
        self._links: set[str] = set()
        """Queries of the files that jobs made; nothing else of ComfyUI's is shown."""
        self._running: str | None = None

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession()
        self._listening = asyncio.create_task(self._listen())
        self._open = asyncio.Event()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        await self._http.close()

    async def submit(self, user: str, workflow: Message, priority: int, once: str | None) -> str:
        job = str(uuid.uuid5(uuid.NAMESPACE_URL, once)) if once else str(uuid.uuid4())
        if job in self._owners:
            return job
        async with asyncio.timeout(30):
            await self._open.wait()
        body = {"prompt": workflow, "client_id": self._client, "prompt_id": job}
        self._asked.add(job)
        try:
            async with self._http.post(f"{self._url}/prompt", json=body) as answer:
                said = await answer.json()
            if "prompt_id" not in said:
                raise InvalidWorkflow(str(said.get("error", {}).get("message", "ComfyUI refuses this workflow.")))
            self._owners[said["prompt_id"]] = user
        except aiohttp.ClientError as error:
            raise Unavailable(f"ComfyUI cannot be reached: {error}") from None
        finally:
            self._asked.discard(job)
        return str(said["prompt_id"])

    async def events(self, job: str, after: str | None) -> AsyncGenerator[Message | bytes]:
        queue: asyncio.Queue[Message | bytes] = asyncio.Queue()
        self._heard.setdefault(job, []).append(queue)
        try:
            if job in self._ends:
                yield self._ends[job]
                return
            yield {"type": "state", "event": "0", "state": "pending", "position": None}
            while True:
                message = await queue.get()
                yield message
                if not isinstance(message, bytes) and message["type"] in ("done", "failed", "cancelled"):
                    return
        finally:
            self._heard[job].remove(queue)

    async def status(self, user: str, jobs: Sequence[str], strict: bool = False) -> list[Message]:
        found: list[Message] = []
        for job in jobs:
            mine = self._owners.get(job) == user
            if strict and not mine:
                raise NotFound("There is no such job.")
            found.append({"job": job, **self._state(job)} if mine else {"job": job, "status": "unknown"})
        return found

    def _state(self, job: str) -> Message:
        if job in self._ends:
            end = self._ends[job]
            words = {"done": "completed", "failed": "failed", "cancelled": "cancelled"}
            rest: Message = {name: end[name] for name in ("files", "error") if name in end}
            return {"status": words[end["type"]], **rest}
        return {"status": "processing" if job == self._running else "pending"}

    async def cancel(self, job: str) -> None:
        await self._http.post(f"{self._url}/queue", json={"delete": [job]})
        if job == self._running:
            await self._http.post(f"{self._url}/interrupt", json={"prompt_id": job})
        elif job not in self._ends:
            self._end(job, {"type": "cancelled", "event": "end", "state": "cancelled"})

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if request.query_string not in self._links:
            raise web.HTTPNotFound
        async with self._http.get(f"{self._url}/view?{request.query_string}") as answer:
            return await relay(request, answer)

    # -- what ComfyUI says --------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            try:
                async with self._http.ws_connect(f"{self._url}/ws?clientId={self._client}", max_msg_size=0) as ws:
                    self._open.set()
                    async for frame in ws:
                        await self._hear(frame)
            except (aiohttp.ClientError, OSError):
                self._open.clear()
            await asyncio.sleep(1)

    async def _hear(self, frame: aiohttp.WSMessage) -> None:
        if frame.type is aiohttp.WSMsgType.BINARY:
            if self._running and struct.unpack_from(">I", frame.data)[0] == PREVIEW:
                self._spread(self._running, frame.data[8:])
            return
        message = json.loads(frame.data)
        kind, data = message["type"], message["data"]
        job = data.get("prompt_id")
        if job not in self._owners and job not in self._asked:
            return
        if kind == "execution_start":
            self._running = job
            self._spread(job, {"type": "state", "event": "start", "state": "processing", "position": None})
        elif kind == "progress":
            percent = 100 * data["value"] / max(1, data["max"])
            self._spread(job, {"type": "progress", "event": "progress", "progress": percent, "node": data["node"]})
        elif kind == "execution_success":
            self._end(job, {"type": "done", "event": "end", "files": await self._files(job)})
        elif kind == "execution_error":
            self._end(job, {"type": "failed", "event": "end", "error": data["exception_message"]})
        elif kind == "execution_interrupted":
            self._end(job, {"type": "cancelled", "event": "end", "state": "cancelled"})

    async def _files(self, job: str) -> list[Message]:
        """What the prompt left; ComfyUI writes its history a moment after it says that it is done."""
        for _ in range(100):
            async with self._http.get(f"{self._url}/history/{job}") as answer:
                history = await answer.json()
            if job in history:
                return [self._file(made) for outputs in history[job]["outputs"].values() for made in _made(outputs)]
            await asyncio.sleep(0.05)
        return []

    def _file(self, made: Message) -> Message:
        query = urlencode({name: made.get(name, "") for name in ("filename", "subfolder", "type")})
        self._links.add(query)
        return {"name": made["filename"], "type": None, "size": None, "url": f"/v1/files/view?{query}"}

    def _spread(self, job: str, message: Message | bytes) -> None:
        for queue in self._heard.get(job, []):
            queue.put_nowait(message)

    def _end(self, job: str, message: Message) -> None:
        self._ends[job] = message
        self._running = None if self._running == job else self._running
        self._spread(job, message)


def _made(outputs: dict[str, Any]) -> list[Message]:
    return [one for files in outputs.values() for one in files if isinstance(one, dict) and "filename" in one]
