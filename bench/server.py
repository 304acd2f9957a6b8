"""A Redis server of its own for a measurement, and what its ``INFO`` says of the work in between."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as Disconnected

from bench.stack import free_port


@dataclass(frozen=True, slots=True)
class Spent:
    """What a server spent."""

    cpu_us: float
    """CPU of the whole server process."""
    calls: int
    """Commands, those inside of functions included."""
    functions: int
    """Function calls."""
    reads: int
    """Reads from sockets: about the round trips."""
    bytes: int
    """Growth of ``used_memory``."""
    seconds: float


class Server:
    """A running server."""

    def __init__(self, url: str, process: subprocess.Popen[bytes]) -> None:
        self.url = url
        self.process = process
        self.redis = Redis.from_url(url)

    def _state(self) -> tuple[float, int, int, int, int, float]:
        info: dict[str, Any] = self.redis.info()
        stats: dict[str, dict[str, float]] = self.redis.info("commandstats")
        calls = [int(line["calls"]) for name, line in stats.items() if name != "cmdstat_info"]
        cpu = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
        functions = int(stats.get("cmdstat_fcall", {}).get("calls", 0))
        reads, memory = int(info["total_reads_processed"]), int(info["used_memory"])
        return cpu, sum(calls), functions, reads, memory, time.monotonic()

    @contextmanager
    def spent(self) -> Iterator[list[Spent]]:
        """What the server spends in the block; the list has it afterwards."""
        before = self._state()
        out: list[Spent] = []
        yield out
        cpu, calls, functions, reads, memory, at = (new - old for new, old in zip(self._state(), before, strict=True))
        out.append(Spent(cpu * 1e6, int(calls), int(functions), int(reads), int(memory), at))


@contextmanager
def server(fsync: str = "everysec", *options: str, binary: str = "redis-server") -> Iterator[Server]:
    """An append-only server on loopback; ``fsync`` is ``everysec``, ``always`` or ``off`` (no append-only file)."""
    with tempfile.TemporaryDirectory(prefix="emq-bench-") as folder:
        port = free_port()
        append = ["--appendonly", "no"] if fsync == "off" else ["--appendonly", "yes", "--appendfsync", fsync]
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "",
                   "--auto-aof-rewrite-percentage", "0", "--loglevel", "warning", *append, *options]  # fmt: skip
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            up = Server(f"redis://127.0.0.1:{port}", process)
            _wait(up.redis)
            yield up
            up.redis.close()
        finally:
            process.terminate()
            process.wait(30)


def _wait(redis: Redis) -> None:
    for _ in range(200):
        try:
            redis.ping()
            return
        except Disconnected:
            time.sleep(0.02)
    raise TimeoutError("redis-server does not answer")
