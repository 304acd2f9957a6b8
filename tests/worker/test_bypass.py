"""``deploy/nginx-bypass.conf``: the queue's address leads straight to a ComfyUI, through Debian's NGINX."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from broker.trial.workflows import plain_image
from tests.support.comfyui import ComfyProcess
from tests.support.nginx import nginx


async def test_a_prompt_goes_past_the_queue_and_emq_s_clients_are_told_to_wait(
    comfy: ComfyProcess, tmp_path: Path
) -> None:
    async with (
        nginx("nginx-bypass.conf", tmp_path / "nginx", [f"127.0.0.1:{comfy.port}"]) as bypass,
        aiohttp.ClientSession(bypass.url, timeout=aiohttp.ClientTimeout(total=60)) as http,
        http.ws_connect("/ws?clientId=api") as ws,
    ):
        async with http.post("/prompt", json={"prompt": plain_image(), "client_id": "api"}) as response:
            assert response.status == 200, await response.text()
            prompt = (await response.json())["prompt_id"]
        async with asyncio.timeout(60):
            while True:
                message = await ws.receive_json()
                if message["type"] == "executing" and message["data"] == {"node": None, "prompt_id": prompt}:
                    break
        async with http.get(f"/history/{prompt}") as response:
            outputs = (await response.json())[prompt]["outputs"]
        (picture,) = [image for node in outputs.values() for image in node["images"]]
        async with http.get("/view", params=picture) as response:
            assert (await response.read()).startswith(b"\x89PNG")
        for path in ("/queue/ws", "/ws/worker", "/ws/client/x", "/api/tickets", "/health", "/stats"):
            async with http.get(path) as response:
                assert (response.status, (await response.json())["code"]) == (503, "unavailable"), path
                assert response.headers["Retry-After"] == "60"
        async with http.get("/queue") as response:
            assert "queue_running" in await response.json(), "ComfyUI has an address of this name itself"


async def test_others_do_not_come_in(comfy: ComfyProcess, tmp_path: Path) -> None:
    """ComfyUI has no access control: NGINX lets the API servers in and nobody else."""
    edits = {"allow 127.0.0.1;": "allow 192.0.2.1;"}
    async with (
        nginx("nginx-bypass.conf", tmp_path / "nginx", [f"127.0.0.1:{comfy.port}"], **edits) as bypass,
        aiohttp.ClientSession(bypass.url) as http,
    ):
        for path in ("/prompt", "/system_stats", "/"):
            async with http.get(path) as response:
                assert response.status == 403, path
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await http.ws_connect("/ws")
