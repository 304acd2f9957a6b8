"""The side process: the lease is kept while nothing in ComfyUI can run, and a dead ComfyUI's job goes on at once.

The same over both ways to the queue. The tests share two ComfyUIs, one a way; the last one kills them.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import redis

from broker.trial.runtime import TrialRuntime
from broker.trial.workflows import plain_image
from tests.support.comfyui import BrokerProcess, ComfyProcess, node, slow
from tests.support.processes import is_there, pss_mb, side_process
from tests.support.waiting import wait_until

LEASE_S = 6
HOLD_S = 2 * LEASE_S
"""A lease that nobody keeps is taken back by then."""
LONG_LEASE_S = 120
WAYS = ("redis", "gateway")


@dataclass
class Ways:
    """A broker, and a ComfyUI for each way to it."""

    broker: BrokerProcess
    comfy: dict[str, ComfyProcess]


@pytest.fixture(scope="module")
def _ways(runtime: TrialRuntime, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    folder = tmp_path_factory.mktemp("side")
    settings = {"EMQ_LEASE_S": str(LEASE_S), "EMQ_BACKOFF_S": "0.1", "LOG_LEVEL": "DEBUG"}
    broker = BrokerProcess(folder / "broker.log", data=folder / "data", settings=settings).start()
    made = {}
    for way, address in (("redis", {"EMQ_REDIS_URL": broker.redis_url}), ("gateway", {"EMQ_BROKER_URL": broker.url})):
        names = {"WORKER_ID": f"side-{way}", "EMQ_TAGS": f"side-{way}", "LOG_LEVEL": "DEBUG", **address}
        made[way] = ComfyProcess(folder / f"{way}.log", runtime=runtime, base=folder / way, settings=names)
        made[way].furnish().start()
    yield Ways(broker, made)
    for comfy in made.values():
        comfy.kill()
    broker.end()


@pytest.fixture
def ways(_ways: Ways) -> Ways:
    """Both run, also after they were killed; the lease is short."""
    set_lease(_ways, LEASE_S)
    for comfy in _ways.comfy.values():
        if not comfy.is_alive:
            comfy.start()
    for comfy in _ways.comfy.values():
        comfy.wait_ready()
    return _ways


def set_lease(ways: Ways, seconds: int) -> None:
    with redis.Redis.from_url(ways.broker.redis_url) as server:
        server.hset("emq:{default}:config", "lease_ms", seconds * 1000)


def leases(ways: Ways) -> dict[str, float]:
    """Seconds for which each instance's lease goes on."""
    with redis.Redis.from_url(ways.broker.redis_url) as server:
        ends = server.zrange("emq:{default}:leases", 0, -1, withscores=True)
    return {instance.decode(): end / 1000 - time.time() for instance, end in ends}


async def test_a_node_that_holds_the_interpreter_keeps_its_job(ways: Ways) -> None:
    async with ways.broker.client() as client:
        held = {"1": node("EMQTestHold", seconds=HOLD_S, seed=1)}
        jobs = [await client.submit(held, worker=ways.comfy[way]) for way in WAYS]
        for job in jobs:
            record = await client.until(job, timeout=60)
            assert (record["status"], record["attempt"], record["crashes"]) == ("completed", 1, 0)
    assert all("the lease is lost" not in comfy.said() for comfy in ways.comfy.values())


@pytest.mark.parametrize("way", WAYS)
async def test_a_killed_side_process_is_started_again(ways: Ways, way: str) -> None:
    """Outputs go out through it as before, and it is small."""
    comfy = ways.comfy[way]
    first = await wait_until(lambda: side_process(comfy.pid), 20, "there is a side process")
    os.kill(first, signal.SIGKILL)
    second = await wait_until(
        lambda: side_process(comfy.pid) not in (None, first) and side_process(comfy.pid), 20, "there is another"
    )
    await wait_until(lambda: not is_there(first), 10, "no zombie is left")
    async with ways.broker.client() as client:
        record = await client.until(await client.submit(plain_image(40), worker=comfy))
        assert record["status"] == "completed"
        content = await client.fetch(record["result"]["outputs"][0])
        assert content.startswith(b"\x89PNG")
        held = {"1": node("EMQTestHold", seconds=HOLD_S, seed=2)}
        record = await client.until(await client.submit(held, worker=comfy), timeout=60)
        assert (record["status"], record["attempt"]) == ("completed", 1), "the new one keeps the lease"
    assert side_process(comfy.pid) == second
    assert pss_mb(second) < 20


async def test_a_killed_comfyui_loses_its_job_at_once(ways: Ways) -> None:
    def long() -> bool:
        set_lease(ways, LONG_LEASE_S)  # again and again: the broker writes its own settings every few seconds
        return min(leases(ways).values()) > LONG_LEASE_S / 2

    async with ways.broker.client() as client:
        jobs = [await client.submit(slow(5000, 0.05, seed=3), worker=comfy) for comfy in ways.comfy.values()]
        for job in jobs:
            await client.until(job, "processing")
        await wait_until(long, 20, "the leases are long")
        sides = [side_process(comfy.pid) for comfy in ways.comfy.values()]
        assert None not in sides
        for comfy in ways.comfy.values():
            comfy.kill()
        for job in jobs:
            record = await client.until(job, "pending", timeout=LONG_LEASE_S / 4)
            assert record["crashes"] == 1
        await wait_until(lambda: not leases(ways), 20, "the workers are gone")
        await wait_until(lambda: not any(is_there(side or 0) for side in sides), 10, "so are their side processes")
        for job in jobs:
            await client.json("POST", f"/api/jobs/{job}/cancel", {})
