"""The worker that reaches a broker instead of Redis."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis

from broker.cli import checks
from broker.trial.runtime import TrialRuntime
from broker.trial.workflows import plain_image
from tests.support.comfyui import LONG, BrokerProcess, ComfyProcess, fails, node, slow
from tests.support.nginx import nginx
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until
from tests.worker.conftest import MakeBroker, MakeComfy


@pytest.fixture(scope="module")
def away(
    runtime: TrialRuntime, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[BrokerProcess, ComfyProcess]]:
    """A broker, and a ComfyUI that knows its URL alone."""
    folder = tmp_path_factory.mktemp("gateway")
    # Longer than a broker takes to start on a busy machine: its worker keeps the job.
    settings = {"EMQ_LEASE_S": "60", "EMQ_BACKOFF_S": "0.1", "LOG_LEVEL": "DEBUG"}
    settings |= {"EMQ_PAYLOAD_KEY": "a secret of the tests", "EMQ_PARTNER_KEYS_S": "600"}
    broker = BrokerProcess(folder / "broker.log", data=folder / "data", settings=settings).start()
    names = {"WORKER_ID": "far", "EMQ_BROKER_URL": broker.url, "LOG_LEVEL": "DEBUG"}
    comfy = ComfyProcess(folder / "comfy.log", runtime=runtime, base=folder / "base", settings=names)
    _add_manager(comfy.furnish())
    comfy.start().wait_ready()
    yield broker, comfy
    comfy.end()
    broker.end()


def _add_manager(comfy: ComfyProcess) -> None:
    """Lay ComfyUI-Manager's folders out: a node pack of that name, and the settings where 3.38 and later read them."""
    pack, settings = comfy.base / "custom_nodes" / "ComfyUI-Manager", comfy.base / "user" / "__manager"
    pack.mkdir()
    (pack / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (pack / "pyproject.toml").write_text('[project]\nname = "comfyui-manager"\nversion = "3.39.2"\n')
    settings.mkdir(parents=True)
    (settings / "config.ini").write_text("[default]\npreview_method = none\nsecurity_level = weak\n")


async def test_the_worker_tells_how_its_manager_is_set(away: tuple[BrokerProcess, ComfyProcess]) -> None:
    """``doctor`` warns of one whose page installs any code."""
    broker, _ = away
    async with broker.client() as client:
        worker = await client.worker("far")
    assert worker is not None
    assert (worker["manager_version"], worker["manager_security"]) == ("3.39.2", "weak")
    assert any("security_level weak" in line.said for line in checks.workers([worker]))


def progress_of(events: list[dict[str, Any]]) -> list[float]:
    return [event["progress"] for event in events if event["type"] == "update_job_progress"]


async def test_a_picture_comes_back_through_the_gateway(
    away: tuple[BrokerProcess, ComfyProcess], tmp_path: Path
) -> None:
    broker, _ = away
    seen = tmp_path / "seen"

    async def look(events: list[dict[str, Any]], frames: list[bytes]) -> None:
        if frames and len(progress_of(events)) > 3:
            seen.touch()

    async with broker.client() as client:
        job = await client.submit(slow(LONG, 0.05, seed=1, preview=True, until=str(seen)))
        events, frames = await client.follow(job, previews=True, look=look)
        progress = progress_of(events)
        assert progress == sorted(progress)
        assert progress[-1] == 100
        assert len(progress) > 3
        assert frames
        record = await client.run(plain_image(5, 16))
        assert (record["status"], record["worker_id"]) == ("completed", "far")
        assert (await client.fetch(record["result"]["outputs"][0])).startswith(b"\x89PNG")
        jobs = [await client.submit(plain_image(100 + index, 8)) for index in range(20)]
        assert {(await client.until(job))["attempt"] for job in jobs} == {1}


def contents(folder: Path) -> Iterator[bytes]:
    """Of every file; one that its owner removes meanwhile does not count."""
    for file in folder.rglob("*"):
        if file.is_file():
            with suppress(FileNotFoundError):
                yield file.read_bytes()


async def test_partner_keys_and_payloads_rest_nowhere(away: tuple[BrokerProcess, ComfyProcess]) -> None:
    """The keys reach the node; neither they nor the payload are in Redis, in a log, or in ComfyUI's history."""
    broker, comfy = away
    canary, text = "canary-5fe2", "canary-text-77ab"
    keys = {"api_key_comfy_org": canary, "auth_token_comfy_org": f"{canary}-token"}
    graph = {"1": node("EMQTestPartnerKey"), "2": node("EMQTestText", text=text)}
    async with broker.client() as client:
        record = await client.run(graph, payload={"extra_data": keys})
    assert record["status"] == "completed", record
    shown = json.dumps(record)
    assert hashlib.sha256(f"{canary} {canary}-token".encode()).hexdigest() in shown, "they reached the node"
    assert text in shown
    async with aiohttp.ClientSession(comfy.url) as session, session.get("/history") as answer:
        history = await answer.text()
    at_rest = b"".join(contents(broker.data))
    for where, found in (
        ("record", shown),
        ("history", history),
        ("log", broker.said()),
        ("ComfyUI's log", comfy.said()),
    ):
        assert canary not in found, where
    assert canary.encode() not in at_rest, "Redis' file and the broker's folder"
    with redis.Redis.from_url(broker.redis_url) as server:
        memory = b"".join(name + (server.dump(name) or b"") for name in server.scan_iter("*", count=1000))
    assert canary.encode() not in memory
    assert text.encode() not in memory


async def test_failures_and_cancels_pass_the_gateway(away: tuple[BrokerProcess, ComfyProcess]) -> None:
    broker, comfy = away
    async with broker.client() as client:
        record = await client.run(fails("ValueError"), max_attempts=1)
        assert (record["error"]["code"], record["error"]["node_type"]) == ("node_error", "EMQTestFail")
        job = await client.submit(slow(LONG, 0.05, seed=2))
        await client.until(job, "processing")
        await client.json("POST", f"/api/jobs/{job}/cancel", {})
        assert (await client.until(job))["status"] == "cancelled"
        await comfy.until_idle()
        assert (await client.run({"1": node("EMQTestText", text="still here")}))["status"] == "completed"


async def test_the_worker_is_steered_from_its_own_page(away: tuple[BrokerProcess, ComfyProcess]) -> None:
    broker, comfy = away
    async with broker.client() as client:
        for word, field in (("pause", "paused"), ("drain", "draining")):
            assert (await comfy.post(f"/emq/{word}", {}))[field] is True
            worker = await client.worker("far")
            assert worker is not None
            assert worker[field] is True
            told = await comfy.post("/emq/resume", {})
            assert (told["paused"], told["draining"]) == (False, False)
        queued = await comfy.post("/emq/queue", {"prompt": plain_image(9, 16)})
        assert (await client.until(queued["job_id"]))["status"] == "completed"


async def test_a_job_outlives_its_broker(away: tuple[BrokerProcess, ComfyProcess]) -> None:
    """The broker is killed and comes back: the worker connects again and still has its job."""
    broker, _ = away
    async with broker.client() as client:
        job = await client.submit({**plain_image(7), "3": slow(60, 0.05, seed=3)["1"]})
        await client.until(job, "processing")
        broker.kill()
        broker.start()
        record = await client.until(job, timeout=40)
        assert (record["status"], record["attempt"]) == ("completed", 1)
        assert (await client.run(plain_image(8)))["status"] == "completed"


async def test_a_worker_moves_to_another_replica_in_mid_job(
    make_broker: MakeBroker, make_comfy: MakeComfy, own_valkey: RedisServer, tmp_path: Path
) -> None:
    """It knows NGINX' address alone. The replica that has its socket is killed, then the other is ended in good order:
    each time the job and its picture come through the one that is left."""
    settings = {"EMQ_REDIS_URL": own_valkey.url, "EMQ_LEASE_S": "60"}
    replicas = [make_broker(**settings), make_broker(**settings)]
    upstream = [f"127.0.0.1:{replica.port}" for replica in replicas]
    async with nginx("nginx.conf", tmp_path / "nginx", upstream) as front:
        comfy = make_comfy(EMQ_BROKER_URL=front.url).start().wait_ready()
        for seed, end in enumerate((BrokerProcess.kill, BrokerProcess.end)):
            holder = await the_one_of(replicas)
            (other,) = [replica for replica in replicas if replica is not holder]
            async with other.client() as client:
                job = await client.submit(
                    {**plain_image(20 + seed), "3": slow(80, 0.05, seed=30 + seed)["1"]}, worker=comfy
                )
                await client.until(job, "processing")
                end(holder)
                await wait_until(partial(sockets, other), 30, "the worker is at the other replica")
                record = await client.until(job, timeout=40)
                assert (record["status"], record["attempt"], record["crashes"]) == ("completed", 1, 0)
                assert (await client.fetch(record["result"]["outputs"][0])).startswith(b"\x89PNG")
            holder.start()
            async with holder.client() as client:  # the picture lies at the other one
                record = await client.job(job)
                assert (await client.fetch(record["result"]["outputs"][0])).startswith(b"\x89PNG")


async def the_one_of(replicas: list[BrokerProcess]) -> BrokerProcess:
    """The replica that has the worker's socket."""
    found: list[BrokerProcess] = []

    async def is_one() -> bool:
        found[:] = [replica for replica in replicas if await sockets(replica)]
        return len(found) == 1

    await wait_until(is_one, 20, "one replica has the worker")
    return found[0]


async def sockets(broker: BrokerProcess) -> bool:
    """Whether a worker is connected there."""
    async with aiohttp.ClientSession() as http, http.get(f"{broker.url}/metrics") as answer:
        return 'emq_broker_sockets{kind="worker"} 1.0' in await answer.text()
