"""``python -m broker …`` as processes: commands that end, and brokers that serve."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.api.conftest import Broker

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0
"""Long, because the tests may share two cores with others."""


def environment(**more: str) -> dict[str, str]:
    """This process' environment without settings of EMQ, and with these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("EMQ_", "REDIS_", "LOG_LEVEL"))}
    return {**kept, **more}


async def emq(*args: str, **env: str) -> tuple[int, str, str]:
    """Run a command to its end: exit code, stdout, stderr."""
    return await emq_reading(None, *args, **env)


async def emq_reading(stdin: bytes | None, *args: str, **env: str) -> tuple[int, str, str]:
    """The same of a command that is given an input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker", *args, cwd=ROOT, env=environment(**env), stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(stdin), 60)
    return process.returncode or 0, out.decode(), err.decode()


async def emq_here(*args: str) -> tuple[int, str, str]:
    """The same in this process, where there are many: most of a command's time is an interpreter's start."""
    from broker.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = await asyncio.to_thread(main, list(args))
    return code, out.getvalue(), err.getvalue()


async def emq_says(*args: str, stdin: str = "") -> str:
    """What a command prints that must end well."""
    code, out, err = await emq_reading(f"{stdin}\n".encode(), *args)
    assert code == 0, err
    return out


async def emq_at(broker: Broker, *args: str) -> tuple[int, str]:
    """A command in this process, against this broker: exit code and everything it prints."""
    code, out, err = await emq_here(*args, "--broker", broker.url)
    return code, out + err


@dataclass
class Served:
    """A broker process. ``start_s``: how long it took to say that it listens, which tells how fast the machine is."""

    process: asyncio.subprocess.Process
    url: str
    line: str
    start_s: float

    async def end(self) -> tuple[int, str, str, float]:
        """SIGTERM: exit code, the rest of stdout, stderr, seconds."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        out, err = await asyncio.wait_for(self.process.communicate(), 20)
        return self.process.returncode or 0, out.decode(), err.decode(), time.monotonic() - started


def serving(*args: str, **env: str) -> AbstractAsyncContextManager[Served]:
    """A broker of the checkout."""
    return serving_in(ROOT, *args, **env)


@contextlib.asynccontextmanager
async def serving_in(cwd: Path, *args: str, **env: str) -> AsyncIterator[Served]:
    """A broker that is started in this folder."""
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker", "serve", "--port", "0", *args, cwd=cwd, env=environment(**env),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = (await asyncio.wait_for(process.stdout.readline(), START_S)).decode()
        found = re.fullmatch(r"listening on (http://\S+:\d+)\n", line)
        assert found, line
        yield Served(process, found[1], line, time.monotonic() - started)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@dataclass
class Replica:
    """A broker process that can be started again on its port."""

    port: int
    options: tuple[str, ...]
    env: dict[str, str]
    stack: contextlib.AsyncExitStack
    served: Served | None = None

    @property
    def url(self) -> str:
        """Its own address, past what balances."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, for the first time or again."""
        self.served = await self.stack.enter_async_context(serving("--port", str(self.port), *self.options, **self.env))

    async def end(self, number: int) -> None:
        """Send a signal, wait for the end, and say how it ended."""
        assert self.served is not None
        self.served.process.send_signal(number)
        code = await asyncio.wait_for(self.served.process.wait(), 30)
        assert code == (0 if number == signal.SIGTERM else -number)
