"""What may become of brokers and the way to them, one fault at a time."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest
import redis

from broker.client import Client
from broker.errors import NotFound
from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.queue import Queue
from tests.api.conftest import GRAPH, NODES, Start, own_valkey, start_broker
from tests.chaos.clock import Clock
from tests.chaos.fleet import WorkerProcess
from tests.support.comfyui import BrokerProcess
from tests.support.jobs import profile
from tests.support.nginx import nginx
from tests.support.proxy import Proxy, proxy
from tests.support.servers import RedisServer
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import wait_until

__all__ = ["own_valkey", "start_broker"]

# Two brokers start in most of them.
pytestmark = pytest.mark.timeout(300)
FLOOD_MB, MOST_MB = 90, 64
"""Redis cuts a connection that is 32 MB behind; what the kernel takes on the way comes first."""
SETTINGS = {"EMQ_SECRET": "the secret of these tests", "EMQ_REAP_S": "0.3", "LOG_LEVEL": "WARNING"}
"""The lease is the usual one: no worker is to be lost here, however busy the machine."""


@dataclass
class Scene:
    """Two broker processes on one server: the first behind a proxy on either side."""

    to_redis: Proxy
    front: Proxy
    first: BrokerProcess
    second: BrokerProcess
    queue: Queue
    connection: Connection

    def kill_first(self) -> None:
        """Its clients are led to the second one from now on."""
        self.front.target, self.front.replies = self.second.port, lambda data: data
        self.first.send(signal.SIGKILL)


@asynccontextmanager
async def scene(server: RedisServer, folder: Path) -> AsyncIterator[Scene]:
    pool = f"t-{secrets.token_hex(6)}"
    async with AsyncExitStack() as stack:
        to_redis = await stack.enter_async_context(proxy(server.port))
        brokers = []
        for name, url in (("first", to_redis.url), ("second", server.url)):
            env = {**SETTINGS, "EMQ_POOL": pool, "EMQ_REDIS_URL": url}
            broker = BrokerProcess(folder / f"{name}.log", data=folder / name, settings=env)
            stack.callback(broker.kill)
            brokers.append(broker)
        await asyncio.gather(*(asyncio.to_thread(broker.start) for broker in brokers))
        first, second = brokers
        front = await stack.enter_async_context(proxy(first.port, resp=False))
        connection = Connection(server.url)
        stack.push_async_callback(connection.close)
        yield Scene(to_redis, front, first, second, Queue(connection, pool), connection)


@contextmanager
def worker_process(folder: Path, url: str, pool: str) -> Iterator[None]:
    """A simulated worker that registers again whenever it has to."""
    said = ["--url", url, "--pool", pool, "--name", "w", "--ledger", str(folder / "ledger")]
    worker = WorkerProcess("w", [sys.executable, "-m", "tests.chaos.worker", *said], folder / "worker.log")
    worker.start()
    try:
        yield
    finally:
        worker.kill()


def before_the_call(scene: Scene) -> None:
    """The broker dies with the submit on its way to Redis: there is no job yet."""

    def swallow(data: bytes) -> bytes:
        if b"emq_submit" not in data:
            return data
        scene.kill_first()
        return b""

    scene.to_redis.requests = swallow


def after_the_call(scene: Scene) -> None:
    """It dies before it hears Redis' answer: there is a job, and nobody knows."""
    asked: list[bytes] = []

    def note(data: bytes) -> bytes:
        if b"emq_submit" in data:
            asked.append(data)
        return data

    def swallow(reply: bytes) -> bytes:
        if not asked or b"job_id" not in reply:
            return reply
        scene.kill_first()
        return b""

    scene.to_redis.requests, scene.to_redis.replies = note, swallow


def after_the_answer(scene: Scene) -> None:
    """It dies when it has answered, and the answer is lost."""

    def swallow(data: bytes) -> bytes:
        if b"job_accepted" not in data:
            return data
        scene.kill_first()
        return b""

    scene.front.replies = swallow


@pytest.mark.parametrize("point", [before_the_call, after_the_call, after_the_answer])
async def test_a_broker_that_dies_in_a_submit_makes_one_job(
    own_valkey: RedisServer, tmp_path: Path, point: Callable[[Scene], None]
) -> None:
    async with scene(own_valkey, tmp_path) as it, Client(f"http://127.0.0.1:{it.front.port}", patience_s=60) as emq:
        await emq.stats()
        point(it)
        job = await emq.submit(GRAPH, idempotency_key="order-17", follow=False)
        assert it.first.wait(10) == -signal.SIGKILL
        assert job.accepted is not None
        assert job.accepted.duplicate is (point is not before_the_call)
        assert [one.job_id async for one in emq.jobs()] == [job.id]
        assert not await Check(it.connection, it.queue.prefix).run()


async def test_a_broker_that_stands_still_fills_no_memory(own_valkey: RedisServer, tmp_path: Path) -> None:
    """Redis cuts its connection for events; when it goes on it reads what it has missed."""
    async with scene(own_valkey, tmp_path) as it, Client(it.first.url, patience_s=120) as emq:
        worker = SimulatedWorker(it.queue, profile=profile(nodes=NODES))
        await worker.register()
        job = await emq.submit(GRAPH)
        hearing = asyncio.ensure_future(job.result())
        held = await worker.claim()
        assert held is not None
        with redis.Redis.from_url(own_valkey.url) as admin:
            before, most, cut = int(admin.info("memory")["used_memory"]), 0, 0
            it.first.send(signal.SIGSTOP)
            for number in range(FLOOD_MB * 1024 // 14):
                await worker.report(held, 50, store=False, message="x" * 14 * 1024)
                if number % 200 == 0:
                    await worker.heartbeat()
                    most = max(most, int(admin.info("memory")["used_memory"]) - before)
                    cut = admin.info("stats")["client_output_buffer_limit_disconnections"]
                if cut:
                    break
            await worker.finish(held)
        it.first.send(signal.SIGCONT)
        assert cut
        assert most < MOST_MB * 1024 * 1024
        async with asyncio.timeout(60):
            assert (await hearing).outputs == []


async def test_clocks_that_are_an_hour_wrong_disturb_nothing(own_valkey: RedisServer, tmp_path: Path) -> None:
    """Leases and delays live by Redis' clock, and so does what records tell."""
    clock = Clock(tmp_path)
    if not clock.possible:
        pytest.skip("shifting a clock needs a C compiler")
    settings = {**SETTINGS, "EMQ_REDIS_URL": own_valkey.url}
    broker = BrokerProcess(tmp_path / "broker.log", data=tmp_path / "data", settings=settings)
    began = time.time()
    with ExitStack() as stack:
        stack.callback(broker.kill)
        with clock.shifted(3600):
            await asyncio.to_thread(broker.start)
        with clock.shifted(-3600):
            stack.enter_context(worker_process(tmp_path, own_valkey.url, "default"))
        async with Client(broker.url) as emq:
            jobs = [await emq.submit(GRAPH, delay_s=number % 2, max_attempts=20) for number in range(8)]
            await wait_for_ends(emq, len(jobs))
            records = [await job.record() for job in jobs]
    for record in records:
        assert record.crashes == 0
        assert record.created_at is not None
        assert record.finished_at is not None
        assert began - 1 < record.created_at / 1000 <= record.finished_at / 1000 < time.time() + 1


async def wait_for_ends(emq: Client, count: int) -> None:
    """Wait until so many jobs have ended; some fail, as a simulated worker plans it."""

    async def ended() -> bool:
        return len([job async for job in emq.jobs() if job.status in ("completed", "failed")]) >= count

    await wait_until(ended, 60, f"{count} jobs have ended")


@pytest.mark.parametrize(("visit_s", "reads_s"), [(2.0, 7), (30.0, 1)])
async def test_a_quiet_socket_outlives_the_time_out_of_nginx(
    start_broker: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visit_s: float, reads_s: int
) -> None:
    """By the broker's pings, which come more often: with rare ones NGINX ends it.

    A ping comes every two visits, and has to be answered within one: NGINX may be held up for so long.
    """
    monkeypatch.setattr("broker.api.heartbeat.VISIT_S", visit_s)
    broker, stays = await start_broker(), visit_s < reads_s
    shorter = {"proxy_read_timeout 75s;": f"proxy_read_timeout {reads_s}s;"}
    async with (
        nginx("nginx.conf", tmp_path / "nginx", [f"127.0.0.1:{broker.server.port}"], **shorter) as front,
        aiohttp.ClientSession() as http,
        http.ws_connect(f"{front.url}/queue/ws") as socket,
    ):
        heard = asyncio.ensure_future(socket.receive())
        done, _ = await asyncio.wait({heard}, timeout=reads_s + 2 if stays else 60)
        assert bool(done) is not stays
        if stays:
            await socket.send_json({"type": "request_stats", "message_id": "m"})
            assert (await asyncio.wait_for(heard, 10)).json()["message_id"] == "m"


async def test_data_that_is_gone_is_told_and_work_goes_on(own_valkey: RedisServer, tmp_path: Path) -> None:
    """``FLUSHALL`` under load: whoever waits is told, workers register again, and new jobs run."""
    async with scene(own_valkey, tmp_path) as it, Client(it.second.url) as emq:
        pool = it.queue.prefix.removeprefix("emq:{").removesuffix("}:")
        with worker_process(tmp_path, own_valkey.url, pool):
            jobs = [await emq.submit(GRAPH, max_attempts=20) for _ in range(30)]
            waiting = [asyncio.ensure_future(job.result()) for job in jobs]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED, timeout=60)
            with redis.Redis.from_url(own_valkey.url) as admin:
                admin.flushall()
            async with asyncio.timeout(60):
                ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert any(isinstance(end, NotFound) for end in ends), ends
            for _ in range(5):
                await emq.submit(GRAPH, max_attempts=20)
            await wait_for_ends(emq, 5)
            assert not await Check(it.connection, it.queue.prefix).run()
