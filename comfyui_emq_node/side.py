"""The worker's hold on its side process (``keeper.py``): started, told, asked, started again when it has died."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import os
import subprocess
import sys
import time
from typing import Any

from .carrier import Carrier, Errand

log = logging.getLogger("emq")

BOOT = (
    "import sys, types; package = types.ModuleType('emq'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['emq'] = package; sys.path.append(sys.argv[2]); "
    "from emq.keeper import main; main(int(sys.argv[3]))"
)
"""Its modules are a package without the worker's ``__init__``, under a name that no folder's name can spoil. Site
packages are not read; only blake3 is of use, and comes last in the path."""
LEAVE_S = 2.0
STEADY_S = 60.0
"""A side process that lived so long had no fault of its own: the next one is started at once."""
MAX_PAUSE_S = 60.0
Message = dict[str, Any]


class SideProcess:
    """Keeps leases and carries files from outside of ComfyUI's interpreter; without it, files go by a thread."""

    def __init__(self) -> None:
        self._kept: dict[str, Message] = {}
        self._link: _Link | None = None
        self._ids = itertools.count(1)
        self._carrier = Carrier()
        self._leaving = False
        self._running: asyncio.Task[None] | None = None

    @property
    def is_there(self) -> bool:
        """Whether a side process runs now."""
        return self._link is not None

    def start(self) -> None:
        """Have a side process from now on."""
        self._running = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        pause = 0.0
        while not self._leaving:
            since = time.monotonic()
            try:
                await self._have_one()
            except OSError as error:
                log.warning("the side process cannot be started: %s; a node that blocks Python may lose its job", error)
            if self._leaving:
                return
            pause = 0.0 if time.monotonic() - since > STEADY_S else min(max(0.1, pause * 2), MAX_PAUSE_S)
            await asyncio.sleep(pause)

    async def _have_one(self) -> None:
        """Start one and wait for its end."""
        _, link = await asyncio.get_running_loop().subprocess_exec(
            _Link, *_command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None, **_options()
        )
        self._link = link
        log.debug("the side process is %s", link.pid)
        for pool, what in self._kept.items():
            link.say({"keep": pool, "as": what})
        try:
            await link.ended
        finally:
            self._link = None
            link.close()
        if not self._leaving:
            log.warning("the side process %s has ended; another one is started", link.pid)

    def keep(self, pool: str, what: Message) -> None:
        """Have a pool's lease kept, or its death told: as ``what`` says (``WorkQueue.guard``)."""
        if self._kept.get(pool) != what:
            self._kept[pool] = what
            if self._link is not None:
                self._link.say({"keep": pool, "as": what})

    async def put(self, errand: Errand) -> Message:
        """Carry a file; the answer is that of :meth:`Carrier.put`."""
        link = self._link
        if link is None:
            return await asyncio.get_running_loop().run_in_executor(None, self._carrier.put, errand)
        number = next(self._ids)
        link.say({"id": number, "put": vars(errand)})
        return await link.answer(number)

    async def close(self) -> None:
        """Say goodbye: the worker has left in good order. A side process that does not listen is killed."""
        self._leaving = True
        self._carrier.close()
        link = self._link
        if link is not None:
            link.say({"bye": True})
            link.hang_up()
            await asyncio.wait([link.ended], timeout=LEAVE_S)
            link.close()
            await asyncio.wait([link.ended], timeout=LEAVE_S)
        if self._running is not None:
            self._running.cancel()


class _Link(asyncio.SubprocessProtocol):
    """The pipes to one side process."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: Any = None
        self._rest = b""
        self._open: dict[int, asyncio.Future[Message]] = {}

    @property
    def pid(self) -> int:
        """The process' number."""
        return int(self._transport.get_pid())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The process runs."""
        self._transport = transport

    def say(self, message: Message) -> None:
        """Send one line."""
        self._transport.get_pipe_transport(0).write(json.dumps(message).encode() + b"\n")

    def answer(self, number: int) -> asyncio.Future[Message]:
        """The answer to an errand; one that is lost with the process is to be tried again."""
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        if self.ended.done():
            future.set_result({"again": "the side process has ended"})
        else:
            self._open[number] = future
        return future

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """Answers."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            future = self._open.pop(message.pop("id"), None)
            if future is not None and not future.done():
                future.set_result(message)

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """One of the pipes is closed."""
        self._give_up()

    def process_exited(self) -> None:
        """The process has ended."""
        self._give_up()
        if not self.ended.done():
            self.ended.set_result(None)

    def _give_up(self) -> None:
        for future in self._open.values():
            if not future.done():
                future.set_result({"again": "the side process has ended"})
        self._open.clear()

    def hang_up(self) -> None:
        """Close the pipe to the process, which ends it."""
        self._transport.get_pipe_transport(0).close()

    def close(self) -> None:
        """Be done with the process; one that still runs is killed."""
        self._transport.close()


def _command() -> list[str]:
    import blake3

    here = os.path.dirname(os.path.abspath(__file__))
    packages = os.path.dirname(os.path.dirname(os.path.abspath(blake3.__file__)))
    return [sys.executable, "-I", "-S", "-c", BOOT, here, packages, str(os.getpid())]


def _options() -> dict[str, Any]:
    if sys.platform == "win32":  # no window; Ctrl-C is ComfyUI's
        return {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    return {}
