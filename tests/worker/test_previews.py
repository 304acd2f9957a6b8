"""Previews of a real ComfyUI: for those who watch, and not at all when nobody does."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis
from PIL import Image

from broker.trial.workflows import text_to_image
from tests.support.comfyui import LONG, BrokerProcess, Client, ComfyProcess, node, slow
from tests.support.waiting import wait_until


@pytest.fixture
def second(broker: BrokerProcess, tmp_path: Path) -> Iterator[BrokerProcess]:
    """Another replica of the shared broker."""
    settings = {**broker.settings, "EMQ_REDIS_URL": broker.redis_url}
    process = BrokerProcess(tmp_path / "log", data=broker.data, settings=settings).start()
    yield process
    process.end()


def opened(frame: bytes) -> tuple[dict[str, Any], bytes]:
    kind, length = struct.unpack(">II", frame[:8])
    assert kind == 4
    return json.loads(frame[8 : 8 + length]), frame[8 + length :]


async def tally(comfy: ComfyProcess) -> dict[str, int]:
    found: dict[str, int] = (await comfy.get("/emq/status"))["previews"]
    return found


@asynccontextmanager
async def watching(client: Client, job: str, **more: Any) -> AsyncIterator[asyncio.Queue[bytes]]:
    """The previews that a socket gets, from here on."""
    frames: asyncio.Queue[bytes] = asyncio.Queue()
    confirmed = asyncio.Event()

    async def read(ws: aiohttp.ClientWebSocketResponse) -> None:
        async for message in ws:
            if message.type is aiohttp.WSMsgType.BINARY:
                frames.put_nowait(message.data)
            elif message.json()["type"] == "subscription_confirmed":
                confirmed.set()

    async with client.session.ws_connect("/ws", max_msg_size=0) as ws:
        await ws.send_json({"type": "subscribe_job", "job_id": job, "previews": True, **more})
        reading = asyncio.create_task(read(ws))
        await asyncio.wait_for(confirmed.wait(), 30)
        yield frames
        reading.cancel()


async def frame_of(frames: asyncio.Queue[bytes], kind: str) -> tuple[dict[str, Any], bytes]:
    async with asyncio.timeout(30):
        while (found := opened(await frames.get()))[0]["image_type"] != kind:
            pass
    return found


def newest(frames: asyncio.Queue[bytes], image: bytes) -> bytes:
    """The last of what has come since ``image``."""
    while not frames.empty():
        image = opened(frames.get_nowait())[1]
    return image


async def goes_on(client: Client, job: str) -> None:
    """Wait for some more of a node's steps: they take longer than its last picture."""

    async def step() -> int:
        return int(((await client.job(job))["node"] or {}).get("value", 0))

    last = await step() + 40

    async def there() -> bool:
        return await step() >= last

    await wait_until(there, 60, f"step {last}")


async def test_nothing_is_made_or_sent_while_nobody_watches(
    client: Client, comfy: ComfyProcess, broker: BrokerProcess
) -> None:
    """A sampler, a node that shows pictures and one that talks: 0 pictures decoded, 0 encoded, 0 bytes on the wire."""
    graph = {
        **text_to_image(seed=71, steps=20, size=64),
        "31": slow(10, 0.05, seed=71, preview=True, say="thinking")["1"],
        "32": node("PreviewAny", source="a text"),
    }
    await comfy.until_idle()
    before = await tally(comfy)
    with redis.Redis.from_url(broker.redis_url) as server, server.pubsub() as wire:
        epoch = server.hget("emq:{default}:meta", "deployment").decode()
        async with comfy.paused():
            job = await client.submit(graph, worker=comfy)
            wire.ssubscribe(f"emq:{{default}}:pv:{epoch}:{job}")
            subscribed = wire.get_sharded_message(timeout=30)
            assert subscribed is not None
            assert subscribed["type"] == "ssubscribe"
        assert (await client.until(job))["status"] == "completed"
        assert [wire.get_sharded_message(timeout=0.02) for _ in range(20)] == [None] * 20
    assert await tally(comfy) == before


async def test_who_watches_is_shown_what_the_sampler_sees(client: Client, comfy: ComfyProcess, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    await comfy.until_idle()
    before = await tally(comfy)
    job = await client.submit(slow(LONG, seed=72, preview=True, until=str(seen)), worker=comfy)
    async with watching(client, job) as frames:
        for _ in range(3):
            await frame_of(frames, "image/jpeg")
        seen.touch()
        record = await client.until(job)
        sent = 3 + frames.qsize()
    after = await tally(comfy)
    seconds = record["result"]["timings"]["execution_ms"] / 1000
    assert sent <= after["encoded"] - before["encoded"] <= 2 * seconds + 2
    assert after["sent_bytes"] - before["sent_bytes"] <= (after["encoded"] - before["encoded"]) * 15 * 1024


async def test_who_comes_late_gets_the_latest(client: Client, comfy: ComfyProcess, tmp_path: Path) -> None:
    """From the broker that has it, and over HTTP, although the node shows nothing new any more."""
    still = tmp_path / "still"
    job = await client.submit(slow(LONG, seed=73, preview=True, still=str(still)), worker=comfy)
    async with watching(client, job) as first:
        _, image = await frame_of(first, "image/jpeg")
        still.touch()
        await goes_on(client, job)
        async with watching(client, job) as second:
            _, late = await frame_of(second, "image/jpeg")

            async def same() -> bool:
                nonlocal image, late
                image, late = newest(first, image), newest(second, late)
                async with client.session.get(f"/api/jobs/{job}/preview") as answer:
                    asked = (answer.status, answer.content_type, await answer.read())
                return late == image and asked == (200, "image/jpeg", image)

            await wait_until(same, 30, "all have the node's last picture")
    await client.json("POST", f"/api/jobs/{job}/cancel", {})
    await client.until(job)


async def test_who_comes_late_to_another_broker_gets_the_latest_from_the_worker(
    client: Client, comfy: ComfyProcess, second: BrokerProcess, tmp_path: Path
) -> None:
    still = tmp_path / "still"
    job = await client.submit(slow(LONG, seed=74, preview=True, still=str(still)), worker=comfy)
    async with watching(client, job) as first:
        await frame_of(first, "image/jpeg")
        still.touch()
        await goes_on(client, job)
        async with second.client() as other, watching(other, job) as frames:
            await frame_of(frames, "image/jpeg")
    await client.json("POST", f"/api/jobs/{job}/cancel", {})
    await client.until(job)


async def test_larger_ones_on_request(client: Client, comfy: ComfyProcess) -> None:
    job = await client.submit(slow(LONG, seed=75, preview=True), worker=comfy)
    async with watching(client, job, preview_px=512) as frames:

        async def large() -> bool:
            _, image = await frame_of(frames, "image/jpeg")
            return Image.open(io.BytesIO(image)).size == (512, 384)

        await wait_until(large, 60, "a picture of 512 pixels")
    status, told = await client.json("GET", f"/api/jobs/{job}/preview?px=99999")
    assert (status, told["code"]) == (400, "bad_message")
    await client.json("POST", f"/api/jobs/{job}/cancel", {})
    await client.until(job)


async def test_texts_and_sounds_while_the_job_runs(client: Client, comfy: ComfyProcess, tmp_path: Path) -> None:
    """A node's text for the page, and PreviewAudio's sound; over Server-Sent Events as well."""
    seen = tmp_path / "seen"
    graph = {
        "1": node("EmptyAudio", duration=0.5, sample_rate=44100, channels=1),
        "2": node("PreviewAudio", audio=["1", 0]),
        "3": node("EmptyImage", width=8, height=8, batch_size=1, color=7),
        "4": node("ImageInvert", image=["3", 0]),
        "5": node("ImageInvert", image=["4", 0]),
        "6": node("EMQTestProgress", steps=LONG, delay=0.05, seed=76, say="thinking", until=str(seen), image=["5", 0]),
    }
    kinds: dict[str, bytes] = {}
    async with AsyncExitStack() as stack:
        async with comfy.paused():
            job = await client.submit(graph, worker=comfy)
            frames = await stack.enter_async_context(watching(client, job))
            stream = await stack.enter_async_context(client.session.get(f"/api/jobs/{job}/events?previews=1"))
        sound, text = await frame_of(frames, "audio/flac"), await frame_of(frames, "text/plain")
        assert (sound[0]["node_id"], sound[1][:4]) == ("2", b"fLaC")
        assert (text[0]["node_id"], text[1].startswith(b"thinking ")) == ("6", True)
        async for line in stream.content:
            if line.startswith(b"data: ") and b'"preview"' in line:
                data = json.loads(line[6:])
                kinds[data["image_type"]] = base64.b64decode(data["data"])
            if {"text/plain", "audio/flac"} <= kinds.keys():
                seen.touch()
    assert (await client.until(job))["status"] == "completed"
    assert kinds["text/plain"].startswith(b"thinking ")
    assert kinds["audio/flac"] == sound[1]
