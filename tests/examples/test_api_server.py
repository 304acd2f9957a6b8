"""The example API server: through the queue, and without it."""

from __future__ import annotations

import itertools
import json
import secrets
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.api.conftest import GRAPH, Broker, Start
from tests.examples.conftest import Serve
from tests.support.comfyui import ComfyProcess, node
from tests.support.nginx import nginx
from tests.support.outputs import PNG, put
from tests.support.waiting import wait_until


async def test_job_with_its_priority_progress_and_picture(broker: Broker, serve: Serve) -> None:
    shop = await serve(QUEUE_URL=broker.url)
    worker = broker.worker()
    await worker.register()
    async with shop.client() as ann:
        await ann.send({"type": "generate", "request": "r1", "workflow": GRAPH})
        job = (await ann.until("accepted"))["job"]
        held = await worker.claim()
        assert held is not None
        assert held.answer.number("priority") == 20
        await worker.report(held, 40)
        assert (await ann.of_job(job, "progress"))["progress"] >= 0
        about = json.dumps({"job_id": job, "node_id": "2", "image_type": "image/jpeg"}).encode()
        frame = struct.pack(">II", 4, len(about)) + about + b"picture"

        async def shown(numbers: Iterator[int] = itertools.count(10)) -> bool:  # noqa: B008 - one count for all calls
            await worker.preview(held, frame, next(numbers))
            await ann.send({"type": "status", "jobs": []})
            await ann.until("status")
            return b"picture" in ann.previews

        await wait_until(shown, 20, "a preview")
        _, stored = await put(broker, held)
        output = {"node_id": "2", "kind": "image", "filename": "cat.png", **stored}
        await worker.finish(held, {"outputs": [output], "timings": {}})
        done = await ann.of_job(job, "done")
    (file,) = done["files"]
    status, content = await shop.fetch(file["url"])
    assert (status, content) == (200, PNG)
    assert (await shop.fetch(file["url"].replace("&s=", "&s=0")))[0] == 403
    assert (await shop.fetch("/v1/files/api/keys"))[0] == 404
    assert (await shop.fetch(f"/v1/files/api/jobs/{job}"))[0] == 404


async def test_status_of_many_after_its_own_restart(broker: Broker, serve: Serve, valkey_url: str) -> None:
    first = await serve(QUEUE_URL=broker.url)
    async with first.client() as ann, first.client("b-token") as bob:
        for client, number in ((ann, "r1"), (ann, "r2"), (bob, "r1")):
            await client.send({"type": "generate", "request": number, "workflow": GRAPH})
        mine = [(await ann.until("accepted"))["job"] for _ in range(2)]
        other = (await bob.until("accepted"))["job"]
    await first.server.close()
    second = await serve(QUEUE_URL=broker.url)
    async with second.client() as ann, broker.worker().running(valkey_url):
        await ann.send({"type": "generate", "request": "r1", "workflow": GRAPH})
        assert (await ann.until("accepted"))["job"] == mine[0], "the same request is the same job"
        await ann.send({"type": "follow", "job": mine[1]})
        assert (await ann.of_job(mine[1], "done"))["event"]
        await ann.send({"type": "status", "request": "s", "jobs": [*mine, other, "nothing"]})
        status = await ann.until("status")
        assert [job["status"] for job in status["jobs"][1:]] == ["completed", "unknown", "unknown"]
        for kind in ("follow", "cancel"):
            await ann.send({"type": kind, "job": other})
            assert (await ann.until("error"))["code"] == "not_found"


async def test_death_of_a_replica_is_not_noticed(
    broker: Broker, start_broker: Start, serve: Serve, valkey_url: str, tmp_path: Path
) -> None:
    """Through NGINX, under its path for the queue: the replica that has its socket ends, and no event comes twice."""
    replicas = [broker, await start_broker()]
    upstream = [replica.url.removeprefix("http://") for replica in replicas]
    async with nginx("nginx.conf", tmp_path / "nginx", upstream) as front:
        shop = await serve(QUEUE_URL=f"{front.url}/queue")
        async with shop.client() as ann:
            await ann.send({"type": "generate", "workflow": GRAPH})
            job = (await ann.until("accepted"))["job"]
            await wait_until(lambda: has_one(replicas), 20, "one replica has the socket")
            (holder,) = [replica for replica in replicas if await sockets(replica)]
            (other,) = [replica for replica in replicas if replica is not holder]
            await holder.server.close()
            async with other.worker().running(valkey_url):
                await ann.of_job(job, "done")
            events = [message["event"] for message in ann.heard if message.get("job") == job and "event" in message]
            assert len(events) == len(set(events)) > 2


async def has_one(replicas: list[Broker]) -> bool:
    return sorted([await sockets(replica) for replica in replicas]) == [0, 1]


async def sockets(broker: Broker) -> int:
    """Clients' sockets that are open there."""
    async with broker.http.get(f"{broker.url}/metrics") as answer:
        (line,) = [x for x in (await answer.text()).splitlines() if x.startswith('emq_broker_sockets{kind="client"}')]
    return int(float(line.split()[1]))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no json", "bad_message"), ("[]", "bad_message"), ({"type": "dance"}, "bad_message"),
        ({"type": "generate"}, "bad_message"), ({"type": "generate", "workflow": {"1": {}}}, "invalid_workflow"),
        ({"type": "status", "jobs": "all"}, "bad_message"), ({"type": "follow"}, "bad_message"),
        ({"type": "cancel", "job": "nothing"}, "not_found"),
    ],
)  # fmt: skip
async def test_bad_messages_leave_the_socket_open(broker: Broker, serve: Serve, message: Any, code: str) -> None:
    shop = await serve(QUEUE_URL=broker.url)
    async with shop.client() as ann:
        await ann.send(message)
        assert (await ann.next())["code"] == code
        await ann.send({"type": "status", "jobs": []})
        assert (await ann.next())["jobs"] == []


async def test_who_has_no_token_gets_no_socket(broker: Broker, serve: Serve) -> None:
    shop = await serve(QUEUE_URL=broker.url)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with shop.client("guessed"):
            pass
    assert refused.value.status == 401


@pytest.mark.comfyui
@pytest.mark.timeout(240)
async def test_without_the_queue_one_comfyui_serves(plain_comfyui: ComfyProcess, serve: Serve) -> None:
    shop = await serve(QUEUE_ENABLED="0", COMFYUI_URL=plain_comfyui.url)
    picture = {
        "1": node("EmptyImage", width=64, height=64, batch_size=1, color=255),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    async with shop.client() as ann:
        await ann.send({"type": "generate", "request": "r1", "workflow": picture})
        job = (await ann.until("accepted", timeout=60))["job"]
        (file,) = (await ann.of_job(job, "done"))["files"]
        status, content = await shop.fetch(file["url"])
        assert (status, content[:4]) == (200, b"\x89PNG")
        assert (await shop.fetch("/v1/files/view?filename=other.png&subfolder=&type=output"))[0] == 404
        slow = {"1": node("EMQTestProgress", steps=200, delay=0.05, seed=1)}
        await ann.send({"type": "generate", "request": "r2", "workflow": slow})
        job = (await ann.until("accepted", timeout=60))["job"]
        await ann.of_job(job, "progress")
        await ann.send({"type": "cancel", "job": job})
        await ann.of_job(job, "cancelled")
        await ann.send({"type": "generate", "request": "r3", "workflow": {"1": {"class_type": "Nothing"}}})
        assert (await ann.until("error", timeout=60))["code"] == "invalid_workflow"
        await ann.send({"type": "status", "jobs": [job]})
        assert (await ann.until("status"))["jobs"][0]["status"] == "cancelled"


@pytest.mark.comfyui
@pytest.mark.timeout(240)
async def test_without_the_queue_a_job_may_end_before_its_request_is_answered(
    plain_comfyui: ComfyProcess, serve: Serve, api_server: Any
) -> None:
    shop, request = await serve(QUEUE_ENABLED="0", COMFYUI_URL=plain_comfyui.url), secrets.token_hex(8)
    job = str(uuid.uuid5(uuid.NAMESPACE_URL, f"ann:{request}"))

    async def late(_: object, __: object, answer: aiohttp.TraceRequestEndParams) -> None:
        if answer.url.path == "/prompt":
            await wait_until(lambda: plain_comfyui.get(f"/history/{job}"), 60, "ComfyUI has run it")

    tracing = aiohttp.TraceConfig()
    tracing.on_request_end.append(late)
    tracing.freeze()
    shop.server.app[api_server.BACKEND]._http.trace_configs.append(tracing)
    async with shop.client() as ann:
        picture = {
            "1": node("EmptyImage", width=8, height=8, batch_size=1, color=7),
            "2": node("PreviewImage", images=["1", 0]),
        }
        await ann.send({"type": "generate", "request": request, "workflow": picture})
        assert (await ann.until("accepted", timeout=90))["job"] == job
        (file,) = (await ann.of_job(job, "done"))["files"]
        assert (await shop.fetch(file["url"]))[0] == 200
