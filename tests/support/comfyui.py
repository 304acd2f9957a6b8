"""Real processes for the worker's tests: a broker, and ComfyUIs with the worker in them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from broker.trial.checkpoint import write_checkpoint
from broker.trial.runtime import TrialRuntime, make_base
from broker.trial.workflows import CHECKPOINT, plain_image
from tests.support.servers import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PACK = ROOT / "comfyui_emq_node"
TEST_NODES = ROOT / "tests" / "worker" / "nodes" / "emq_test_nodes"
START_S = 240.0
"""Long, because the tests may share two cores with others; a process that has ended is noticed at once."""
TERMINAL = ("completed", "failed", "cancelled")
LONG = 5000
"""Steps of a job that goes on until it is ended: minutes."""
Look = Callable[[list[dict[str, Any]], list[bytes]], Awaitable[None]]
"""Is shown the events and previews that have come so far, whenever there is another one."""


@dataclass
class Process:
    """A child process with its log."""

    log: Path
    child: subprocess.Popen[bytes] | None = None
    before: int = 0
    """Bytes of the log that are of earlier starts."""

    def launch(self, command: list[str], cwd: Path, env: dict[str, str]) -> None:
        with self.log.open("ab") as log:
            self.before = log.tell()
            self.child = subprocess.Popen(command, cwd=cwd, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        assert self.child is not None
        return self.child.pid

    @property
    def is_alive(self) -> bool:
        return self.child is not None and self.child.poll() is None

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def send(self, number: int) -> None:
        assert self.child is not None
        self.child.send_signal(number)

    def wait(self, timeout: float = 30.0) -> int:
        assert self.child is not None
        return self.child.wait(timeout)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.child is not None:
            self.child.kill()
            self.child.wait()

    def end(self) -> None:
        """End it in good order, within limits."""
        if self.is_alive:
            self.send(signal.SIGTERM)
            try:
                self.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()

    def wait_for(self, text: str, timeout: float = START_S) -> None:
        """Wait until the log of this start says something."""
        end = time.monotonic() + timeout
        while text.encode() not in self.log.read_bytes()[self.before :]:
            assert self.is_alive, f"the process ended:\n{self.said()[-3000:]}"
            assert time.monotonic() < end, f"not within {timeout:g} s: {text!r}\n{self.said()[-3000:]}"
            time.sleep(0.02)


@dataclass
class BrokerProcess(Process):
    """``python -m broker serve`` on a data folder of its own, with its own Valkey."""

    data: Path = field(default_factory=Path)
    port: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    host: str = "127.0.0.1"
    through: tuple[str, ...] = ()
    """What its command is preceded by, on a host of its own (``tests.support.network``)."""

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def redis_url(self) -> str:
        content: dict[str, Any] = json.loads((self.data / "valkey.json").read_text())
        return str(content["url"])

    def start(self) -> BrokerProcess:
        """Start (again, at the same place) and wait until it listens."""
        self.port = self.port or free_port()
        before = self.said().count("listening on") if self.log.exists() else 0
        command = [sys.executable, "-m", "broker", "serve", "--port", str(self.port), "--data", str(self.data)]
        settings = {"EMQ_HOST": self.host, **self.settings}
        self.launch([*self.through, *command], ROOT, {**os.environ, "PYTHONUNBUFFERED": "1", **settings})
        end = time.monotonic() + START_S
        while self.said().count("listening on") == before:
            assert self.is_alive, f"the broker ended:\n{self.said()[-3000:]}"
            assert time.monotonic() < end, self.said()[-3000:]
            time.sleep(0.02)
        return self

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """A client of this broker."""
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(self.url, timeout=timeout) as session:
            yield Client(self, session)


@dataclass
class ComfyProcess(Process):
    """The trial ComfyUI with the worker and the test nodes, in a base folder of its own."""

    runtime: TrialRuntime | None = None
    base: Path = field(default_factory=Path)
    settings: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def worker_id(self) -> str:
        return self.settings["WORKER_ID"]

    def furnish(self, pack: Path = PACK) -> ComfyProcess:
        """Make its folders: the worker and the test nodes linked, the small checkpoint written."""
        assert self.runtime is not None
        make_base(self.base)
        for source in (pack, TEST_NODES, self.runtime.comfyui / "custom_nodes" / "websocket_image_save.py"):
            link = self.base / "custom_nodes" / source.name
            if not link.exists():
                link.symlink_to(source)
        if not (self.base / "models" / "checkpoints" / CHECKPOINT).exists():
            write_checkpoint(self.base / "models" / "checkpoints" / CHECKPOINT)
        return self

    def start(self) -> ComfyProcess:
        """Start it without waiting for it."""
        assert self.runtime is not None
        self.port = self.port or free_port()
        # One thread each: with more, torch's threads wait for each other on a machine that does something else too.
        env = self.runtime.environment(OMP_NUM_THREADS="1", **self.settings)
        self.launch(self.runtime.command(self.base, self.port, *self.options), self.runtime.comfyui, env)
        return self

    def wait_ready(self) -> ComfyProcess:
        """Wait until its worker serves the queue."""
        self.wait_for("serves pool")
        return self

    async def queue(self) -> dict[str, Any]:
        found: dict[str, Any] = await self.get("/queue")
        return found

    async def until_it_runs(self, job_id: str) -> None:
        """Wait until ComfyUI runs this job, and no other of EMQ's.

        That it is ``processing`` may be told a moment before, with the end of the job before it.
        """

        async def runs() -> bool:
            jobs = (await self.get("/emq/status"))["jobs"]
            return [(job["job_id"], job["phase"]) for job in jobs] == [(job_id, "running")]

        await wait_until(runs, 60, f"ComfyUI runs job {job_id}")

    async def until_idle(self) -> None:
        """Wait until ComfyUI has nothing to run, also what an earlier test has interrupted."""

        async def idle() -> bool:
            queue = await self.queue()
            return not (queue["queue_running"] or queue["queue_pending"])

        await wait_until(idle, 60, "ComfyUI runs nothing")

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """The worker takes no job meanwhile: what is to see all of one can get ready."""
        await self.post("/emq/pause", {})
        try:
            yield
        finally:
            await self.post("/emq/resume", {})

    async def get(self, path: str) -> Any:
        async with aiohttp.ClientSession(self.url) as session, session.get(path) as answer:
            return await answer.json()

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        async with aiohttp.ClientSession(self.url) as session, session.post(path, json=body) as answer:
            return await answer.json() if answer.content_type == "application/json" else None


@dataclass
class Client:
    """A client of a broker."""

    broker: BrokerProcess
    session: aiohttp.ClientSession

    async def json(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        async with self.session.request(method, path, json=body) as answer:
            return answer.status, await answer.json()

    async def submit(self, graph: dict[str, Any], *, worker: ComfyProcess | None = None, **fields: Any) -> str:
        """Submit a workflow (for one worker, by its tag); gives the job's id."""
        if worker is not None:
            fields["requirements"] = {"tags": [worker.worker_id], **fields.get("requirements", {})}
        payload = {"workflow": graph, **fields.pop("payload", {})}
        status, answer = await self.json("POST", "/api/jobs", {"payload": payload, **fields})
        assert status == 201, answer
        return str(answer["job_id"])

    async def job(self, job_id: str) -> dict[str, Any]:
        status, record = await self.json("GET", f"/api/jobs/{job_id}")
        assert status == 200, record
        found: dict[str, Any] = record
        return found

    async def until(self, job_id: str, *statuses: str, timeout: float = 60.0) -> dict[str, Any]:  # noqa: ASYNC109
        """Wait until a job has one of these states (any final one when none is given)."""
        end = time.monotonic() + timeout
        while (record := await self.job(job_id))["status"] not in (statuses or TERMINAL):
            assert time.monotonic() < end, f"job {job_id} is still {record}"
            await asyncio.sleep(0.02)
        return record

    async def run(self, graph: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Submit a workflow and wait for its end."""
        return await self.until(await self.submit(graph, **fields))

    async def fetch(self, output: dict[str, Any]) -> bytes:
        """The bytes of an output."""
        async with self.session.get(output["url"]) as answer:
            assert answer.status == 200
            return await answer.read()

    async def worker(self, worker_id: str) -> dict[str, Any] | None:
        _, answer = await self.json("GET", "/api/workers")
        found: dict[str, Any] | None = next((w for w in answer["workers"] if w["worker_id"] == worker_id), None)
        return found

    async def until_counted_with(self, worker: ComfyProcess) -> None:
        """Wait until the broker, which looks at the fleet every few seconds, knows what this worker can run."""
        tags = {"tags": [worker.worker_id]}
        body = {"payload": {"workflow": plain_image()}, "requirements": tags, "dry_run": True}

        async def is_known() -> bool:
            status, answer = await self.json("POST", "/api/jobs", body)
            assert status == 200, answer
            return bool(answer["waiting_for"] == [])

        await wait_until(is_known, 30, f"the broker knows {worker.worker_id}")

    async def follow(
        self, job_id: str, *, previews: bool = False, look: Look | None = None
    ) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Every event of a job to its last one, and the previews.

        ``look`` ends a job that goes on until enough was seen: how long that takes is up to the machine.
        """
        events: list[dict[str, Any]] = []
        frames: list[bytes] = []
        async with asyncio.timeout(60), self.session.ws_connect("/ws", max_msg_size=0) as ws:
            await ws.send_json({"type": "subscribe_job", "job_id": job_id, "after": None, "previews": previews})
            async for frame in ws:
                if frame.type is aiohttp.WSMsgType.BINARY:
                    frames.append(frame.data)
                else:
                    message = json.loads(frame.data)
                    if message.get("job_id") == job_id and "event_id" in message:
                        events.append(message)
                        if _is_last(message):
                            break
                if look is not None:
                    await look(events, frames)
        return events, frames


def _is_last(event: dict[str, Any]) -> bool:
    """Whether nothing follows this event of a job."""
    failed = event["type"] == "fail_job" and not event["will_retry"]
    cancelled = event["type"] == "job_update" and event["status"] == "cancelled"
    return failed or cancelled or event["type"] == "complete_job"


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def slow(steps: int = 40, delay: float = 0.05, seed: int = 0, **inputs: Any) -> dict[str, Any]:
    """A workflow that takes ``steps * delay`` seconds and can be interrupted; with the file ``until`` it ends."""
    return {"1": node("EMQTestProgress", steps=steps, delay=delay, seed=seed, **inputs)}


def fails(kind: str, message: str = "on purpose") -> dict[str, Any]:
    return {"1": node("EMQTestFail", kind=kind, message=message)}


def sleeps(seconds: float, seed: int = 0) -> dict[str, Any]:
    return {"1": node("EMQTestSleep", seconds=seconds, seed=seed)}
