"""The simulated fleet against a broker of its own, through the gateway and through Redis."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import aiohttp
import pytest

from broker.trial.simulate import Plan, Simulation
from broker.trial.simulated_gpu import picture
from tests.api.conftest import Broker, broker, start_broker
from tests.support.waiting import wait_until

__all__ = ["broker", "start_broker"]


@pytest.mark.parametrize("way", ["gateway", "redis"])
async def test_simulated_gpus_do_what_real_ones_do(broker: Broker, valkey_url: str, way: str) -> None:
    redis = valkey_url if way == "redis" else None
    plan = Plan(
        broker.url, None, workers=3, rate=10, pace=60, failing=0.2, redis=redis, pool=broker.queue.pool, stuck=1
    )
    async with aiohttp.ClientSession() as http:
        running = asyncio.create_task(Simulation(plan, http).run())

        async def enough() -> bool:
            jobs = (await broker.json("GET", "/stats"))[1]["jobs"]
            return bool(jobs["completed"] >= 8 and jobs["failed"] >= 1)

        async def workers() -> list[dict[str, Any]]:
            return list((await broker.json("GET", "/api/workers"))[1]["workers"])

        async def all_there() -> bool:
            return [(w["worker_id"], w["simulated"], w["via"]) for w in await workers()] == [
                (f"sim-{number:03}", True, way) for number in range(3)
            ]

        await wait_until(enough, 90, "jobs complete and fail")
        await wait_until(all_there, 30, "each of the fleet is there")
        jobs = (await broker.json("GET", "/api/jobs?status=completed"))[1]["jobs"]
        record = (await broker.json("GET", f"/api/jobs/{jobs[0]['job_id']}"))[1]
        if way == "gateway":
            async with broker.http.get(broker.url + record["result"]["outputs"][0]["url"]) as answer:
                assert (answer.status, answer.content_type) == (200, "image/png")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    async def left() -> bool:
        return all(worker["status"] == "offline" for worker in await workers())

    # A broker is told of a closed socket a moment later; a lease that lapses would take 30 s.
    await wait_until(left, 15, "they leave in order")


def test_a_picture_is_small_and_comes_out_of_noise() -> None:
    from PIL import Image, ImageStat

    rough, clear = picture(7, 0.0), picture(7, 1.0)
    assert max(len(rough), len(clear)) < 40_000
    images = [Image.open(io.BytesIO(data)).convert("RGB") for data in (rough, clear)]
    assert [image.size for image in images] == [(96, 96)] * 2
    assert ImageStat.Stat(images[1]).stddev != ImageStat.Stat(images[0]).stddev
