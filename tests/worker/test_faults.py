"""Processes die, connections break: no job is lost, none has two results."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import redis

from broker.trial.workflows import plain_image
from tests.support.comfyui import LONG, START_S, Client, fails, sleeps, slow
from tests.support.processes import is_there, side_process, state
from tests.support.proxy import Proxy
from tests.support.servers import free_port
from tests.support.waiting import wait_until
from tests.worker.conftest import MakeBroker, MakeComfy


async def worker_of(client: Client, job: str) -> str:
    record = await client.until(job, "processing")
    return str(record["worker_id"])


async def test_a_killed_comfyui_s_job_is_done_by_the_other(
    make_broker: MakeBroker, make_comfy: MakeComfy, tmp_path: Path
) -> None:
    shared, rescued = tmp_path / "shared", tmp_path / "rescued"
    broker = make_broker()
    pair = [make_comfy(broker).start() for _ in range(2)]
    by_name = {comfy.wait_ready().worker_id: comfy for comfy in pair}
    async with broker.client() as client:
        # Two workers share the work.
        jobs = [await client.submit(slow(LONG, seed=600 + index, until=str(shared))) for index in range(2)]
        assert {await worker_of(client, job) for job in jobs} == set(by_name)
        shared.touch()
        assert {(await client.until(job))["status"] for job in jobs} == {"completed"}
        # One is killed in the middle of a job: the other finishes it.
        job = await client.submit(slow(LONG, seed=500, until=str(rescued)))
        victim = by_name.pop(await worker_of(client, job))
        victim.kill()
        rescued.touch()
        record = await client.until(job)
        (survivor,) = by_name.values()
        assert (record["status"], record["worker_id"]) == ("completed", survivor.worker_id)
        assert (record["attempt"], record["crashes"]) == (2, 1)
        # A job that kills its ComfyUI is found out: at the latest when it has come back once.
        job = await client.submit(fails("kill"), max_attempts=1)
        for _ in range(2):
            await wait_until(lambda: not survivor.is_alive, START_S, "the node has killed its ComfyUI")
            await client.until(job, "pending")
            crashes = (await client.job(job))["crashes"]
            if crashes:
                break
            survivor.start()
        assert crashes == 1


async def test_a_killed_broker_does_not_disturb_the_work(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    """The job goes on, and its picture is delivered once there is a broker again."""
    broker = make_broker()
    comfy = make_comfy(broker).start().wait_ready()
    async with broker.client() as client:
        warm = await client.run(plain_image(1))
        assert warm["status"] == "completed"
        graph = {**plain_image(2), "3": slow(40, 0.05, seed=510)["1"]}
        job = await client.submit(graph)
        await client.until(job, "processing")
        broker.kill()
        broker.start()
        record = await client.until(job, timeout=40)
        assert (record["status"], record["attempt"]) == ("completed", 1)
        assert len(record["result"]["outputs"]) == 1
        assert (await client.run(plain_image(3)))["status"] == "completed"
    assert comfy.is_alive


async def test_a_killed_valkey_loses_nothing(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    broker = make_broker()
    comfy = make_comfy(broker).start().wait_ready()
    async with broker.client() as client:
        running = await client.submit(slow(40, 0.05, seed=520))
        waiting = [await client.submit(plain_image(520 + index)) for index in range(5)]
        await client.until(running, "processing")
        with redis.Redis.from_url(broker.redis_url) as server:
            process = int(server.info("server")["process_id"])
        os.kill(process, signal.SIGKILL)
        await wait_until(lambda: state(process)[0] in {"", "Z"}, 20, "the Valkey has gone")

        async def back() -> bool:
            async with client.session.get("/health") as answer:
                return answer.status == 200

        await wait_until(back, 30, "the broker has its Valkey again")
        for job in [running, *waiting]:
            assert (await client.until(job, timeout=40))["status"] == "completed"
        assert (await client.job(running))["attempt"] == 1
    assert comfy.is_alive


async def test_a_worker_that_was_cut_off_comes_back(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    """Its job is another's by then: it stops it, throws it away, and takes the next one."""
    broker = make_broker(EMQ_LEASE_S="5")  # it is to lapse
    parts = urlsplit(broker.redis_url)
    proxy = Proxy(parts.port or 0)
    server = await proxy.serve()
    near = f"redis://:{parts.password}@127.0.0.1:{proxy.port}/0"
    cut = make_comfy(EMQ_REDIS_URL=near).start()
    await asyncio.to_thread(cut.wait_ready)
    async with broker.client() as client:
        job = await client.submit(slow(LONG, seed=530), max_attempts=3)
        await client.until(job, "processing")
        proxy.target = free_port()  # nobody is there
        proxy.cut()
        record = await client.until(job, "pending")
        assert record["crashes"] == 1
        await client.json("POST", f"/api/jobs/{job}/cancel", {})
        proxy.target = parts.port or 0
        assert (await client.run(plain_image(530), max_attempts=1))["status"] == "completed"
        assert "the lease is lost" in cut.said()
        worker = await client.worker(cut.worker_id)
        assert worker is not None
        assert (await client.job(job))["status"] == "cancelled"
    server.close()
    await proxy.close()
    assert cut.is_alive


async def test_a_second_process_of_the_same_name_takes_over(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    broker = make_broker()
    first = make_comfy(broker, WORKER_ID="twin").start().wait_ready()
    async with broker.client() as client:
        job = await client.submit(slow(LONG, seed=540))
        await client.until(job, "processing")
        second = make_comfy(broker, WORKER_ID="twin").start().wait_ready()
        await wait_until(lambda: "has taken over the worker name twin" in first.said(), 30, "the first is told")

        async def at_second() -> bool:
            return bool((await second.queue())["queue_running"])

        await wait_until(at_second, 60, "the second runs the job")
        await first.until_idle()
        await client.json("POST", f"/api/jobs/{job}/cancel", {})


async def test_a_signal_lets_the_job_end(make_broker: MakeBroker, make_comfy: MakeComfy, tmp_path: Path) -> None:
    """SIGTERM: no more claims, the running job is finished, ComfyUI ends as with Ctrl-C."""
    over = tmp_path / "over"
    broker = make_broker()
    comfy = make_comfy(broker).start().wait_ready()
    async with broker.client() as client:
        running = await client.submit({**plain_image(550), "3": slow(LONG, seed=550, until=str(over))["1"]})
        await client.until(running, "processing")
        waiting = await client.submit(plain_image(551))
        side = side_process(comfy.pid)
        assert side is not None
        comfy.send(signal.SIGTERM)
        await wait_until(lambda: "a second signal ends at once" in comfy.said(), 20, "the drain has begun")
        over.touch()
        record = await client.until(running)
        assert (record["status"], record["attempt"]) == ("completed", 1)
        assert await asyncio.to_thread(comfy.wait, 30) == 0
        assert "Stopped server" in comfy.said()
        assert (await client.job(waiting))["status"] == "pending"
        worker = await client.worker(comfy.worker_id)
        assert worker is None or worker["status"] == "offline"
        await wait_until(lambda: not is_there(side), 20, "its side process has ended")


async def test_a_drain_that_takes_too_long_gives_the_job_back(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    broker = make_broker()
    comfy = make_comfy(broker, EMQ_DRAIN_S="0.5").start().wait_ready()
    async with broker.client() as client:
        job = await client.submit(sleeps(90, seed=560))
        await client.until(job, "processing")
        comfy.send(signal.SIGINT)
        assert await asyncio.to_thread(comfy.wait, 30) == 0
        record = await client.job(job)
        assert record["status"] == "pending"


async def test_a_second_signal_ends_at_once(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    broker = make_broker()
    comfy = make_comfy(broker, EMQ_DRAIN_S="60").start().wait_ready()
    async with broker.client() as client:
        job = await client.submit(sleeps(90, seed=570))
        await client.until(job, "processing")
        comfy.send(signal.SIGINT)
        await wait_until(lambda: "a second signal ends at once" in comfy.said(), 20, "the drain has begun")
        comfy.send(signal.SIGINT)
        await asyncio.to_thread(comfy.wait, 30)
        record = await client.until(job, "pending")
        assert json.dumps(record["error"]) == "null"
