"""A simulated GPU: it takes jobs, reports nodes and steps, sends previews and pictures, fails now and then.

Only the ComfyUI is missing. What it says goes through the worker's own client of the queue (the gateway, or Redis), so
the broker sees what a real worker makes it see; the page calls it simulated.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from comfyui_emq_node.queue import (
    Claim,
    Claimed,
    Failure,
    QueueAway,
    Refused,
    Registration,
    Report,
    StaleLease,
    Tokens,
    Unregistered,
    WorkQueue,
)
from comfyui_emq_node.version import VERSION

log = logging.getLogger(__name__)

REPORT_S = 0.2
PREVIEW_S = 0.5
BEAT_S = 5.0
RETRY_S = 2.0
GPUS = (("NVIDIA GeForce RTX 4090", 24_564), ("NVIDIA L40S", 46_068), ("NVIDIA GeForce RTX 3090", 24_576))
FAILURES = (
    Failure("out_of_memory", "CUDA out of memory. Tried to allocate 2.50 GiB.", "3", "KSampler"),
    Failure("node_error", "ValueError: Prompt is empty", "2", "CLIPTextEncode", retry=False),
)
NODES = ("CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "KSampler", "VAEDecode", "SaveImage")
_LOAD, _ENCODE, _SAMPLE, _DECODE = 0.1, 0.05, 0.75, 0.1
"""Parts of a run that the nodes take."""


@dataclass(frozen=True, slots=True)
class Model:
    """A simulated model: how long a run with it takes, and a load of it; seconds."""

    file: str
    run_s: float
    load_s: float
    vram_mb: int


MODELS = (
    Model("sd15-simulated.safetensors", 3.0, 2.0, 4_000),
    Model("sdxl-simulated.safetensors", 8.0, 5.0, 10_000),
    Model("flux1-dev-simulated.safetensors", 20.0, 12.0, 20_000),
)


def workflow(model: str, seed: int, steps: int = 20) -> dict[str, Any]:
    """An ordinary text-to-image graph; the same class for each model."""
    return {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a simulated picture", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "3": {
            "class_type": "KSampler",
            "inputs": {"seed": seed, "steps": steps, "model": ["1", 0], "positive": ["2", 0], "latent_image": ["4", 0]},
        },
        "5": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["1", 2]}},
        "6": {"class_type": "SaveImage", "inputs": {"images": ["5", 0], "filename_prefix": "simulated"}},
    }


def picture(seed: int, sharpness: float, side: int = 96) -> bytes:
    """A PNG: waves of colour that come out of noise as ``sharpness`` goes from 0 to 1."""
    dice, rows = random.Random(seed), []  # noqa: S311 - a picture, no secret
    waves = [(dice.uniform(1, 4), dice.uniform(0, 6.3), dice.random()) for _ in range(3)]
    noise = dice.randbytes(side)
    for y in range(side):
        row = bytearray([0])
        for x in range(side):
            grain = (1 - sharpness) * (noise[(x * 7 + y * 13) % side] - 128)
            for times, shift, slant in waves:
                wave = math.sin(times * (x * slant + y * (1 - slant)) / side * 6.3 + shift)
                row.append(max(0, min(255, int(128 + 100 * sharpness * wave + grain))))
        rows.append(bytes(row))

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"".join(rows), 6))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def frame(job_id: str, image: bytes) -> bytes:
    """A preview in ComfyUI's format 4."""
    metadata = json.dumps({"job_id": job_id, "node_id": "3", "image_type": "image/png"}).encode()
    return struct.pack(">II", 4, len(metadata)) + metadata + image


@dataclass
class SimulatedGpu:
    """One simulated worker; ``pace`` divides all times, ``failing`` is the share of runs that fail."""

    queue: WorkQueue
    number: int
    http: aiohttp.ClientSession
    pace: float = 1.0
    failing: float = 0.03
    models: Sequence[Model] = MODELS
    broker: str = ""
    loaded: str = ""
    job: Claimed | None = None
    ended: int = 0
    _cancelled: bool = False
    _watched: bool = False
    _used_mb: int = 0
    _given: Claimed | None = None
    """A job that came in a hint."""
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _tokens: Tokens = field(default_factory=Tokens)

    def __post_init__(self) -> None:
        """Draw what kind of GPU it is."""
        self.dice = random.Random(self.number)  # noqa: S311 - a simulation, no secret
        self.gpu, self.vram_mb = GPUS[self.number % len(GPUS)]

    async def run(self) -> None:
        """Work until cancelled, then leave; a queue that is away is tried again."""
        tasks: list[asyncio.Task[None]] = []
        try:
            while True:
                with contextlib.suppress(QueueAway, Refused):
                    await self._register()
                    break
                await asyncio.sleep(RETRY_S)
            tasks = [asyncio.create_task(part()) for part in (self._beats, self._hints, self._work)]
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(QueueAway, Refused, Unregistered, TimeoutError):
                async with asyncio.timeout(2):
                    await self.queue.bye()
            await self.queue.close()

    async def _register(self) -> None:
        files = [model.file for model in self.models]
        profile = {
            "supported_job_types": ["comfyui"], "job_types": ["comfyui"], "node_classes": list(NODES), "tags": [],
            "models": {"checkpoints": files}, "vram_mb": self.vram_mb,
            "model_inputs": {"CheckpointLoaderSimple": {"ckpt_name": "checkpoints"}}, "gpu": self.gpu,
        }  # fmt: skip
        info = {
            "simulated": True, "version": VERSION, "comfyui_version": "0.0.0-simulated", "tags": [],
            "gpus": [{"name": self.gpu, "vram_mb": self.vram_mb}],
        }  # fmt: skip
        held = (self.job,) if self.job else ()
        await self.queue.register(Registration(f"rack-{self.number // 8}", profile, info, jobs=held))

    async def _beats(self) -> None:
        while True:
            try:
                held = [self.job] if self.job else []
                free = self.vram_mb - self._used_mb - self.dice.randrange(200)
                gpu = {"vram_free_mb": free, "utilisation": 97 if self.job else 0}
                beat = await self.queue.heartbeat(
                    "busy" if self.job else "idle", held, [self.loaded] if self.loaded else [], [gpu]
                )
                if self.job:
                    self._watched = bool(beat.watched and self.job.job_id in beat.watched)
                    self._cancelled |= beat.jobs.get(self.job.job_id, ("", ""))[0] in ("cancel", "lost")
                if beat.work and not (beat.paused or beat.drain):
                    self._wake.set()
            except Unregistered:
                with contextlib.suppress(QueueAway, Refused):
                    await self._register()
            except (QueueAway, Refused) as error:
                log.debug("%s", error)
            await asyncio.sleep(BEAT_S * self.dice.uniform(0.8, 1.2))

    async def _hints(self) -> None:
        while True:
            try:
                for hint in await self.queue.hints():
                    if not isinstance(hint, str):
                        self._given = hint
                        self._wake.set()
                        continue
                    word, _, job_id = hint.partition(" ")
                    if self.job and word == "cancel" and job_id.startswith(self.job.job_id):
                        self._cancelled = True
                    elif self.job and word == "watch":
                        self._watched = True
                    elif word == "work":
                        self._wake.set()
            except QueueAway:
                await asyncio.sleep(RETRY_S)

    async def _work(self) -> None:
        while True:
            try:
                self.job, self._given = self._given, None
                self.job = self.job or await self.queue.claim(self._claim())
                while self.job:
                    self.job = await self._do(self.job)
            except (QueueAway, Unregistered, StaleLease, Refused) as error:
                log.debug("%s", error)
                self.job = None
                await asyncio.sleep(RETRY_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._wake.wait()
            self._wake.clear()

    def _claim(self) -> Claim:
        return Claim(self._tokens.draw().hex(), [self.loaded] if self.loaded else [], standing=True)

    async def _do(self, job: Claimed) -> Claimed | None:
        """One job, from the load to its end; gives the next one."""
        self._cancelled, self._watched = False, job.watched
        model = self._model_of(job)
        cold = model.file != self.loaded
        self.loaded, self._used_mb = model.file, model.vram_mb
        run_s = self.dice.lognormvariate(math.log(model.run_s), 0.2) / self.pace + (model.load_s / self.pace) * cold
        stop_at = self.dice.uniform(0.2, 0.9) if self.dice.random() < self.failing else 2.0
        seed = self.dice.randrange(1 << 31)
        done = await self._execute(job, run_s, stop_at, seed)
        self.ended += 1
        if self._cancelled:
            return await self.queue.fail(job, Failure("interrupted", "Cancelled.", retry=False), self._claim())
        if not done:
            return await self.queue.fail(job, self.dice.choice(FAILURES), self._claim())
        outputs = await self._upload(job, picture(seed, 1.0))
        result = {"outputs": outputs, "timings": {"execution_ms": round(run_s * 1000)}}
        return await self.queue.finish(job, result, cold, (), self._claim())

    async def _execute(self, job: Claimed, run_s: float, stop_at: float, seed: int) -> bool:
        """Report node by node and step by step; false when it was stopped on the way."""
        loop = asyncio.get_running_loop()
        began, number, shown = loop.time(), 0, 0.0
        while True:
            part = min(1.0, (loop.time() - began) / run_s)
            number += 1
            await self.queue.report(Report(job, number, _progress(part), number % 5 == 1))
            if self._cancelled or part >= stop_at:
                return False
            if self._watched and loop.time() - shown > PREVIEW_S:
                shown = loop.time()
                await self.queue.preview(job, number, frame(job.job_id, picture(seed, part)))
            if part >= 1:
                return True
            await asyncio.sleep(min(REPORT_S, run_s / 4))

    def _model_of(self, job: Claimed) -> Model:
        raw = job.payload if job.payload[:1] == b"{" else zlib.decompress(job.payload)
        text = raw.decode("utf-8", "replace")
        return next((model for model in self.models if model.file in text), self.models[0])

    async def _upload(self, job: Claimed, image: bytes) -> list[Mapping[str, Any]]:
        """Store the picture as a worker does; without a broker to carry it to there is none."""
        uploads = job.uploads
        if uploads is None:
            return []
        headers = {"Authorization": uploads.authorization, "Content-Type": "image/png"}
        async with self.http.put(f"{uploads.url_prefix}0/simulated.png", data=image, headers=headers) as answer:
            if answer.status != 201:
                log.debug("An upload was answered %s", answer.status)
                return []
            stored = await answer.json()
        about = {"node_id": "6", "kind": "image", "filename": "simulated.png", "content_type": "image/png"}
        return [{**about, "size": len(image), **{name: stored[name] for name in ("hash", "key", "name")}}]


def _progress(part: float) -> dict[str, Any]:
    """Progress as a real worker's relay tells it."""
    edges = ((_LOAD, "1", NODES[0]), (_ENCODE, "2", NODES[1]), (_SAMPLE, "3", NODES[3]), (_DECODE, "5", NODES[4]))
    before = 0.0
    for done, (share, node_id, name) in enumerate(edges):
        if part <= before + share or node_id == "5":
            inside = min(1.0, (part - before) / share)
            most = 20 if name == "KSampler" else 1
            node = {"id": node_id, "class_type": name, "value": int(inside * most), "max": most}
            return {"progress": round(100 * part, 1), "node": node, "nodes_done": done, "nodes_total": 6}
        before += share
    return {"progress": round(100 * part, 1)}
