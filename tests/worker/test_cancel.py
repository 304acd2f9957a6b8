"""Cancelling: exactly the one job, at whatever moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

from broker.trial.workflows import plain_image
from tests.support.comfyui import LONG, Client, ComfyProcess, node, slow

AT_ONCE_S = 20.0
"""A prompt that goes on in spite of its interrupt is given up after 30 s."""


async def cancel(client: Client, job: str) -> int:
    status, _ = await client.json("POST", f"/api/jobs/{job}/cancel", {"reason": "changed my mind"})
    return status


async def test_a_running_job_is_stopped_at_once(client: Client, comfy: ComfyProcess) -> None:
    job = await client.submit(slow(2000, 0.05, seed=20), worker=comfy)
    await client.until(job, "processing")
    assert await cancel(client, job) == 200
    record = await client.until(job, timeout=AT_ONCE_S)
    assert (record["status"], record["reason"]) == ("cancelled", "changed my mind")
    await comfy.until_idle()


async def test_a_waiting_job_never_runs(client: Client, comfy: ComfyProcess, tmp_path: Path) -> None:
    over = tmp_path / "over"
    running = await client.submit(slow(LONG, seed=21, until=str(over)), worker=comfy)
    await client.until(running, "processing")
    waiting = await client.submit(plain_image(21), worker=comfy)
    assert await cancel(client, waiting) == 200
    record = await client.until(waiting)
    assert (record["status"], record["started_at"]) == ("cancelled", None)
    over.touch()
    assert (await client.until(running))["status"] == "completed"


async def test_a_job_behind_the_page_s_prompt_is_taken_out(client: Client, comfy: ComfyProcess) -> None:
    """Claimed and handed to ComfyUI, but not started: the page's own prompts stay."""
    await comfy.until_idle()
    for seed in (22, 23):
        await comfy.post("/prompt", {"prompt": slow(LONG, seed=seed), "client_id": "page"})
    job = await client.submit(plain_image(22), worker=comfy)
    await client.until(job, "claimed")
    assert await cancel(client, job) == 200
    assert (await client.until(job))["status"] == "cancelled"
    queue = await comfy.queue()
    assert (len(queue["queue_running"]), len(queue["queue_pending"])) == (1, 1)
    await comfy.post("/queue", {"clear": True})
    await comfy.post("/interrupt", {})
    await comfy.until_idle()


async def test_cancelling_around_the_start_is_never_lost(client: Client, comfy: ComfyProcess) -> None:
    """ComfyUI wipes an interrupt that comes just before its executor starts; each of these must stop early."""
    for index in range(15):
        job = await client.submit(slow(LONG, seed=100 + index), worker=comfy)
        await asyncio.sleep(0.002 * index)
        assert await cancel(client, job) == 200
        record = await client.until(job, timeout=AT_ONCE_S)
        assert record["status"] == "cancelled"


async def test_cancelling_after_the_end_is_too_late(client: Client, comfy: ComfyProcess) -> None:
    job = await client.submit(plain_image(24), worker=comfy)
    assert (await client.until(job))["status"] == "completed"
    assert await cancel(client, job) == 409
    assert (await client.job(job))["status"] == "completed"


async def test_cancelling_while_files_go_out_wins(client: Client, comfy: ComfyProcess) -> None:
    """Either the job is cancelled or it was complete before; in no case both."""
    for index in range(4):
        graph = {"1": node("EMQTestFile", name=f"big{index}.bin", head="", size=64 << 20, key="x")}
        job = await client.submit(graph, worker=comfy)
        await client.until(job, "processing", "completed")
        await asyncio.sleep(0.05 * index)
        status = await cancel(client, job)
        record = await client.until(job)
        assert record["status"] == ("cancelled" if status == 200 else "completed")
        assert (record["result"] is None) == (status == 200)
