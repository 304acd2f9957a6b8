"""What is broken in the drills: a Valkey, two broker replicas behind a balancer, workers, and proxies between them."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import signal
import subprocess
import sys
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from broker.queue.connection import Connection
from broker.queue.queue import Queue
from broker.trial.runtime import prepare
from tests.chaos.judge import REAL
from tests.chaos.power import Power
from tests.support.comfyui import ROOT, BrokerProcess, ComfyProcess
from tests.support.proxy import Proxy
from tests.support.servers import RedisServer, valkey_binary

LEASE_S = 3.0
SECRET = "the secret of the drills"
SETTINGS = {"EMQ_LEASE_S": str(LEASE_S), "EMQ_REAP_S": "0.3", "EMQ_BACKOFF_S": "0.1", "LOG_LEVEL": "WARNING"}


class Balancer(Proxy):
    """A proxy that leads each new connection to the next broker that answers."""

    def __init__(self) -> None:
        super().__init__(0, resp=False)
        self.ports: list[int] = []
        self._turn = itertools.count()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self.ports:
            self.target = self.ports[next(self._turn) % len(self.ports)]
            with suppress(OSError):
                _, probe = await asyncio.open_connection("127.0.0.1", self.target)
                probe.close()
                break
        await super()._accept(reader, writer)


@dataclass
class WorkerProcess:
    """A simulated worker in its own process."""

    name: str
    command: list[str]
    log: Path
    child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def send(self, number: int) -> None:
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(number)

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()


@dataclass
class Drill:
    """Everything that runs in a drill."""

    folder: Path
    pool: str = field(default_factory=lambda: f"chaos-{secrets.token_hex(4)}")
    workers: list[WorkerProcess] = field(default_factory=list)
    brokers: list[BrokerProcess] = field(default_factory=list)
    comfyuis: list[ComfyProcess] = field(default_factory=list)
    """Real ones; every other reaches the queue through the brokers."""

    def __post_init__(self) -> None:
        self.power = Power(self.folder / "power")
        self.redis = RedisServer("chaos", valkey_binary(), self.folder / "valkey")
        self.front = Balancer()
        self.ledger = self.folder / "ledger.jsonl"
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://127.0.0.1:{self.front.port}"

    async def start(self, workers: int = 5, brokers: int = 2, comfyuis: int = 0) -> Drill:
        await asyncio.to_thread(self.start_redis)
        self.to_redis = await self._proxy(Proxy(self.redis.port))
        self.from_workers = await self._proxy(Proxy(self.redis.port))
        await self._proxy(self.front)
        for number in range(brokers):
            data = self.folder / f"broker-{number}"
            settings = {**SETTINGS, "EMQ_REDIS_URL": self.to_redis.url, "EMQ_POOL": self.pool, "EMQ_SECRET": SECRET}
            broker = BrokerProcess(self.folder / f"broker-{number}.log", data=data, settings=settings)
            self.brokers.append(await asyncio.to_thread(broker.start))
        self.front.ports = [broker.port for broker in self.brokers]
        for number in range(workers):
            self.workers.append(self._worker(f"w{number}"))
            self.workers[-1].start()
        for number in range(comfyuis):
            self.comfyuis.append(self._comfyui(number).furnish().start())
        return self

    async def stop(self) -> None:
        processes: tuple[WorkerProcess | BrokerProcess | ComfyProcess, ...]
        processes = (*self.workers, *self.brokers, *self.comfyuis)
        for process in processes:
            process.send(signal.SIGCONT)
            process.kill()
        await self._stack.aclose()
        self.unfreeze_redis()
        self.redis.kill()

    def start_redis(self) -> None:
        """Start the server, with the shim that knows what reached the disk."""
        with self.power.shim():
            self.redis.start("--appendfsync", "always")

    def unfreeze_redis(self) -> None:
        if self.redis.process is not None:
            with suppress(ProcessLookupError):
                self.redis.process.send_signal(signal.SIGCONT)

    def new_client(self) -> tuple[Connection, Queue]:
        """A connection around all proxies, for the judge."""
        connection = Connection(self.redis.url)
        return connection, Queue(connection, self.pool)

    def _worker(self, name: str) -> WorkerProcess:
        command = [
            sys.executable, "-m", "tests.chaos.worker", "--url", self.from_workers.url, "--pool", self.pool,
            "--name", name, "--ledger", str(self.ledger),
        ]  # fmt: skip
        return WorkerProcess(name, command, self.folder / f"{name}.log")

    def _comfyui(self, number: int) -> ComfyProcess:
        way = {"EMQ_BROKER_URL": self.url} if number % 2 else {"EMQ_REDIS_URL": self.from_workers.url}
        settings = {**way, "EMQ_POOLS": self.pool, "WORKER_ID": f"{REAL}{number}", "MACHINE_ID": "chaos"}
        folder = self.folder / f"{REAL}{number}"
        folder.mkdir()
        return ComfyProcess(folder / "log", runtime=prepare(), base=folder / "base", settings=settings)

    async def _proxy(self, proxy: Any) -> Any:
        server = await proxy.serve()
        self._stack.push_async_callback(proxy.close)
        self._stack.callback(server.close)
        return proxy
