"""What all tests share: real servers, a pool of one's own, and the rule that nothing is left behind."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from hypothesis import HealthCheck, settings

from tests.support.leaks import leaks
from tests.support.s3 import CREDENTIALS, Bucket, S3Server
from tests.support.servers import RedisServer, ServerMissing, redis7_binary, valkey_binary

if TYPE_CHECKING:
    from broker.queue.connection import Connection
    from broker.queue.queue import Queue
    from tests.support.comfyui import ComfyProcess


COMFYUI_S = 600
"""A test may start several ComfyUIs, and each takes a minute or two where much else runs."""


class _RootIsNoPackage:
    """Keeps pytest from importing the checkout's ``__init__.py``, which is for ComfyUI alone."""

    @pytest.hookimpl
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootIsNoPackage())
    # Other processes may have the machine: how long an example takes says nothing.
    settings.register_profile("emq", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("emq")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests with a ComfyUI have more time than others; their own waits are what fails them."""
    for item in items:
        if item.get_closest_marker("comfyui") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(COMFYUI_S))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Get the trial ComfyUI and its page before the first test's time runs: it takes a minute, often several."""
    from broker.trial.runtime import RuntimeUnavailable, frontend, prepare

    wanted = any(item.get_closest_marker("comfyui") for item in session.items)
    if wanted and not session.config.getoption("collectonly"):
        with contextlib.suppress(RuntimeUnavailable):  # each test that needs it says why
            prepare()
            frontend()


def _serve(name: str, binary: str) -> Iterator[RedisServer]:
    # A Unix socket's path has at most 107 characters, so pytest's own longer folders will not do.
    folder = Path(tempfile.mkdtemp(prefix=f"emq-{name}-"))
    server = RedisServer(name, binary, folder).start()
    yield server
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    """The Valkey that EMQ starts by itself; one a test session."""
    yield from _serve("valkey", valkey_binary())


@pytest.fixture(scope="session")
def redis7_server() -> Iterator[RedisServer]:
    """Debian's Redis 7; one a test session. Missing, it fails the test: two servers are promised, so two are tested."""
    try:
        binary = redis7_binary()
    except ServerMissing as missing:
        pytest.fail(str(missing), pytrace=False)
    yield from _serve("redis7", binary)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """moto's S3; one a test session."""
    server = S3Server.start()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket, and the credentials for it in the environment."""
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    return s3_server.bucket()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 2 MB."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("making a small disk needs the right to mount one")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture(params=["valkey", "redis7"])
def redis_server(request: pytest.FixtureRequest) -> RedisServer:
    """Each of the two servers in turn."""
    server: RedisServer = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of each of the two servers in turn (``valkey_url`` for tests that one server is enough for)."""
    return redis_server.url


@pytest.fixture
def valkey_url(valkey_server: RedisServer) -> str:
    """URL of the Valkey alone."""
    return valkey_server.url


@pytest.fixture
def pool() -> str:
    """A pool name that nothing else uses."""
    return f"t-{secrets.token_hex(6)}"


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client, for looking behind the queue's back."""
    with redis.Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture
async def connection(redis_url: str) -> AsyncIterator[Connection]:
    """The broker's connection, the functions loaded."""
    from broker.queue.connection import Connection

    connection = Connection(redis_url)
    await connection.load("emq:{default}:")
    yield connection
    await connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., RedisServer]]:
    """Starts servers of this test's own."""
    servers = []

    def start(*options: str, binary: str = "", **where: Any) -> RedisServer:
        folder = Path(tempfile.mkdtemp(prefix="emq-own-"))
        servers.append(RedisServer("own", binary or valkey_binary(), folder, **where))
        return servers[-1].start(*options)

    yield start
    for server in servers:
        server.kill()
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[..., Connection]]:
    """Makes connections and closes them."""
    from broker.queue.connection import Connection

    connections = []

    def make(url: str, **options: bool) -> Connection:
        connections.append(Connection(url, **options))
        return connections[-1]

    yield make
    for connection in connections:
        await connection.close()


@pytest.fixture
def no_leaks(redis_client: redis.Redis, pool: str) -> Iterator[None]:
    """Fails a test that leaves a key without TTL that is not an index of something alive; removes the pool."""
    prefix = f"emq:{{{pool}}}:"
    yield
    left = leaks(redis_client, prefix)
    keys = list(redis_client.scan_iter(match=f"{prefix}*", count=1000))
    for begin in range(0, len(keys), 1000):
        redis_client.unlink(*keys[begin : begin + 1000])
    assert not left, f"keys without TTL are left behind: {left}"


@pytest.fixture
async def queue(connection: Connection, pool: str, no_leaks: None) -> Queue:
    """A fresh pool's queue, configured."""
    from broker.queue.queue import Queue

    queue = Queue(connection, pool)
    await queue.configure()
    return queue


@pytest.fixture(scope="session")
def plain_comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyProcess]:
    """A real ComfyUI without the worker, as somebody has it who does not use the queue."""
    from broker.trial.runtime import prepare
    from tests.support.comfyui import ComfyProcess

    folder = tmp_path_factory.mktemp("plain")
    comfy = ComfyProcess(folder / "log", runtime=prepare(), base=folder / "base", settings={"WORKER_ID": "none"})
    comfy.furnish()
    (comfy.base / "custom_nodes" / "comfyui_emq_node").unlink()
    comfy.start().wait_for("To see the GUI go to")
    yield comfy
    comfy.kill()
