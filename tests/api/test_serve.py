"""``python -m broker serve`` and the commands that talk to it, as processes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bench.sockets import connect_many
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from tests.api.conftest import GRAPH, NODES, submit
from tests.support.commands import ROOT, emq, emq_here, emq_reading, environment, serving
from tests.support.jobs import profile
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import wait_until


async def test_serve_keeps_its_contract(valkey_url: str, pool: str, tmp_path: Path) -> None:
    """One line on stdout, logs on stderr, SIGTERM ends it with 0 in under a second with open sockets."""
    options = ("--host", "127.0.0.1", "--data", str(tmp_path), "--redis", valkey_url)
    async with serving(*options, EMQ_POOL=pool) as broker, aiohttp.ClientSession() as http:
        sockets = [await http.ws_connect(broker.url + "/ws") for _ in range(10)]
        await sockets[0].send_json(submit())
        assert (await sockets[0].receive_json())["type"] == "job_accepted"
        async with http.get(broker.url + "/health") as response:
            assert response.status == 200
        listening = [asyncio.create_task(ws.receive()) for ws in sockets[1:]]
        code, out, err, took = await broker.end()
        assert (code, out) == (0, "")
        assert took < 1 + broker.start_s / 2, "a second, and what ending a process takes: less than half of its start"
        assert "listening" not in err
        assert [(await each).data for each in listening] == [1001] * 9
        for ws in sockets:
            await ws.close()


async def test_a_stop_says_goodbye_to_hundreds_of_followers(valkey_url: str, pool: str, tmp_path: Path) -> None:
    """Each follows a job of a few; some never answer the farewell. All get it, and the broker ends with 0."""
    followed: list[bytes] = []
    async with serving("--data", str(tmp_path), "--redis", valkey_url, EMQ_POOL=pool) as broker:
        asked = {"jobs": [submit() for _ in range(30)]}
        async with aiohttp.ClientSession() as http, http.post(broker.url + "/api/jobs", json=asked) as response:
            jobs = [each["job_id"] for each in (await response.json())["results"]]
        port = int(broker.url.rpartition(":")[2])
        sockets = await connect_many([port] * 300, on_text=followed.append)
        for socket, job in zip(sockets, itertools.cycle(jobs), strict=False):
            socket.send(json.dumps({"type": "subscribe_job", "job_id": job}).encode())
        await wait_until(lambda: sum(b'"job_update"' in text for text in followed) == 300)
        for socket in sockets[:20]:
            socket.answers = False
        code, out, err, _ = await broker.end()
        assert (code, out) == (0, "")
        assert "Traceback" not in err
        assert [await socket.closed for socket in sockets] == [1001] * 300


async def test_serve_without_redis_keeps_its_jobs_over_a_restart(tmp_path: Path) -> None:
    """The embedded Valkey lives in the data folder."""
    async with serving("--data", str(tmp_path)) as broker, aiohttp.ClientSession() as http:
        async with http.post(broker.url + "/api/jobs", json=submit()) as response:
            job = (await response.json())["job_id"]
        assert (await broker.end())[0] == 0
    async with serving("--data", str(tmp_path), LOG_LEVEL="warning") as broker, aiohttp.ClientSession() as http:
        async with http.get(f"{broker.url}/api/jobs/{job}") as response:
            assert (await response.json())["status"] == "pending"
        code, _, err, _ = await broker.end()
        assert (code, err) == (0, ""), "what is less than a warning is not said"


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        (("serve", "--host", "0.0.0.0"), {}, "without a key"),
        (("serve", "--host", "::"), {}, "without a key"),
        (("serve", "--host", "example.com"), {}, "without a key"),
        (("serve",), {"EMQ_HOST": "0.0.0.0"}, "without a key"),
        (("serve", "--port", "99999"), {}, "Cannot listen"),
        (("serve", "--redis", "http://127.0.0.1"), {}, "redis"),
        (("serve",), {"LOG_LEVEL": "LOUD"}, "LOG_LEVEL"),
        (("serve",), {"EMQ_LEASE_S": "soon"}, "EMQ_LEASE_S"),
        (("serve",), {"EMQ_POOL": "a b"}, "EMQ_POOL"),
        (("stats", "--broker", "http://127.0.0.1:9"), {}, "cannot be reached"),
        (("stats", "--broker", "nonsense"), {}, "nonsense"),
        (("submit", "/nowhere.json"), {}, "Cannot read"),
    ],
)
async def test_a_command_that_cannot_work_says_what_to_do(
    tmp_path: Path, args: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    code, out, err = await emq(*args, **{"EMQ_DATA": str(tmp_path), **env})
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err


async def test_a_taken_port_is_told(valkey_url: str, pool: str, tmp_path: Path) -> None:
    options = ("--data", str(tmp_path), "--redis", valkey_url)
    async with serving(*options, EMQ_POOL=pool) as broker:
        port = broker.url.rsplit(":", 1)[1]
        code, _, err = await emq("serve", "--port", port, *options, EMQ_POOL=pool)
        assert code == 1
        assert f"Cannot listen on 127.0.0.1:{port}" in err


async def test_a_redis_that_does_not_answer_ends_the_start(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker", "serve", "--port", "0", "--redis", "redis://127.0.0.1:9", cwd=ROOT,
        env=environment(EMQ_DATA=str(tmp_path)), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 1, "no Redis, no broker"
    assert (out, b"Traceback" in err) == (b"", False)


@contextlib.asynccontextmanager
async def queue_of(url: str, pool: str) -> AsyncIterator[Queue]:
    connection = Connection(url)
    yield Queue(connection, pool)
    await connection.close()


async def test_submit_watch_and_the_other_commands(valkey_url: str, pool: str, tmp_path: Path) -> None:
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(GRAPH))
    async with (
        serving("--data", str(tmp_path / "data"), "--redis", valkey_url, EMQ_POOL=pool) as broker,
        queue_of(valkey_url, pool) as queue,
    ):
        at = ("--broker", broker.url)

        async def run(worker: SimulatedWorker, held: Any) -> None:
            for n in (0, 50):
                node = {"id": "1", "class_type": "EmptyImage", "value": n, "max": 100}
                await worker.report(held, n, node=node)
            await worker.finish(held)

        worker = SimulatedWorker(queue, "sim-1", profile=profile(nodes=NODES), run=run)
        async with worker.running(valkey_url):
            code, out, err = await emq("submit", str(workflow), "--watch", "--output", str(tmp_path / "out"), *at)
            assert (code, err) == (0, "")
            lines = out.splitlines()
            assert lines[0].startswith("accepted as ")
            assert any(line.strip().startswith("0 %") or "%" in line for line in lines)
            assert "completed with 0 outputs" in lines
            assert "\x1b" not in out, "plain lines where there is no terminal"
            code, out, _ = await emq("watch", lines[0].split()[2], *at)
            assert (code, out.splitlines()[-1]) == (0, "completed with 0 outputs")
            code, out, _ = await emq_reading(json.dumps(GRAPH).encode(), "submit", "-", "--dry-run", *at)
            assert json.loads(out)["dry_run"] is True
        code, out, _ = await emq_here("submit", str(workflow), "--priority", "5", *at)
        job = out.split()[2]
        assert "waits: " in out
        assert job in (await emq_here("jobs", "list", *at))[1]
        assert json.loads((await emq_here("jobs", "show", job, *at))[1])["priority"] == 5
        assert (await emq_here("jobs", "priority", job, "-7", *at))[0] == 0
        assert (await emq_here("jobs", "priority", job, "front", *at))[0] == 0
        assert json.loads((await emq_here("jobs", "show", job, *at))[1])["priority"] == -7
        assert "cancelled" in (await emq_here("jobs", "cancel", job, "--reason", "enough", *at))[1]
        assert (await emq_here("jobs", "retry", job, *at))[0] == 0
        code, _, err = await emq_here("jobs", "cancel", "nope", *at)
        assert (code, "not_found" in err) == (1, True)
        assert json.loads((await emq_here("stats", *at))[1])["jobs"]["pending"] == 1
        await worker.register()
        for action in ("pause", "resume", "drain"):
            assert (await emq_here("workers", action, "sim-1", *at))[0] == 0
        assert "draining" in (await emq_here("workers", "list", *at))[1]
        code, out, _ = await emq("functions", "load", "--force", "--redis", valkey_url)
        assert (code, "library version" in out) == (0, True)
        assert (await broker.end())[0] == 0


async def test_watch_fails_with_the_job(valkey_url: str, pool: str, tmp_path: Path) -> None:
    workflow = tmp_path / "workflow.json"
    workflow.write_text(json.dumps(GRAPH))

    async def run(worker: SimulatedWorker, held: Any) -> None:
        await worker.report(held, 1)
        await worker.fail(held, "validation_failed", "It is wrong.", retry="no")

    async with (
        serving("--data", str(tmp_path / "data"), "--redis", valkey_url, EMQ_POOL=pool) as broker,
        queue_of(valkey_url, pool) as queue,
        SimulatedWorker(queue, "sim-1", profile=profile(nodes=NODES), run=run).running(valkey_url),
    ):
        code, _, err = await emq("submit", str(workflow), "--watch", "--broker", broker.url)
        assert code == 1
        assert "It is wrong." in err


async def test_logs_are_one_line_each_and_json_when_asked(valkey_url: str, pool: str, tmp_path: Path) -> None:
    options = ("--data", str(tmp_path), "--redis", valkey_url)
    async with serving(*options, EMQ_POOL=pool, EMQ_LOG_FORMAT="json", LOG_LEVEL="DEBUG") as broker:
        async with aiohttp.ClientSession() as http:
            headers = {"Authorization": "Bearer emq_secret_key", "User-Agent": "x\ty"}
            async with http.get(broker.url + "/api/jobs?cursor=%0d%0afake%1b[31m", headers=headers) as response:
                assert response.status == 400
        _, _, err, _ = await broker.end()
    assert err
    for line in err.splitlines():
        record = json.loads(line)
        assert {"event", "level", "timestamp"} <= set(record)
    assert "emq_secret_key" not in err
    assert "\x1b" not in err
