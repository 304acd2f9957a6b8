"""What ``install.py --check`` finds out about a worker's queue: by every address, and why it would not be let in."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from aiohttp import web
from aiohttp.test_utils import TestServer

from broker.queue.connection import Connection
from comfyui_emq_node.check import find_queue, server_of, too_old
from tests.access.conftest import Guarded, guarded
from tests.api.conftest import own_valkey, start_broker
from tests.support.groups_of_servers import CLUSTER, joined, watching
from tests.support.servers import RedisServer, free_port, redis7_binary

__all__ = ["guarded", "own_valkey", "start_broker"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A worker's settings file that is not there yet, in an environment without an address."""
    for name in ("EMQ_REDIS_URL", "EMQ_BROKER_URL", "EMQ_API_KEY", "REDIS_HOST"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "emq.json"


def write(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content))


@pytest.fixture
def servers() -> Iterator[list[RedisServer]]:
    """Three of Debian's Redis, as parts of a cluster."""
    folder = Path(tempfile.mkdtemp(prefix="emq-check-"))
    patient = (*CLUSTER, "--cluster-node-timeout", "60000")  # none is to fail, whatever else the machine does
    made = [RedisServer("node", redis7_binary(), folder / str(n)).start(*patient) for n in range(3)]
    yield made
    for server in made:
        server.kill()
    shutil.rmtree(folder, ignore_errors=True)


async def test_a_redis_without_a_broker_is_told(settings: Path, own_valkey: RedisServer) -> None:
    level, text = await find_queue(settings, own_valkey.url)
    assert (level, "no broker has been started" in text) == ("warn", True)
    connection = Connection(own_valkey.url)
    await connection.load("emq:{default}:")
    await connection.close()
    level, text = await find_queue(settings, own_valkey.url)
    assert (level, text.startswith("Valkey 9"), own_valkey.url in text) == ("ok", True, True)


async def test_the_redis_behind_a_sentinel_is_looked_at(settings: Path, own_valkey: RedisServer) -> None:
    connection = Connection(own_valkey.url)
    await connection.load("emq:{default}:")
    await connection.close()
    sentinel = await watching(own_valkey, down_ms=60_000)  # a pause of the machine is no reason to doubt it
    try:
        write(settings, {"EMQ_REDIS_URL": f"redis+sentinel://127.0.0.1:{sentinel.port}/main/0"})
        level, text = await find_queue(settings)
        assert (level, text.startswith("Valkey ")) == ("ok", True), text
    finally:
        sentinel.end()


async def test_the_node_of_a_cluster_is_looked_at(settings: Path, servers: list[RedisServer]) -> None:
    await joined(servers)
    url = f"redis+cluster://127.0.0.1:{servers[0].port}"
    connection = Connection(url)
    await connection.load("emq:{default}:")
    await connection.close()
    level, text = await find_queue(settings, url)
    assert (level, text.startswith("Redis 7")) == ("ok", True), text


async def test_a_refused_login_does_not_show_the_password(settings: Path, own_valkey: RedisServer) -> None:
    with redis.Redis.from_url(own_valkey.url) as admin:
        admin.config_set("requirepass", "sesame")
    level, text = await find_queue(settings, f"redis://:hidden@127.0.0.1:{own_valkey.port}/0")
    assert (level, "refuses the login" in text, "hidden" in text) == ("fail", True, False)
    level, text = await find_queue(settings, f"unix://{own_valkey.folder}/s?password=hidden&db=0")
    assert (level, "refuses the login" in text, "hidden" in text) == ("fail", True, False)
    assert (await find_queue(settings, f"redis://:sesame@127.0.0.1:{own_valkey.port}/0"))[0] == "warn"


async def test_a_broker_is_asked_for_what_a_worker_needs(
    settings: Path, guarded: Guarded, own_valkey: RedisServer
) -> None:
    url = guarded.broker.url
    assert (await find_queue(settings, url))[0] == "ok"
    reader, worker = await guarded.key("read"), await guarded.key("worker")
    level, text = await find_queue(settings, url.replace("http", "ws"))
    assert (level, "the broker wants a key" in text) == ("fail", True)
    write(settings, {"EMQ_BROKER_URL": url + "/", "EMQ_API_KEY": reader})
    level, text = await find_queue(settings)
    assert (level, "the key is refused" in text, reader in text) == ("fail", True, False)
    write(settings, {"EMQ_BROKER_URL": url, "EMQ_API_KEY": worker})
    assert (await find_queue(settings))[0] == "ok"
    own_valkey.kill()
    level, text = await find_queue(settings)
    assert (level, "has no Redis" in text) == ("fail", True)


async def test_what_is_no_broker_is_told(settings: Path) -> None:
    async with TestServer(web.Application()) as server:
        level, text = await find_queue(settings, str(server.make_url("")))
        assert (level, "not an EMQ broker" in text) == ("fail", True)
    for url in (f"http://127.0.0.1:{free_port()}", f"redis://127.0.0.1:{free_port()}/0"):
        level, text = await find_queue(settings, url)
        assert (level, "does not answer" in text) == ("fail", True)
    level, text = await find_queue(settings, "redis+odd://127.0.0.1")
    assert (level, "cannot be used" in text) == ("fail", True), text


async def test_a_broken_file_is_named(settings: Path) -> None:
    write(settings, [])
    level, text = await find_queue(settings)
    assert (level, "emq.json" in text) == ("fail", True)


@pytest.mark.parametrize(
    ("told", "old"),
    [
        (b"redis_version:6.2.14\r\n", True), (b"redis_version:7.0.15\r\n", False), (None, False),
        (b"redis_version:7.2.4\r\nvalkey_version:9.1.0\r\n", False),
        (b"redis_version:7.2.4\r\nvalkey_version:7.0.1\r\n", True),
    ],
)  # fmt: skip
def test_an_old_server_is_known_by_what_it_tells(told: bytes | None, old: bool) -> None:
    assert too_old(server_of(told)) == old
