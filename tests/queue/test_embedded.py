"""The embedded Valkey: one server a folder, whoever comes, dies and goes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis

from broker.errors import ConfigurationError
from broker.queue.embedded import EmbeddedValkey
from broker.queue.locks import FileLock
from broker.queue.valkey_files import SOCKET_PATH, Files, Record
from tests.support.servers import free_port
from tests.support.waiting import wait_until

SOON_S = 30
"""For what is to happen at all; what is promised to be quick is measured."""
SCRIPT = Path(__file__).parents[1] / "support" / "share_valkey.py"


class Share:
    """One process with a share in the server."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(data), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = ""

    def ready(self) -> Share:
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, f"ended with {self.process.wait(10)} before it was ready"
        return self

    def end(self) -> None:
        self.process.terminate()
        assert self.process.wait(SOON_S) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def data() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="emq-data-"))
    yield folder
    if (folder / "valkey" / "server.lock").exists() and server_lives(folder):
        # Its broker may have died before it noted the process.
        os.kill(server_pid(folder), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def share(data: Path) -> Iterator[Callable[..., Share]]:
    shares = []

    def start(*arguments: str) -> Share:
        shares.append(Share(data, *arguments))
        return shares[-1]

    yield start
    for one in shares:
        one.close()


def record(data: Path) -> dict[str, Any]:
    """What the broker keeps of its server."""
    kept: dict[str, Any] = json.loads((data / "valkey.json").read_text())
    return kept


def server_lives(data: Path) -> bool:
    lock = FileLock(data / "valkey" / "server.lock")
    if lock.acquire():
        lock.release()
        return False
    return True


def client(data: Path) -> redis.Redis:
    return redis.Redis.from_url(str(record(data)["url"]))


def server_pid(data: Path) -> int:
    with client(data) as server:
        return int(server.info("server")["process_id"])


def test_server_is_durable_private_and_described(data: Path, share: Callable[..., Share]) -> None:
    broker = share().ready()
    found = record(data)
    with client(data) as tcp, redis.Redis.from_url(broker.url) as local:
        assert broker.url.startswith("unix://")
        assert local.config_get("append*")["appendfsync"] == "always"
        settings = tcp.config_get("*")
        assert tcp.info("server")["process_id"] == found["pid"]
    assert settings["appendonly"] == "yes"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["bind"] == "127.0.0.1"
    assert settings["hash-max-listpack-value"] == "1024"
    assert settings["save"] == ""
    with redis.Redis(port=int(str(found["port"]))) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    assert found["url"] == f"redis://:{found['password']}@127.0.0.1:{found['port']}/0"
    assert found["format"] == 1
    assert abs(time.time() * 1000 - int(str(found["started"]))) < 60_000


def test_secrets_are_for_the_owner_alone(data: Path, share: Callable[..., Share]) -> None:
    old = os.umask(0)
    try:
        share().ready()
    finally:
        os.umask(old)
    for name in ("valkey.json", "valkey.lock", "brokers.lock", "valkey/valkey.conf", "valkey/server.lock"):
        assert stat.S_IMODE((data / name).stat().st_mode) == 0o600, name
    assert stat.S_IMODE((data / "valkey").stat().st_mode) == 0o700
    assert stat.S_IMODE((data / "valkey" / "valkey.sock").stat().st_mode) == 0o700
    password = str(record(data)["password"])
    commands = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert password not in commands


def keep_a_port(data: Path) -> None:
    """Have the server use a port that the kernel gives to nobody else while the server is away."""
    Files(data).write(Record.new(free_port(), "", ""))


async def best(limit_s: float, measure: Callable[[], Awaitable[float]]) -> float:
    """The shortest of some times; a promise is for a machine with something left, and other tests run beside these."""
    times = [await measure()]
    while min(times) > limit_s and len(times) < 10:
        times.append(await measure())
    return min(times)


def test_data_password_and_port_are_found_again(data: Path, share: Callable[..., Share]) -> None:
    keep_a_port(data)
    first = share().ready()
    with client(data) as server:
        server.set("kept", "yes")
    before = record(data)
    first.end()
    assert record(data) == before | {"pid": None, "started": 0}
    share().ready()
    after = record(data)
    assert {name: after[name] for name in ("url", "socket", "port", "password")} == {
        name: before[name] for name in ("url", "socket", "port", "password")
    }
    with client(data) as server:
        assert server.get("kept") == b"yes"


def test_a_taken_port_is_given_up(data: Path, share: Callable[..., Share]) -> None:
    keep_a_port(data)
    share().ready().end()
    with socket.socket() as other:
        other.bind(("127.0.0.1", int(str(record(data)["port"]))))
        other.listen()
        share().ready()
        assert record(data)["port"] != other.getsockname()[1]
        with client(data) as server:
            assert server.ping()


def test_brokers_that_start_together_share_one_server(data: Path, share: Callable[..., Share]) -> None:
    brokers = [share() for _ in range(4)]
    urls = {broker.ready().url for broker in brokers}
    assert len(urls) == 1
    pid = server_pid(data)
    for broker in brokers[:3]:
        broker.end()
        assert server_pid(data) == pid
    brokers[3].end()
    assert not server_lives(data)


def test_brokers_that_end_together_end_the_server(data: Path, share: Callable[..., Share]) -> None:
    brokers = [share().ready() for _ in range(4)]
    for broker in brokers:
        broker.process.terminate()
    assert [broker.process.wait(SOON_S) for broker in brokers] == [0, 0, 0, 0]
    assert not server_lives(data)


async def test_server_survives_its_broker_and_is_adopted(data: Path, share: Callable[..., Share]) -> None:
    first = share().ready()
    pid = server_pid(data)
    first.kill()
    assert server_pid(data) == pid
    second = share().ready()
    assert server_pid(data) == pid
    # Adopted means looked after, too: it comes back although its parent is long dead.
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: record(data)["pid"] not in (None, pid), SOON_S, "the adopted server is started again")
    second.end()
    assert not server_lives(data)


async def test_killed_server_is_back_within_two_seconds(data: Path, share: Callable[..., Share]) -> None:
    keep_a_port(data)
    share().ready()
    port = record(data)["port"]
    with client(data) as server:
        server.set("kept", "yes")

        def is_new(old: int) -> bool:
            try:
                return bool(server.info("server")["process_id"] != old)
            except redis.RedisError:
                return False

        async def away() -> float:
            pid = server_pid(data)
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            await wait_until(partial(is_new, pid), SOON_S, "the server is back")
            return time.monotonic() - killed

        assert await best(2, away) < 2
        assert server.get("kept") == b"yes"
    assert record(data)["port"] == port


async def test_another_broker_takes_over_the_watch(data: Path, share: Callable[..., Share]) -> None:
    first = share().ready()
    second = share().ready()
    pid = server_pid(data)
    first.kill()
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: record(data)["pid"] not in (None, pid), SOON_S, "the second broker starts it again")
    assert server_pid(data) == record(data)["pid"]
    second.end()


async def test_broker_and_server_killed_at_once(data: Path, share: Callable[..., Share]) -> None:
    first = share().ready()
    with client(data) as server:
        server.set("kept", "yes")
    pid = server_pid(data)
    os.kill(pid, signal.SIGKILL)
    first.kill()
    share().ready()
    with client(data) as server:
        assert server.get("kept") == b"yes"


def test_command_line_adopts_and_leaves_the_server_alone(data: Path, share: Callable[..., Share]) -> None:
    broker = share().ready()
    pid = server_pid(data)
    command = share("--once").ready()
    assert command.url == broker.url
    command.process.communicate(timeout=SOON_S)
    assert server_pid(data) == pid


def test_command_line_alone_starts_a_server_for_its_own_time(data: Path, share: Callable[..., Share]) -> None:
    command = share("--once").ready()
    with client(data) as server:
        server.set("kept", "yes")
    command.process.communicate(timeout=SOON_S)
    assert command.process.returncode == 0
    assert not server_lives(data)
    share().ready()
    with client(data) as server:
        assert server.get("kept") == b"yes"


async def test_broker_looks_after_a_server_that_a_command_line_started(data: Path, share: Callable[..., Share]) -> None:
    command = share("--once").ready()
    pid = server_pid(data)
    broker = share().ready()
    command.process.communicate(timeout=SOON_S)
    assert server_pid(data) == pid
    os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: record(data)["pid"] not in (None, pid), SOON_S, "the broker starts it again")
    broker.end()
    assert not server_lives(data)


async def test_stop_is_quick(data: Path) -> None:
    async def stop() -> float:
        valkey = EmbeddedValkey(data)
        await valkey.start()
        began = time.monotonic()
        await valkey.stop()
        took = time.monotonic() - began
        assert not server_lives(data)
        return took

    assert await best(1, stop) < 1


async def test_long_path_gets_a_short_socket(data: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runtime = Path(tempfile.mkdtemp(prefix="emq-run-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    deep = data / ("ü" * 40) / 'a "long" name' / ("y" * 60)
    valkey = EmbeddedValkey(deep)
    url = await valkey.start()
    path = str(record(deep)["socket"])
    assert path.startswith(str(runtime))
    assert len(os.fsencode(path)) <= SOCKET_PATH
    with redis.Redis.from_url(url) as server:
        assert server.ping()
        assert server.config_get("dir")["dir"] == str(deep / "valkey")
    await valkey.stop()
    shutil.rmtree(runtime)


async def test_runtime_folder_of_somebody_else_is_not_used(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Path(tempfile.mkdtemp(prefix="emq-run-"))
    (runtime / f"emq-{os.getuid()}").mkdir(mode=0o777)
    (runtime / f"emq-{os.getuid()}").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    deep = data / ("x" * 100)
    valkey = EmbeddedValkey(deep)
    url = await valkey.start()
    assert record(deep)["socket"] == ""
    assert url == record(deep)["url"]
    await valkey.stop()
    shutil.rmtree(runtime)


async def test_broken_locale_does_not_matter(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.nonsense")
    valkey = EmbeddedValkey(data)
    await valkey.start()
    await valkey.stop()


@pytest.mark.parametrize("place", ["file", "below a file", "read-only"])
async def test_unusable_folder_says_what_to_do(data: Path, place: str) -> None:
    (data / "file").write_text("in the way")
    folder = {"file": data / "file", "below a file": data / "file" / "x", "read-only": Path("/proc/emq")}[place]
    with pytest.raises(ConfigurationError, match="Set EMQ_DATA"):
        await EmbeddedValkey(folder).start()


async def test_damaged_data_is_refused_with_the_servers_words(data: Path) -> None:
    valkey = EmbeddedValkey(data)
    url = await valkey.start()
    with redis.Redis.from_url(url) as server:
        for i in range(100):
            server.set(f"key{i}", "x" * 100)
    await valkey.stop()
    log = next((data / "valkey" / "appendonlydir").glob("*.incr.aof"))
    content = bytearray(log.read_bytes())
    content[len(content) // 2] = 0
    content[len(content) // 2 + 1 : len(content) // 2 + 40] = b"?" * 39
    log.write_bytes(content)
    with pytest.raises(ConfigurationError, match="Bad file format"):
        await EmbeddedValkey(data).start()


async def test_hung_server_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.queue.embedded.SILENT_S", 1)
    valkey = EmbeddedValkey(data)
    await valkey.start()
    pid = int(str(record(data)["pid"]))
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(ConfigurationError, match=f"does not answer; end it .process {pid}"):
            await EmbeddedValkey(data).start()
    finally:
        os.kill(pid, signal.SIGCONT)
    await valkey.stop()


async def test_unreadable_record_is_replaced(data: Path, share: Callable[..., Share]) -> None:
    (data / "valkey.json").write_text("{half")
    share().ready()
    assert server_pid(data) == record(data)["pid"]


async def test_cancelled_start_leaves_nothing_held(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def ask_for_ever(_: object) -> str:
        asked.set()
        await asyncio.Event().wait()
        return ""

    with monkeypatch.context() as patch:
        patch.setattr("broker.queue.embedded.ping", ask_for_ever)
        task = asyncio.create_task(EmbeddedValkey(data).start())
        await asyncio.wait_for(asked.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert server_lives(data)
    valkey = EmbeddedValkey(data)
    await valkey.start()
    await valkey.stop()
    assert not server_lives(data)
