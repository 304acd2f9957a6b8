"""A job's way through a real ComfyUI."""

from __future__ import annotations

import io
import json
import secrets
import struct
from pathlib import Path
from typing import Any

from PIL import Image

from broker.trial.workflows import plain_image, text_to_image
from tests.support.collector import Collector, about
from tests.support.comfyui import LONG, Client, ComfyProcess, node, slow


async def test_a_picture_comes_back(client: Client, comfy: ComfyProcess) -> None:
    record = await client.run(plain_image(0xFF8000, 32), worker=comfy)
    assert record["status"] == "completed"
    (output,) = record["result"]["outputs"]
    assert (output["node_id"], output["kind"], output["content_type"]) == ("2", "image", "image/png")
    content = await client.fetch(output)
    assert len(content) == output["size"]
    assert content.startswith(b"\x89PNG")
    timings = record["result"]["timings"]
    assert set(timings) >= {"queued_ms", "input_ms", "execution_ms", "output_ms"}
    assert (record["worker_id"], record["attempt"], record["progress"]) == (comfy.worker_id, 1, 100)


async def test_progress_is_of_the_whole_workflow(client: Client, comfy: ComfyProcess, tmp_path: Path) -> None:
    """It begins before the first node has ended, never falls and ends at 100."""
    followed = tmp_path / "followed"

    async def look(events: list[dict[str, Any]], _: list[bytes]) -> None:
        if any(event["type"] == "update_job_progress" for event in events):
            followed.touch()

    # ComfyUI runs first what has no inputs and is an output: nothing else until somebody follows the job.
    graph = {**text_to_image(seed=7, size=256), "99": slow(LONG, seed=7, until=str(followed))["1"]}
    job = await client.submit(graph, worker=comfy)
    events, _ = await client.follow(job, look=look)
    statuses = [event["status"] for event in events if event["type"] == "job_update"]
    assert statuses == ["pending", "claimed", "processing", "completed"]
    reports = [event for event in events if event["type"] == "update_job_progress"]
    progress = [event["progress"] for event in reports]
    assert progress == sorted(progress)
    assert (progress[0] < 50, progress[-1]) == (True, 100)
    assert reports[0]["nodes_total"] == 8
    assert {report["worker_id"] for report in reports} == {comfy.worker_id}


async def test_a_watched_sampler_shows_previews(client: Client, comfy: ComfyProcess) -> None:
    """Previews are small JPEGs in ComfyUI's format 4, and come from a sampler although nobody asked ComfyUI for any."""
    job = await client.submit(text_to_image(seed=8, steps=1000, size=512), worker=comfy)

    def sampled(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        nodes = [event.get("node") or {} for event in events]
        return [node for node in nodes if node.get("class_type") == "KSampler" and node["value"] > 1]

    async def look(events: list[dict[str, Any]], frames: list[bytes]) -> None:
        if sampled(events) and frames:
            await client.json("POST", f"/api/jobs/{job}/cancel", {})

    events, frames = await client.follow(job, previews=True, look=look)
    assert sampled(events)[0]["max"] == 1000
    assert frames
    for frame in frames:
        assert len(frame) <= 15 * 1024
        event, length = struct.unpack(">II", frame[:8])
        meta = json.loads(frame[8 : 8 + length])
        assert (event, meta["job_id"], meta["node_id"], meta["image_type"]) == (4, job, "3", "image/jpeg")
        picture = Image.open(io.BytesIO(frame[8 + length :]))
        assert picture.format == "JPEG"
        assert max(picture.size) <= 256


async def test_large_previews_are_shrunk_and_rare(client: Client, comfy: ComfyProcess, tmp_path: Path) -> None:
    seen = tmp_path / "seen"

    async def look(_: list[dict[str, Any]], frames: list[bytes]) -> None:
        if len(frames) >= 3:
            seen.touch()

    job = await client.submit(slow(LONG, 0.03, seed=1, preview=True, until=str(seen)), worker=comfy)
    events, frames = await client.follow(job, previews=True, look=look)
    seconds = events[-1]["result"]["timings"]["execution_ms"] / 1000
    assert 3 <= len(frames) <= 2 * seconds + 1
    assert all(len(frame) <= 15 * 1024 for frame in frames)


async def test_the_same_prompt_again_is_answered_from_the_cache(client: Client, comfy: ComfyProcess) -> None:
    first, second = [await client.run(plain_image(0x123456, 40), worker=comfy) for _ in range(2)]
    assert second["status"] == "completed"
    assert second["result"]["outputs"][0]["hash"] == first["result"]["outputs"][0]["hash"]


async def test_previews_are_delivered_where_there_is_nothing_else(client: Client, comfy: ComfyProcess) -> None:
    image = node("EmptyImage", width=16, height=16, batch_size=1, color=3)
    preview = node("PreviewImage", images=["1", 0])
    alone = await client.run({"1": image, "2": preview}, worker=comfy)
    assert [output["node_id"] for output in alone["result"]["outputs"]] == ["2"]
    save = node("SaveImage", images=["1", 0], filename_prefix="both")
    both = await client.run({"1": image, "2": preview, "3": save}, worker=comfy)
    assert [output["node_id"] for output in both["result"]["outputs"]] == ["3"]


async def test_images_sent_through_the_socket_are_outputs(client: Client, comfy: ComfyProcess) -> None:
    graph = {
        "1": node("EmptyImage", width=24, height=24, batch_size=2, color=9),
        "2": node("SaveImageWebsocket", images=["1", 0]),
    }
    record = await client.run(graph, worker=comfy)
    outputs = record["result"]["outputs"]
    assert [(output["node_id"], output["content_type"]) for output in outputs] == [("2", "image/png")] * 2
    assert Image.open(io.BytesIO(await client.fetch(outputs[0]))).size == (24, 24)


async def test_files_are_judged_by_what_they_are(client: Client, comfy: ComfyProcess) -> None:
    """Keys and formats that a pack invents do not matter."""
    glb = b"glTF\x02\x00\x00\x00".hex()
    mp4 = b"\x00\x00\x00\x18ftypisom".hex()
    graph = {
        "1": node("EMQTestFile", name="a.glb", head=glb, size=100, key="mesh"),
        "2": node("EMQTestFile", name="b.mp4", head=mp4, size=1000, key="gifs"),
        "3": node("EMQTestFile", name="c.mp3", head=b"ID3\x04".hex(), size=1000, key="odd"),
        "4": node("EMQTestFile", name="größe d.xyz", head="00ff", size=10, key="x"),
        "5": node("EMQTestFile", name="e.txt", head=b"hello".hex(), size=0, key="y"),
    }
    record = await client.run(graph, worker=comfy)
    found = {output["filename"]: output for output in record["result"]["outputs"]}
    kinds = {name: output["kind"] for name, output in found.items()}
    assert kinds == {"a.glb": "file", "b.mp4": "video", "c.mp3": "audio", "größe d.xyz": "file", "e.txt": "text"}
    assert found["e.txt"]["text"] == "hello"
    assert len(await client.fetch(found["b.mp4"])) == 1000


async def test_texts_come_inline_and_as_a_file(client: Client, comfy: ComfyProcess) -> None:
    record = await client.run({"1": node("EMQTestText", text="a line\nand ünother")}, worker=comfy)
    (output,) = record["result"]["outputs"]
    assert (output["kind"], output["text"]) == ("text", "a line\nand ünother")
    assert (await client.fetch(output)).decode() == "a line\nand ünother"
    long = await client.run({"1": node("EMQTestText", text="x" * 20_000)}, worker=comfy)
    assert "text" not in long["result"]["outputs"][0]


async def test_a_job_without_outputs_is_complete(client: Client, comfy: ComfyProcess) -> None:
    record = await client.run({"1": node("EMQTestSleep", seconds=0.01, seed=1)}, worker=comfy)
    assert (record["status"], record["result"]["outputs"]) == ("completed", [])


async def test_the_page_can_open_the_picture_again(client: Client, comfy: ComfyProcess) -> None:
    """The page's own workflow goes into the picture's metadata, as when the page had queued it."""
    workflow = {"nodes": [], "links": [], "version": 0.4}
    extra = {"extra_data": {"extra_pnginfo": {"workflow": workflow}}}
    record = await client.run(plain_image(0x777777, 20), worker=comfy, payload=extra)
    picture = Image.open(io.BytesIO(await client.fetch(record["result"]["outputs"][0])))
    assert json.loads(picture.info["workflow"]) == workflow
    assert set(json.loads(picture.info["prompt"])) == {"1", "2"}


async def test_many_jobs_come_through(client: Client, comfy: ComfyProcess) -> None:
    jobs = [await client.submit(plain_image(1000 + index, 8), worker=comfy) for index in range(60)]
    records = [await client.until(job) for job in jobs]
    assert {record["status"] for record in records} == {"completed"}
    assert {record["attempt"] for record in records} == {1}


async def test_the_fleet_shows_what_the_worker_has(client: Client, comfy: ComfyProcess) -> None:
    worker = await client.worker(comfy.worker_id)
    assert worker is not None
    assert worker["machine_id"] == "test"
    assert worker["comfyui_version"] == "0.3.75"
    assert worker["status"] in ("idle", "busy")
    assert (worker["tags"], worker["supported_job_types"], worker["gpu_count"]) == (
        [comfy.worker_id],
        ["comfyui", "video"],
        3,
    )
    assert worker["labels"] == {"comfyui_host": "gpu-box", "comfyui_port": "8188", "comfyui_ws_port": "8189"}
    assert worker["torch_version"].startswith("2.")


async def test_a_worker_takes_the_types_of_jobs_that_it_is_told(client: Client, comfy: ComfyProcess) -> None:
    taken = await client.run(plain_image(31, 8), worker=comfy, job_type="video")
    assert (taken["status"], taken["job_type"]) == ("completed", "video")
    left = await client.submit(plain_image(32, 8), worker=comfy, job_type="sound")
    assert (await client.run(plain_image(33, 8), worker=comfy))["status"] == "completed"
    record = await client.job(left)
    assert (record["status"], record["waiting_for"][0]["code"]) == ("pending", "no_worker_has_job_type")
    await client.json("POST", f"/api/jobs/{left}/cancel", {})


async def test_a_trace_shows_the_nodes_and_the_upload(
    client: Client, comfy: ComfyProcess, collector: Collector
) -> None:
    trace = secrets.token_hex(16)
    given = f"00-{trace}-{'ab' * 8}-01"
    graph = {**plain_image(77, 16), "3": slow(10, 0.05, seed=secrets.randbelow(1 << 30))["1"]}
    record = await client.run(graph, worker=comfy, traceparent=given)
    assert record["status"] == "completed"
    spans = await collector.named(
        trace, "submit", "wait", "attempt", "execution", "node SaveImage", "node EMQTestProgress", "upload"
    )
    assert {span.parent_span_id.hex() for span in collector.of(trace) if span.name.startswith("node ")} == {
        spans["execution"].span_id.hex()
    }
    slowest = spans["node EMQTestProgress"]
    assert about(slowest)["emq.node_id"] == "3"
    assert slowest.end_time_unix_nano - slowest.start_time_unix_nano >= 400_000_000
    assert about(spans["attempt"])["emq.worker_id"] == comfy.worker_id
    within = spans["attempt"]
    for name in ("execution", "node EMQTestProgress", "upload"):
        assert within.start_time_unix_nano <= spans[name].start_time_unix_nano <= spans[name].end_time_unix_nano
        assert spans[name].end_time_unix_nano <= within.end_time_unix_nano
