"""Input files on their way into ComfyUI."""

from __future__ import annotations

import asyncio
import base64
import io
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from blake3 import blake3
from PIL import Image

from broker.trial.workflows import plain_image
from comfyui_emq_node.payload import stray_name
from tests.support.comfyui import LONG, Client, ComfyProcess, node, slow
from tests.support.files import picture

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
    await sees(client, comfy, {"base64": f"data:image/png;base64,{content}"}, (1, 2, 3))


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


async def ending(client: Client, comfy: ComfyProcess, graph: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """A job's record at its end."""
    return await client.run(graph, worker=comfy, payload={"inputs": inputs}, max_attempts=1)


def embedded(content: bytes, name: str) -> dict[str, str]:
    return {"base64": base64.b64encode(content).decode(), "filename": name}


async def test_a_mask(client: Client, comfy: ComfyProcess) -> None:
    graph = {
        "1": node("LoadImageMask", image="?", channel="red"),
        "2": node("MaskToImage", mask=["1", 0]),
        "3": node("SaveImage", images=["2", 0], filename_prefix="mask"),
    }
    record = await ending(client, comfy, graph, {"1.image": embedded(picture((200, 0, 0)), "mask.png")})
    assert record["status"] == "completed", record
    image = Image.open(io.BytesIO(await client.fetch(record["result"]["outputs"][0])))
    assert image.getpixel((0, 0)) == (200, 200, 200)


async def test_a_latent_that_another_job_saved(client: Client, comfy: ComfyProcess) -> None:
    parent = await client.run(
        {
            "1": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "2": node("SaveLatent", samples=["1", 0], filename_prefix="lat"),
        },
        worker=comfy,
    )
    (saved,) = parent["result"]["outputs"]
    graph = {
        "1": node("LoadLatent", latent="?"),
        "2": node("SaveLatent", samples=["1", 0], filename_prefix="again"),
    }
    source = {"output": {"job_id": parent["job_id"], "node_id": "2", "index": 0}, "filename": "x.latent"}
    record = await ending(client, comfy, graph, {"1.latent": source})
    assert record["status"] == "completed", record
    again = await client.fetch(record["result"]["outputs"][0])
    assert again[-1024:] == (await client.fetch(saved))[-1024:]  # behind a header that holds the graph
    broken = await ending(client, comfy, graph, {"1.latent": embedded(picture((1, 1, 1)), "x.latent")})
    assert (broken["error"]["code"], "no latent" in broken["error"]["message"]) == ("input_unavailable", True)


async def test_audio_and_video(client: Client, comfy: ComfyProcess) -> None:
    """Made by ComfyUI's own nodes, taken in by its own loaders."""
    made = await client.run(
        {
            "1": node("EmptyImage", width=64, height=64, batch_size=8, color=0x336699),
            "2": node("EmptyAudio", duration=1.0, sample_rate=44100, channels=1),
            "3": node("CreateVideo", images=["1", 0], fps=8.0, audio=["2", 0]),
            "4": node("SaveVideo", video=["3", 0], filename_prefix="clip", format="mp4", codec="h264"),
            "5": node("SaveAudio", audio=["2", 0], filename_prefix="sound"),
        },
        worker=comfy,
    )
    assert made["status"] == "completed", made
    outputs = {output["node_id"]: output for output in made["result"]["outputs"]}
    assert {node_id: output["kind"] for node_id, output in outputs.items()} == {"4": "video", "5": "audio"}
    graph = {
        "1": node("LoadVideo", file="?"),
        "2": node("GetVideoComponents", video=["1", 0]),
        "3": node("ImageFromBatch", image=["2", 0], batch_index=0, length=1),
        "4": node("SaveImage", images=["3", 0], filename_prefix="frame"),
        "5": node("LoadAudio", audio="?"),
        "6": node("SaveAudio", audio=["5", 0], filename_prefix="again"),
    }
    job = made["job_id"]
    sources: dict[str, Any] = {
        "1.file": {"output": {"job_id": job, "node_id": "4", "index": 0}},
        "5.audio": {"output": {"job_id": job, "node_id": "5", "index": 0}},
    }
    record = await ending(client, comfy, graph, sources)
    assert record["status"] == "completed", record
    assert {output["kind"] for output in record["result"]["outputs"]} == {"image", "audio"}
    sources["1.file"], sources["5.audio"] = sources["5.audio"], embedded(b"RIFF\0\0\0\0WAVEfmt ", "x.wav")
    broken = await ending(client, comfy, graph, sources)
    assert broken["error"]["code"] == "input_unavailable"


async def test_a_reference_inside_the_graph(client: Client, comfy: ComfyProcess) -> None:
    graph = {"7": node("LoadImage", image=embedded(picture((11, 12, 13)), "a.png")), "8": GRAPH["8"]}
    record = await client.run(graph, worker=comfy)
    assert record["status"] == "completed", record
    image = Image.open(io.BytesIO(await client.fetch(record["result"]["outputs"][0])))
    assert image.getpixel((0, 0)) == (11, 12, 13)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\x.png",
        "C:\\x.png",
        "a/../../b.png",
        "x_00001_.png [output]",
        "b.png [temp]",
    ],
)
async def test_a_graph_names_no_file_outside_of_the_input_folder(
    client: Client, comfy: ComfyProcess, name: str
) -> None:
    graph = {"7": node("LoadImage", image=name), "8": GRAPH["8"]}
    status, answer = await client.json("POST", "/api/jobs", {"payload": {"workflow": graph}})
    assert (status, answer["code"], answer["details"]["reason"]) == (400, "invalid_workflow", "not_allowed")
    assert stray_name(graph) == ("7", "image"), "the worker looks again"


async def test_the_next_job_s_files_come_while_this_one_runs(
    client: Client, comfy: ComfyProcess, tmp_path: Path
) -> None:
    asked, over = asyncio.Event(), tmp_path / "over"

    async def serve(_: web.Request) -> web.Response:
        asked.set()
        return web.Response(body=picture((3, 2, 1)), content_type="image/png")

    app = web.Application()
    app.router.add_get("/cat.png", serve)
    await client.run(slow(20, 0.05, seed=900), worker=comfy)  # what such a job takes is known then
    async with TestServer(app) as server:
        running = await client.submit(slow(LONG, seed=901, until=str(over)), worker=comfy)
        source = {"url": str(server.make_url("/cat.png"))}
        job = await client.submit(GRAPH, worker=comfy, payload={"inputs": {"7.image": source}})
        await asyncio.wait_for(asked.wait(), 60)
        assert (await client.job(running))["status"] == "processing"
        over.touch()
        record = await client.until(job)
    assert record["status"] == "completed", record


async def test_a_job_that_is_cancelled_while_its_files_come_ends_at_once(client: Client, comfy: ComfyProcess) -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def serve(_: web.Request) -> web.Response:
        asked.set()
        await go.wait()
        return web.Response()

    app = web.Application()
    app.router.add_get("/slow.png", serve)
    async with TestServer(app) as server:
        source = {"url": str(server.make_url("/slow.png"))}
        job = await client.submit(GRAPH, worker=comfy, payload={"inputs": {"7.image": source}})
        await asyncio.wait_for(asked.wait(), 60)
        await client.json("POST", f"/api/jobs/{job}/cancel", {})
        assert (await client.until(job))["status"] == "cancelled"
        assert (await client.run(plain_image(0x10203, 16), worker=comfy))["status"] == "completed"
        go.set()
