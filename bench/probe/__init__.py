"""A node pack for benchmarks: stamps executions where they happen, and queues prompts in process.

``GET /emq_probe?ends=N`` waits for N ends, answers ``{"starts": [...], "ends": [...]}`` (seconds by ``time.time``,
taken in ComfyUI's prompt thread) and forgets them: asking again and again would take time from what is measured.
``POST /emq_probe`` with a list of prompts puts all of them at once through ComfyUI's own prompt handler, with no client
in between.
"""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from typing import Any

import folder_paths
from aiohttp import web
from server import PromptServer


class File:
    """Takes its time, as a GPU would, and leaves a file of a size."""

    CATEGORY = "emq/bench"
    FUNCTION = "make"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "megabytes": ("INT", {"default": 1, "max": 10000}),
                "seconds": ("FLOAT", {"default": 0.0, "max": 100.0}),
                "seed": ("INT", {"default": 0, "max": 1000000}),
            }
        }

    def make(self, megabytes: int, seconds: float, seed: int) -> dict[str, Any]:
        time.sleep(seconds)
        if not megabytes:
            return {"ui": {}}
        name, chunk = f"bench_{seed}.bin", os.urandom(1 << 20)
        with open(os.path.join(folder_paths.get_output_directory(), name), "wb") as file:
            for _ in range(megabytes):
                file.write(chunk)
        return {"ui": {"files": [{"filename": name, "subfolder": "", "type": "output"}]}}


class Take:
    """Takes a file without reading it, and says how large it is."""

    CATEGORY = "emq/bench"
    FUNCTION = "take"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"file": ("STRING", {"default": ""})}}

    def take(self, file: str) -> dict[str, Any]:
        size = os.path.getsize(os.path.join(folder_paths.get_input_directory(), file))
        return {"ui": {"text": [str(size)]}}


NODE_CLASS_MAPPINGS: dict[str, Any] = {"EMQBenchFile": File, "EMQBenchTake": Take}
SERVER = PromptServer.instance
STAMPS: dict[str, list[float]] = {"execution_start": [], "execution_success": []}
ENOUGH = asyncio.Event()
AWAITED = {"ends": 0}
WAIT_S = 120


class _Request:
    """What ComfyUI's prompt handler reads of a request."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body
        self.headers: dict[str, str] = {}

    async def json(self) -> dict[str, Any]:
        return self._body


async def _tap(app: web.Application) -> None:
    """Put the stamps before every other pack's wrapper: EMQ's keeps its own prompts' events from the page."""
    send_sync = SERVER.send_sync

    def stamped(event: Any, data: Any, sid: str | None = None) -> None:
        if event in STAMPS:
            STAMPS[event].append(time.time())
            if event == "execution_success" and len(STAMPS[event]) == AWAITED["ends"]:
                SERVER.loop.call_soon_threadsafe(ENOUGH.set)
        send_sync(event, data, sid)

    SERVER.send_sync = stamped


@SERVER.routes.get("/emq_probe")
async def read(request: web.Request) -> web.Response:
    """Answer the stamps, once there are enough, and forget them."""
    wanted = AWAITED["ends"] = int(request.query.get("ends", 0))
    ENOUGH.clear()
    if len(STAMPS["execution_success"]) < wanted:
        await asyncio.wait_for(ENOUGH.wait(), WAIT_S)
    AWAITED["ends"] = 0
    starts, ends = STAMPS["execution_start"][:], STAMPS["execution_success"][:]
    for stamps in STAMPS.values():
        stamps.clear()
    return web.json_response({"starts": starts, "ends": ends})


@SERVER.routes.post("/emq_probe")
async def put(request: web.Request) -> web.Response:
    """Put all prompts into ComfyUI's own queue."""
    handler = next(r.handler for r in SERVER.routes if getattr(r, "path", "") == "/prompt" and r.method == "POST")
    for prompt in await request.json():
        await handler(_Request({"prompt": prompt, "prompt_id": str(uuid.uuid4()), "client_id": "emq-probe"}))
    return web.json_response({})


SERVER.app.on_startup.append(_tap)
