"""``python -m broker doctor`` against real parts, whole and broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from broker.cli import checks
from tests.api.conftest import Broker
from tests.support.commands import emq, serving
from tests.support.nginx import nginx
from tests.support.servers import RedisServer

# Three or four commands start in one test, and a busy machine takes long for each.
pytestmark = pytest.mark.timeout(300)
Found = dict[str, dict[str, str]]


async def doctor(*args: str, **env: str) -> tuple[int, Found]:
    """Exit code, and the findings by what they are about."""
    code, out, err = await emq("doctor", "--json", *args, **env)
    assert out, err
    lines: list[dict[str, Any]] = json.loads(out)["checks"]
    for line in lines:
        assert (line["level"] == "ok") == (line["do"] == ""), "what is not well says what to do"
    return code, {line["what"]: line for line in lines}


async def test_a_sound_site_and_then_a_broken_one(valkey_url: str, pool: str, tmp_path: Path) -> None:
    """Redis, files, both ways to the broker: the direct one and the one through NGINX."""
    place = ("--data", str(tmp_path / "data"), "--redis", valkey_url)
    async with serving(*place, EMQ_POOL=pool) as broker:
        upstream = [broker.url.removeprefix("http://")]
        plain = {"proxy_set_header Upgrade           $http_upgrade;": ""}
        async with (
            nginx("nginx.conf", tmp_path / "good", upstream) as good,
            nginx("nginx.conf", tmp_path / "bad", upstream, **plain) as bad,
        ):
            code, found = await doctor(*place, "--broker", good.url, EMQ_POOL=pool)
            failed = {what for what, line in found.items() if line["level"] == "fail"}
            assert failed <= {"redis latency"}, found  # on a machine that is busy enough, this is true
            assert code == (1 if failed else 0)
            for what in ("redis policy", "queue functions", "files", f"broker {good.url}", f"WebSocket {good.url}/ws"):
                assert found[what]["level"] == "ok", found[what]
            assert found["workers"]["level"] == "warn"
            code, found = await doctor(*place, "--broker", bad.url, EMQ_POOL=pool)
            assert code == 1
            assert found[f"broker {bad.url}"]["level"] == "ok"
            assert "upgrade" in found[f"WebSocket {bad.url}/ws"]["said"]
    code, found = await doctor(*place, "--broker", broker.url, EMQ_POOL=pool)
    assert code == 1
    assert found[f"broker {broker.url}"]["level"] == "fail"


async def test_a_redis_that_would_lose_jobs(own_valkey: RedisServer, tmp_path: Path) -> None:
    place = ("--data", str(tmp_path), "--redis", own_valkey.url)
    with redis.Redis.from_url(own_valkey.url) as client:
        client.config_set("appendonly", "no")
        code, found = await doctor(*place, EMQ_ALLOW_VOLATILE="1")
        assert found["redis append-only file"]["level"] == "warn"
        assert found["queue functions"]["level"] == "fail", "no broker was here"
        assert code == 1
        client.config_set("maxmemory-policy", "allkeys-lru")
        code, found = await doctor(*place)
        assert (code, found["redis"]["level"]) == (1, "fail")
        assert "noeviction" in found["redis"]["said"]
    own_valkey.kill()
    code, found = await doctor(*place)
    assert (code, found["redis"]["level"]) == (1, "fail")


@pytest.mark.parametrize(
    ("comfyui", "manager", "level", "said"),
    [
        ("0.28.0", None, None, []),
        ("0.27.9", None, None, ["ComfyUI 0.27.9 is older"]),
        ("0.28.1", "3.39.1", "normal", ["Manager 3.39.1 is older"]),
        ("0.30", "4.0.5", "normal", []),
        ("0.30", "4.0.5", "strong", []),
        ("0.30", "4.0.5", "weak", ["may install"]),
        ("0.30", "4.0.5", "normal-", ["may install"]),
        ("0.30", "4.0.5", None, ["level unknown"]),
        ("0.30", "4.0.4", "weak", ["Manager 4.0.4 is older", "may install"]),
        ("unknown", None, None, []),
    ],
)
def test_versions_with_known_holes_are_named(
    comfyui: str, manager: str | None, level: str | None, said: list[str]
) -> None:
    told = {"comfyui_version": comfyui, "manager_version": manager, "manager_security": level}
    worker = {"worker_id": "w", "status": "idle", **told}
    lines = [line for line in checks.workers([worker]) if line.level != "ok"]
    assert len(lines) == len(said)
    assert all(text in line.said for text, line in zip(said, lines, strict=True))


def test_what_is_short_or_wrong_in_a_server_is_told() -> None:
    info = {"redis_version": "7.4.6", "maxmemory": 100, "used_memory": 90, "aof_enabled": 1, "server_time_usec": 5}
    levels = {line.what: line.level for line in checks.server({**info, "aof_last_write_status": "err"})}
    assert levels["redis memory"] == levels["redis clock"] == "warn"
    assert levels["redis append-only file"] == "fail"


async def test_the_doctor_asks_with_a_key(broker: Broker) -> None:
    (health, _, socket) = await checks.broker(broker.url, None)
    assert (health.level, socket.level) == ("ok", "ok")
