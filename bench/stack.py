"""The parts a benchmark runs on: a broker and a real ComfyUI, each a process of its own on a free loopback port."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from broker.trial.runtime import make_base, prepare

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A loopback port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


async def until(ready: Callable[[], Awaitable[Any]], what: str, seconds: float = 60) -> Any:
    """Ask until the answer is true; returns it."""
    for _ in range(int(seconds / 0.05)):
        try:
            if answer := await ready():
                return answer
        except (aiohttp.ClientError, OSError):
            pass
        await asyncio.sleep(0.05)
    raise TimeoutError(f"{what} within {seconds} s")


@asynccontextmanager
async def process(
    command: list[str], cwd: Path, env: dict[str, str], log: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A child that ends with the block."""
    with log.open("wb") as out:
        child = await asyncio.create_subprocess_exec(*command, cwd=cwd, env=env, stdout=out, stderr=out)
    try:
        yield child
    finally:
        if child.returncode is None:
            child.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(child.wait(), 20)
            except TimeoutError:
                child.kill()
                await child.wait()


@asynccontextmanager
async def broker(folder: Path, http: aiohttp.ClientSession) -> AsyncIterator[str]:
    """A broker with its own Valkey; gives its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "broker", "serve", "--port", str(port), "--data", str(folder / "data")]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("EMQ_", "REDIS_"))}
    async with process(command, ROOT, env, folder / "broker.log"):

        async def healthy() -> bool:
            async with http.get(url + "/health") as answer:
                return answer.status == 200

        await until(healthy, "the broker is healthy")
        yield url


@dataclass(frozen=True, slots=True)
class Replica:
    """A running broker."""

    port: int
    pid: int

    @property
    def cpu_s(self) -> float:
        """The CPU seconds that it has used."""
        threads = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9

    @property
    def rss(self) -> int:
        """The bytes of memory that it has."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def holds(self, clients: Collection[tuple[str, int]]) -> int:
        """How many of these clients' addresses it has a connection open to, as the kernel knows."""
        found, here = 0, f":{self.port:04X} "
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            if here not in line:
                continue
            fields = line.split()
            if fields[9] != "0" and _address(fields[1])[1] == self.port:  # 0: nobody's, the kernel alone has it
                found += _address(fields[2]) in clients
        return found


def _address(text: str) -> tuple[str, int]:
    """An address as the kernel writes it."""
    host, _, port = text.partition(":")
    return socket.inet_ntoa(bytes.fromhex(host)[::-1]), int(port, 16)


@asynccontextmanager
async def replica(folder: Path, redis_url: str, http: aiohttp.ClientSession, **more: str) -> AsyncIterator[Replica]:
    """A broker on this Redis; ``more`` is of its environment."""
    port = free_port()
    command = [sys.executable, "-m", "broker", "serve", "--port", str(port), "--redis", redis_url,
               "--data", str(folder / "data")]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if not k.startswith(("EMQ_", "REDIS_"))} | more
    async with process(command, ROOT, env, folder / f"broker-{port}.log") as child:

        async def healthy() -> bool:
            async with http.get(f"http://127.0.0.1:{port}/health") as answer:
                return answer.status == 200

        await until(healthy, "a broker is healthy")
        yield Replica(port, child.pid)


@asynccontextmanager
async def comfyui(
    folder: Path, http: aiohttp.ClientSession, *, worker: bool
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A fresh ComfyUI with the probe, and with EMQ's worker or without; gives its URL and process."""
    runtime = prepare(lambda line: print(line, file=sys.stderr))
    base = make_base(folder / "comfyui")
    packs = {"probe": ROOT / "bench" / "probe"}
    if worker:
        packs["comfyui_emq_node"] = ROOT / "comfyui_emq_node"
    for name, target in packs.items():
        (base / "custom_nodes" / name).symlink_to(target)
    url_file = folder / "data" / "valkey.json"
    redis = json.loads(url_file.read_text())["url"] if worker else ""
    port = free_port()
    env = runtime.environment(EMQ_REDIS_URL=redis, WORKER_ID="bench", LOG_LEVEL="WARNING")
    command = runtime.command(base, port)
    url = f"http://127.0.0.1:{port}"
    async with process(command, runtime.comfyui, env, folder / f"comfyui-{port}.log") as child:

        async def ready() -> bool:
            async with http.get(url + "/system_stats") as answer:
                return answer.status == 200

        await until(ready, "ComfyUI answers")
        yield url, child
