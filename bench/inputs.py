"""What previews cost a job, and what it saves that an input file is here already.

A real ComfyUI, worker and broker. Watched and unwatched jobs are interleaved, and the worker counts what previews it
made (``/emq/status``); a file's first use and its next ones are told apart by the worker's own measure (``input_ms``:
from the claim to the last file).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from blake3 import blake3
from PIL import Image

from bench.main_job import cpu_s, registered
from bench.stack import broker, comfyui, until
from bench.targets import Target, print_targets
from broker.trial.checkpoint import write_checkpoint
from broker.trial.workflows import CHECKPOINT, text_to_image
from comfyui_emq_node.previews import Preview, encode

MB = 1_000_000
LONGER_PERCENT = 5.0
PREVIEW_CPU_MS = 10.0
SAVED_TIMES = 5.0
SETTLE_S = 0.5


def latent(size: int) -> bytes:
    """A file that LoadLatent takes, with random content."""
    count = size // 4
    about = {"latent_tensor": {"dtype": "F32", "shape": [1, 1, 1, count], "data_offsets": [0, count * 4]}}
    header = json.dumps(
        {**about, "latent_format_version_0": {"dtype": "F32", "shape": [0], "data_offsets": [count * 4] * 2}}
    )
    return len(header).to_bytes(8, "little") + header.encode() + os.urandom(count * 4)


class Fleet:
    """The broker as the benchmark's client sees it."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http, self._url = http, url

    async def run(
        self, graph: dict[str, Any], *, watched: bool = False, **more: Any
    ) -> tuple[dict[str, Any], int, int]:
        """A job's timings, and how many previews came, of how many bytes."""
        frames = size = 0
        async with self.http.ws_connect(self._url + "/ws", max_msg_size=0) as socket:
            payload = {"workflow": graph, **more}
            job = {"type": "submit_job", "payload": payload, "subscribe": not watched, "delay_s": 0.2}
            await socket.send_json(job)
            accepted = await socket.receive_json()
            if watched:
                await socket.send_json({"type": "subscribe_job", "job_id": accepted["job_id"], "previews": True})
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    frames, size = frames + 1, size + len(message.data)
                    continue
                told = json.loads(message.data)
                assert told["type"] != "fail_job", told
                if told["type"] == "complete_job":
                    timings: dict[str, Any] = told["result"]["timings"]
                    return timings, frames, size
        raise RuntimeError("the broker closed the connection")

    async def upload(self, content: bytes) -> str:
        """Store an asset."""
        digest = blake3(content).hexdigest()
        async with self.http.put(f"{self._url}/api/assets/{digest}", data=content) as answer:
            answer.raise_for_status()
        return f"blake3:{digest}"


async def tally(http: aiohttp.ClientSession, comfy_url: str) -> dict[str, int]:
    """What previews the worker has made until now."""
    async with http.get(comfy_url + "/emq/status") as answer:
        counted: dict[str, int] = (await answer.json())["previews"]
    return counted


async def previews(fleet: Fleet, comfy_url: str, pid: int, args: argparse.Namespace) -> list[Target]:
    """Run samplers, every other one watched."""
    found: dict[bool, list[tuple[float, ...]]] = {False: [], True: []}
    made: dict[bool, Counter[str]] = {False: Counter(), True: Counter()}
    await fleet.run(text_to_image(seed=1, steps=args.steps, size=args.size))
    for number in range(args.jobs):
        for watched in (False, True) if number % 2 else (True, False):
            before, counted = cpu_s(pid), await tally(fleet.http, comfy_url)
            graph = text_to_image(seed=100 + 2 * number + watched, steps=args.steps, size=args.size)
            timings, frames, size = await fleet.run(graph, watched=watched)
            found[watched].append((timings["execution_ms"], (cpu_s(pid) - before) * 1000, frames, size))
            made[watched] += Counter(await tally(fleet.http, comfy_url)) - Counter(counted)
            if watched:
                await asyncio.sleep(SETTLE_S)
    print(f"\npreviews: KSampler, {args.steps} steps, {args.size} pixels; medians of {args.jobs} jobs each")
    for watched, name in ((False, "nobody watches"), (True, "somebody watches")):
        took, cpu, shown, sent = (statistics.median(each[i] for each in found[watched]) for i in range(4))
        print(f"  {name:17} {took:7.0f} ms   CPU {cpu:7.0f} ms   {shown:4.0f} previews   {sent / 1000:6.1f} kB   "
              f"all jobs: {made[watched]['decoded']} decoded, {made[watched]['encoded']} encoded, "
              f"{made[watched]['sent_bytes']} bytes sent")  # fmt: skip
    plain, shown = (statistics.median(each[0] for each in found[watched]) for watched in (False, True))
    unwatched = made[False]
    return [
        Target(
            "nobody watches: pictures decoded and encoded", unwatched["decoded"] + unwatched["encoded"], 0, most=True
        ),
        Target("nobody watches: bytes of previews sent", unwatched["sent_bytes"], 0, most=True),
        Target("a watched job takes longer, %", (shown / plain - 1) * 100, LONGER_PERCENT, most=True),
    ]


def encoding(count: int) -> Target:
    """What one picture costs, in CPU time: the figure that another load on the machine changes least."""
    picture = Image.effect_noise((128, 128), 60).resize((1024, 1024)).convert("RGB")
    costs = {}
    for side in (256, 512, 1024):
        began = time.process_time()
        for _ in range(count):
            frame = encode(Preview(picture, "1"), "job", side)
        costs[side] = (time.process_time() - began) / count * 1000
        print(f"  encoding 1024 pixels to {side:4}: {costs[side]:6.2f} ms CPU, {len(frame or b'') / 1000:6.1f} kB")
    return Target("one preview (1024 to 256 pixels), ms of CPU", costs[256], PREVIEW_CPU_MS, most=True)


async def cache(fleet: Fleet, sizes: list[int], rounds: int) -> Target:
    """Use files for the first time, and again."""
    print(f"\ninput files: LoadLatent from an asset, input_ms; medians of {rounds}")
    saved = 0.0
    for size in sizes:
        first: list[int] = []
        again: list[int] = []
        for _ in range(rounds):
            source = {"asset": await fleet.upload(latent(size * MB)), "filename": "x.latent"}
            for times in (first, again, again):
                graph = {
                    "1": {"class_type": "LoadLatent", "inputs": {"latent": ""}},
                    "2": {
                        "class_type": "LatentFromBatch",
                        "inputs": {"samples": ["1", 0], "batch_index": 0, "length": 1},
                    },
                    "3": {"class_type": "PreviewAny", "inputs": {"source": "x"}},
                }
                timings, _, _ = await fleet.run(graph, inputs={"1.latent": source})
                times.append(timings["input_ms"])
        new, known = statistics.median(first), statistics.median(again)
        saved = new / max(known, 1)
        print(f"  {size:4} MB   first use {new:7.0f} ms   again {known:7.0f} ms   {new - known:7.0f} ms saved")
    return Target(f"{sizes[-1]} MB: first use / again", saved, SAVED_TIMES)


async def measure(args: argparse.Namespace) -> list[Target]:
    """Start everything, and measure."""
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        with tempfile.TemporaryDirectory() as tmp:
            folder = Path(tmp)
            checkpoints = folder / "comfyui" / "models" / "checkpoints"
            checkpoints.mkdir(parents=True)
            write_checkpoint(checkpoints / CHECKPOINT)
            async with broker(folder, http) as url, comfyui(folder, http, worker=True) as (comfy_url, child):
                await until(lambda: registered(http, url), "the worker registers")
                fleet = Fleet(http, url)
                found = await previews(fleet, comfy_url, child.pid, args)
                found.append(encoding(100))
                return [*found, await cache(fleet, args.sizes, args.rounds)]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench inputs", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10, help="watched jobs, and unwatched ones")
    parser.add_argument("--steps", type=int, default=60, help="of the sampler")
    parser.add_argument("--size", type=int, default=256, help="of its picture, in pixels")
    parser.add_argument("--rounds", type=int, default=5, help="files of each size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 50], metavar="MB")
    print_targets(asyncio.run(measure(parser.parse_args(argv))))
    return 0
