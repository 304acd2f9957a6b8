"""What a real ComfyUI's files become: kinds, sizes, lengths; and what is left of them on its disk."""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image

from broker.trial.workflows import plain_image
from tests.support.comfyui import BrokerProcess, Client, ComfyProcess, node
from tests.support.waiting import wait_until
from tests.worker.conftest import MakeComfy

EVERY_KIND: dict[str, Any] = {
    "1": node("EmptyImage", width=64, height=48, batch_size=8, color=0x3366CC),
    "2": node("CreateVideo", images=["1", 0], fps=8.0),
    "3": node("SaveVideo", video=["2", 0], filename_prefix="kinds/clip", format="mp4", codec="h264"),
    "4": node("SaveAnimatedWEBP", images=["1", 0], filename_prefix="kinds/move", fps=8.0, lossless=False, quality=80,
              method="default"),
    "5": node("EmptyAudio", duration=1.5, sample_rate=44100, channels=2),
    "6": node("SaveAudio", audio=["5", 0], filename_prefix="kinds/sound"),
    "7": node("SaveAudioMP3", audio=["5", 0], filename_prefix="kinds/song", quality="V0"),
    "8": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "9": node("SaveLatent", samples=["8", 0], filename_prefix="kinds/latent"),
    "10": node("SaveWEBM", images=["1", 0], filename_prefix="kinds/web", codec="vp9", fps=8.0, crf=32.0),
}  # fmt: skip


async def test_every_kind_of_file_arrives_as_what_it_is(client: Client, comfy: ComfyProcess) -> None:
    record = await client.run(EVERY_KIND, worker=comfy)
    assert record["status"] == "completed", record["error"]
    outputs = {output["node_id"]: output for output in record["result"]["outputs"]}
    kinds = {number: (output["kind"], output["content_type"]) for number, output in outputs.items()}
    assert kinds == {
        "3": ("video", "video/mp4"),
        "4": ("image", "image/webp"),
        "6": ("audio", "audio/flac"),
        "7": ("audio", "audio/mpeg"),
        "9": ("file", "application/octet-stream"),
        "10": ("video", "video/webm"),
    }
    for number in ("3", "4", "10"):
        assert (outputs[number]["width"], outputs[number]["height"]) == (64, 48), number
    for number, seconds in (("3", 1.0), ("10", 1.0), ("6", 1.5), ("7", 1.5)):
        assert abs(outputs[number]["duration_s"] - seconds) < 0.2, number
    for output in outputs.values():
        assert len(await client.fetch(output)) == output["size"]


async def test_a_worker_that_cleans_up_delivers_the_same_job_twice(
    make_comfy: MakeComfy, broker: BrokerProcess, client: Client, small_disk: Path
) -> None:
    """ComfyUI remembers what it saved; files that are gone by then must not be what a job gets. A full disk passes."""
    worker = make_comfy(broker, EMQ_CLEAN_OUTPUTS="1", EMQ_STRIP_METADATA="1")
    (worker.base / "output").rmdir()
    (worker.base / "output").symlink_to(small_disk)
    worker.start().wait_ready()
    graph = plain_image(0x00FF80, 32)
    graph["9"] = node("PreviewImage", images=["1", 0])
    for _ in range(2):
        record = await client.run(graph, worker=worker)
        assert record["status"] == "completed", record["error"]
        (output,) = record["result"]["outputs"]
        assert (output["width"], output["height"]) == (32, 32)
        with Image.open(io.BytesIO(await client.fetch(output))) as picture:
            assert picture.info == {}
        await wait_until(lambda: not saved(worker), 30, "the files are removed")
    graph["99"] = node("EMQTestFail", kind="ValueError", message="after the picture")
    assert (await client.run(graph, worker=worker, max_attempts=1))["status"] == "failed"
    await wait_until(lambda: not saved(worker), 30, "the files of a failed job are removed")
    fill(small_disk / "fill")
    failed = await client.run(plain_image(0x112233, 64), worker=worker, max_attempts=1)
    assert (failed["status"], failed["error"]["code"]) == ("failed", "worker_disk_full")
    (small_disk / "fill").unlink()
    assert (await client.run(plain_image(0x112233, 64), worker=worker))["status"] == "completed"


def fill(path: Path) -> None:
    """Leave no room on a disk."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            with suppress(OSError):
                while file.write(bytes(size)):
                    pass


def saved(worker: ComfyProcess) -> list[Path]:
    folders = (worker.base / "output", worker.base / "temp")
    return [path for folder in folders for path in folder.resolve().rglob("*.png")]
