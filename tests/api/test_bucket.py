"""A broker whose files lie in a bucket, and files that do not pass through it."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from blake3 import blake3

from broker.app import STORE, create_app
from broker.errors import ConfigurationError
from broker.settings import Settings
from comfyui_emq_node.files import Courier, Gathered, Output
from comfyui_emq_node.side import SideProcess
from tests.api.conftest import Broker, Start
from tests.support.outputs import PNG, claimed, fetch, held_job, put
from tests.support.s3 import Bucket
from tests.support.simulated import Held

VIDEO = b"\x00\x00\x00\x1cftypisom" + os.urandom(9 << 20)


async def deliver(broker: Broker, held: Held, paths: list[Path]) -> list[dict[str, Any]]:
    """Let the real worker's code upload files."""
    side = SideProcess()  # not started: files go by a thread
    courier = Courier(lambda _: [broker.url], side.put)
    gathered = Gathered([Output("2", str(path)) for path in paths])
    try:
        return await courier.deliver(claimed(held), gathered, lambda: True)
    finally:
        await side.close()


async def test_outputs_and_input_files_lie_in_the_bucket(start_broker: Start, bucket: Bucket) -> None:
    broker = await start_broker(store_url=bucket.store_url)
    async with held_job(broker) as (_, held):
        status, stored = await put(broker, held)
        assert status == 201
        response, body = await fetch(broker, f"/api/jobs/{held.job_id}/outputs/{stored['name']}", Range="bytes=5-9")
        assert (response.status, body) == (206, PNG[5:10])
        assert len(bucket.listed()) == 2
        digest = blake3(PNG).hexdigest()
        assert (await broker.json("PUT", f"/api/assets/{digest}", data=PNG))[0] == 201
        assert (await fetch(broker, f"/api/assets/{digest}"))[1] == PNG
        assert len(bucket.listed()) == 5, "the input file with a note of its use"
        await broker.server.app[STORE].delete_folder(f"default/{held.job_id}")
        assert len(bucket.listed()) == 3


@pytest.mark.parametrize("presign", ["off", "put", "both"])
async def test_a_worker_s_files_arrive_whichever_way_they_go(
    start_broker: Start, bucket: Bucket, tmp_path: Path, presign: str
) -> None:
    broker = await start_broker(store_url=bucket.store_url, store_presign=presign)
    video, picture = tmp_path / "a.mp4", tmp_path / "b.png"
    video.write_bytes(VIDEO)
    picture.write_bytes(PNG)
    async with held_job(broker) as (worker, held):
        outputs = await deliver(broker, held, [video, picture])
        assert [(o["name"], o["kind"], o["size"]) for o in outputs] == [
            ("1-0.mp4", "video", len(VIDEO)), ("1-1.png", "image", len(PNG)),
        ]  # fmt: skip
        assert [o["hash"] for o in outputs] == [f"blake3:{blake3(c).hexdigest()}" for c in (VIDEO, PNG)]
        assert await deliver(broker, held, [video, picture]) == outputs, "the same again changes nothing"
        await worker.finish(held, {"outputs": outputs})
        for output, content, kind in zip(outputs, (VIDEO, PNG), ("video/mp4", "image/png"), strict=True):
            path = f"{broker.url}/api/jobs/{held.job_id}/outputs/{output['name']}"
            async with broker.http.get(path, allow_redirects=False) as first:
                direct = presign == "both" and kind == "image/png"
                assert first.status == (302 if direct else 200)
            async with broker.http.get(path) as answer:
                assert (answer.headers["Content-Type"], await answer.read()) == (kind, content)
            async with broker.http.get(path, headers={"Sec-Fetch-Site": "same-origin"}, allow_redirects=False) as own:
                assert own.status == 200
    assert not bucket.unfinished()


async def test_a_promise_that_was_not_kept_is_no_output(start_broker: Start, bucket: Bucket) -> None:
    broker = await start_broker(store_url=bucket.store_url, store_presign="put")
    async with held_job(broker) as (_, held):
        path = f"{broker.url}/api/jobs/{held.job_id}/outputs/1/0/a.mp4"
        headers = {
            "Authorization": f"Lease {held.job_id}.1.{held.token}", "X-Content-Blake3": blake3(VIDEO).hexdigest(),
        }  # fmt: skip
        async with broker.http.put(path, data=io.BytesIO(VIDEO), headers=headers, allow_redirects=False) as answer:
            assert answer.status == 307
            assert bucket.server.url in answer.headers["Location"]
            name = (await answer.json())["name"]
        assert (await fetch(broker, f"/api/jobs/{held.job_id}/outputs/{name}"))[0].status == 404


async def test_a_wrong_store_ends_the_start(bucket: Bucket, valkey_url: str, pool: str, tmp_path: Path) -> None:
    url = f"s3://no-such-bucket?endpoint={bucket.server.url}"
    app = create_app(Settings().model_copy(update={
        "pool": pool, "redis_url": valkey_url, "data": tmp_path, "port": 0, "store_url": url,
    }))  # fmt: skip
    runner = web.AppRunner(app)
    with pytest.raises(ConfigurationError, match="EMQ_STORE_URL"):
        await runner.setup()
    await runner.cleanup()
