"""What goes wrong in a job, and what the client is told."""

from __future__ import annotations

import asyncio

from broker.trial.workflows import CHECKPOINT, plain_image, text_to_image
from tests.support.comfyui import LONG, Client, ComfyProcess, fails, node, sleeps, slow
from tests.support.waiting import wait_until
from tests.worker.conftest import MakeBroker, MakeComfy

ENDED = "prompt thread has ended; it runs nothing more"


async def test_a_value_out_of_range_is_a_validation_failure(client: Client, comfy: ComfyProcess) -> None:
    graph = plain_image(1)
    graph["1"]["inputs"]["width"] = 0
    record = await client.run(graph, worker=comfy)
    assert (record["status"], record["error"]["code"], record["attempt"]) == ("failed", "validation_failed", 1)
    assert (record["error"]["node_id"], record["error"]["node_type"]) == ("1", "EmptyImage")
    errors = record["error"]["details"]["node_errors"]["1"]["errors"]
    assert errors[0]["type"] == "value_smaller_than_min"


async def test_a_prompt_that_is_valid_in_part_does_not_run(client: Client, comfy: ComfyProcess) -> None:
    """ComfyUI would run the good part and say 200."""
    graph = plain_image(2)
    graph["3"] = node("EmptyImage", width=0, height=8, batch_size=1, color=1)
    graph["4"] = node("SaveImage", images=["3", 0], filename_prefix="bad")
    record = await client.run(graph, worker=comfy)
    assert (record["status"], record["error"]["code"]) == ("failed", "validation_failed")
    assert record["error"]["node_id"] == "3"
    assert (await client.run(plain_image(2), worker=comfy))["status"] == "completed"


async def test_a_missing_image_is_a_validation_failure(client: Client, comfy: ComfyProcess) -> None:
    graph = {"1": node("LoadImage", image="absent.png"), "2": node("PreviewImage", images=["1", 0])}
    record = await client.run(graph, worker=comfy)
    assert (record["status"], record["error"]["code"]) == ("failed", "validation_failed")
    assert "absent.png" in record["error"]["message"]


async def test_a_node_that_raises_is_named(client: Client, comfy: ComfyProcess) -> None:
    record = await client.run(fails("ValueError", "no such thing"), worker=comfy, max_attempts=1)
    error = record["error"]
    assert (record["status"], error["code"]) == ("failed", "node_error")
    assert (error["node_id"], error["node_type"]) == ("1", "EMQTestFail")
    assert error["message"] == "ValueError: no such thing"
    assert any("no such thing" in line or "raise ValueError" in line for line in error["details"]["traceback"])


async def test_a_failure_is_tried_again(client: Client, comfy: ComfyProcess) -> None:
    job = await client.submit(fails("ValueError"), worker=comfy, max_attempts=2)
    events, _ = await client.follow(job)
    assert [event["will_retry"] for event in events if event["type"] == "fail_job"] == [True, False]
    assert (await client.job(job))["attempt"] == 2


async def test_out_of_memory_is_told_apart(client: Client, comfy: ComfyProcess) -> None:
    record = await client.run(fails("OOM", "CUDA out of memory"), worker=comfy, max_attempts=1)
    assert (record["status"], record["error"]["code"]) == ("failed", "out_of_memory")
    assert (await client.run(plain_image(3), worker=comfy))["status"] == "completed"


async def test_a_job_has_its_time(client: Client, comfy: ComfyProcess) -> None:
    record = await client.run(slow(400, 0.05, seed=3), worker=comfy, timeout_s=1, max_attempts=1)
    assert (record["status"], record["error"]["code"]) == ("failed", "timeout")
    assert (await client.run(plain_image(4), worker=comfy))["status"] == "completed"


async def test_a_person_s_interrupt_ends_the_job(client: Client, comfy: ComfyProcess) -> None:
    """It is final: whoever stops a prompt at ComfyUI's page does not want it to come back."""
    job = await client.submit(slow(400, 0.05, seed=4), worker=comfy)
    await comfy.until_it_runs(job)
    await comfy.post("/interrupt", {})
    record = await client.until(job)
    assert (record["status"], record["error"]["code"], record["attempt"]) == ("failed", "interrupted", 1)


async def test_a_prompt_that_a_person_removes_ends_the_job(client: Client, comfy: ComfyProcess) -> None:
    """Cleared from ComfyUI's queue while a prompt of the page still ran."""
    await comfy.until_idle()
    for seed in (5, 6):
        await comfy.post("/prompt", {"prompt": slow(LONG, seed=seed), "client_id": "page"})

    async def busy() -> bool:  # so nobody wakes it for the job: it has to look by itself
        worker = await client.worker(comfy.worker_id)
        return worker is not None and worker["status"] == "busy"

    await wait_until(busy, 30, "the queue knows of the person's prompts")
    job = await client.submit(plain_image(5), worker=comfy)

    async def ours_waits() -> bool:
        return len((await comfy.queue())["queue_pending"]) == 2

    await wait_until(ours_waits, 30, "the job's prompt waits at ComfyUI")
    await comfy.post("/queue", {"clear": True})
    record = await client.until(job)
    assert (record["status"], record["error"]["code"]) == ("failed", "interrupted")
    await comfy.post("/interrupt", {})
    await comfy.until_idle()


async def test_a_lost_model_and_a_dead_prompt_thread(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    """Both of one ComfyUI, because it takes its time to start.

    A model file that it has told of is gone: the job waits for another worker, and no attempt is counted. A node that
    calls sys.exit ends its prompt thread, and nothing runs there any more: the job fails, the worker says that it is
    unhealthy and takes nothing."""
    broker = make_broker()
    comfy = make_comfy(broker)
    folder = comfy.base / "models" / "checkpoints"
    gone = folder / "gone.safetensors"
    gone.write_bytes((folder / CHECKPOINT).read_bytes())
    comfy.start().wait_ready()
    async with broker.client() as client:
        gone.unlink()
        job = await client.submit(text_to_image(checkpoint=gone.name), max_attempts=1)

        async def handed_back() -> bool:
            record = await client.job(job)
            reasons = [each["code"] for each in record["waiting_for"] or ()]
            return (record["status"], record["attempt"], reasons) == ("pending", 1, ["no_worker_has_model"])

        await wait_until(handed_back, 60, "the worker gives the job back")
        record = await client.run(fails("SystemExit"), max_attempts=1)
        assert (record["status"], record["error"]["code"]) == ("failed", "stalled")
        assert record["error"]["node_type"] == "EMQTestFail"

        async def unhealthy() -> bool:
            worker = await client.worker(comfy.worker_id)
            return worker is not None and worker["status"] == "unhealthy"

        await wait_until(unhealthy, 20, "the worker is unhealthy")
        comfy.wait_for(ENDED)
        assert comfy.said().count(ENDED) == 1
        waiting = await client.submit(plain_image(6))
        await asyncio.sleep(1)
        assert (await client.job(waiting))["status"] == "pending"


async def test_a_node_that_ignores_the_interrupt_holds_nobody_up(client: Client, comfy: ComfyProcess) -> None:
    """Its job ends when the node does; then the worker goes on."""
    job = await client.submit(sleeps(2, seed=9), worker=comfy, timeout_s=0.5, max_attempts=1)
    record = await client.until(job)
    assert record["error"]["code"] == "timeout"
    assert (await client.run(plain_image(7), worker=comfy))["status"] == "completed"
