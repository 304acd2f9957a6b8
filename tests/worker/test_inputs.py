"""Input files on their way into ComfyUI."""

from __future__ import annotations

import base64
import io
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from blake3 import blake3
from PIL import Image

from broker.trial.workflows import plain_image
from tests.support.comfyui import Client, ComfyProcess, node


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


GRAPH: dict[str, Any] = {
    "7": node("LoadImage", image="will be replaced"),
    "8": node("SaveImage", images=["7", 0], filename_prefix="in"),
}


async def sees(client: Client, comfy: ComfyProcess, source: dict[str, Any], colour: tuple[int, int, int]) -> None:
    record = await client.run(GRAPH, worker=comfy, payload={"inputs": {"7.image": source}}, max_attempts=1)
    assert record["status"] == "completed", record
    image = Image.open(io.BytesIO(await client.fetch(record["result"]["outputs"][0])))
    assert (image.size, image.getpixel((3, 3))) == ((20, 10), colour)


async def test_a_file_in_the_message(client: Client, comfy: ComfyProcess) -> None:
    content = base64.b64encode(picture((1, 2, 3))).decode()
    await sees(client, comfy, {"base64": content, "filename": "a.png"}, (1, 2, 3))


async def test_a_file_that_was_uploaded_before(client: Client, comfy: ComfyProcess) -> None:
    content = picture((4, 5, 6))
    digest = blake3(content).hexdigest()
    async with client.session.put(f"/api/assets/{digest}", data=content) as answer:
        assert answer.status in (200, 201)
    await sees(client, comfy, {"asset": f"blake3:{digest}", "filename": "b.png"}, (4, 5, 6))


async def test_a_file_from_the_web(client: Client, comfy: ComfyProcess) -> None:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=picture((7, 8, 9)), content_type="image/png")

    app = web.Application()
    app.router.add_get("/cat", serve)
    async with TestServer(app) as server:
        await sees(client, comfy, {"url": str(server.make_url("/cat"))}, (7, 8, 9))


async def test_a_file_that_is_not_there_fails_the_job(client: Client, comfy: ComfyProcess) -> None:
    missing = {"7.image": {"asset": f"blake3:{'0' * 64}"}}
    record = await client.run(GRAPH, worker=comfy, payload={"inputs": missing}, max_attempts=1)
    assert (record["status"], record["error"]["code"]) == ("failed", "input_unavailable")
    assert "7.image" in record["error"]["message"]


async def test_a_file_that_another_job_made(client: Client, comfy: ComfyProcess) -> None:
    """The child is submitted first thing, waits for its parent, and sees the picture that the parent's node saved."""
    parent = await client.submit(plain_image(0x0A0B0C, 32), worker=comfy)
    source = {"output": {"job_id": parent, "node_id": "2", "index": 0}}
    job = await client.submit(GRAPH, worker=comfy, payload={"inputs": {"7.image": source}}, max_attempts=1)
    record = await client.until(job)
    assert (record["status"], record["depends_on"]) == ("completed", [parent]), record
    image = Image.open(io.BytesIO(await client.fetch(record["result"]["outputs"][0])))
    assert (image.size, image.getpixel((3, 3))) == ((32, 32), (0x0A, 0x0B, 0x0C))


async def test_a_file_that_another_job_did_not_make(client: Client, comfy: ComfyProcess) -> None:
    parent = await client.submit(plain_image(1, 16), worker=comfy)
    source = {"output": {"job_id": parent, "node_id": "2", "index": 5}}
    record = await client.run(GRAPH, worker=comfy, payload={"inputs": {"7.image": source}})
    assert (record["status"], record["error"]["code"], record["attempt"]) == ("failed", "input_unavailable", 1)
    assert "made 1 files" in record["error"]["message"]
