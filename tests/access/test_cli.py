"""``python -m broker keys``, as processes."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.access.conftest import bearer
from tests.support.commands import emq, serving
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

A_KEY = re.compile(r"emq_([0-9a-f]{16})_[A-Za-z0-9_-]{43}")


async def create(*args: str) -> tuple[str, str]:
    """Make a key: it and its id."""
    code, out, err = await emq("keys", "create", "--tenant", "shop", *args)
    assert code == 0, err
    found = A_KEY.fullmatch(out.splitlines()[-1])
    assert found, out
    assert out.count(found[0]) == 1
    assert found[0] not in err
    return found[0], found[1]


async def status(http: aiohttp.ClientSession, url: str, key: str) -> int:
    async with http.get(url + "/stats", headers=bearer(key)) as response:
        return response.status


@contextlib.asynccontextmanager
async def broker_with(*keys: str, data: tuple[str, ...]) -> AsyncIterator[tuple[str, aiohttp.ClientSession, list[str]]]:
    """A broker on these data, which ends well and whose log has none of the keys; more may be added to the list."""
    told = list(keys)
    async with serving("--host", "0.0.0.0", *data) as broker, aiohttp.ClientSession() as http:
        yield broker.url.replace("0.0.0.0", "127.0.0.1"), http, told
        code, _, log, _ = await broker.end()
        assert code == 0
        assert not any(key in log for key in told)


async def test_before_the_first_start_and_while_a_broker_runs(tmp_path: Path) -> None:
    """On an embedded Valkey: started for the command's own time, or the running broker's."""
    data = ("--data", str(tmp_path))
    first, first_id = await create("--scopes", "submit,read", *data)
    async with broker_with(first, data=data) as (url, http, told):
        assert await status(http, url, first) == 200
        assert await status(http, url, "nonsense") == 401
        second, second_id = await create("--scopes", "admin", "--expires-s", "3600", "--name", "mine", *data)
        told.append(second)
        await honoured(http, url, second, 200)
        code, out, _ = await emq("keys", "list", "--json", *data)
        listed = {key["id"]: key for key in json.loads(out)["keys"]}
        assert code == 0
        assert set(listed) == {first_id, second_id}
        assert (listed[second_id]["name"], listed[second_id]["scopes"]) == ("mine", ["admin"])
        assert listed[second_id]["expires_at"] > time.time() * 1000
        assert first.split("_", 2)[2] not in out


async def test_a_key_is_rotated_and_revoked_while_a_broker_runs(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    first, key_id = await create("--scopes", "submit,read", *data)
    async with broker_with(first, data=data) as (url, http, told):
        code, out, _ = await emq("keys", "rotate", key_id, *data)
        rotated = out.splitlines()[-1]
        told.append(rotated)
        assert (code, A_KEY.fullmatch(rotated) is not None) == (0, True)
        await honoured(http, url, rotated, 200)
        assert await status(http, url, first) == 401
        assert (await emq("keys", "revoke", key_id, *data))[0] == 0
        await honoured(http, url, rotated, 401)
        assert "revoked" in (await emq("keys", "list", *data))[1]
        async with http.post(url + "/api/jobs", json={}) as response:
            assert response.status == 401


async def test_a_command_shows_its_key(tmp_path: Path) -> None:
    data = ("--data", str(tmp_path))
    key, _ = await create("--scopes", "admin", *data)
    async with broker_with(key, data=data) as (url, _, _):
        assert "pending" in (await emq("stats", "--broker", url, "--key", key))[1]
        assert (await emq("stats", "--broker", url, EMQ_API_KEY=key))[0] == 0
        code, _, err = await emq("stats", "--broker", url)
        assert (code, "unauthorized" in err) == (1, True)


async def honoured(http: aiohttp.ClientSession, url: str, key: str, wanted: int) -> None:
    """Wait for it. That a broker looks often enough for a second is in ``test_credentials.py``."""

    async def found() -> bool:
        return await status(http, url, key) == wanted

    await wait_until(found, what=f"the key is answered {wanted}")


async def test_on_a_redis_of_its_own(own_valkey: RedisServer) -> None:
    _, key_id = await create("--scopes", "read", "--redis", own_valkey.url)
    code, out, _ = await emq("keys", "list", EMQ_REDIS_URL=own_valkey.url)
    assert (code, key_id in out) == (0, True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("create", "--tenant", "a b", "--scopes", "read"), "tenant:"),
        (("create", "--tenant", "../x", "--scopes", "read"), "tenant:"),
        (("create", "--tenant", "a", "--scopes", "root"), "scopes:"),
        (("create", "--tenant", "a", "--scopes", ""), "scopes:"),
        (("create", "--tenant", "a", "--scopes", "read", "--expires-s", "-1"), "expires_s:"),
        (("create", "--tenant", "a", "--scopes", "read", "--expires-s", "nan"), "expires_s:"),
        (("revoke", "nope"), "no such key"),
        (("rotate", "nope"), "no such key"),
    ],
)
async def test_what_cannot_be_done_is_told(own_valkey: RedisServer, args: tuple[str, ...], said: str) -> None:
    code, out, err = await emq("keys", *args, "--redis", own_valkey.url)
    assert (code, out) == (1, "")
    assert said in err
    assert "Traceback" not in err
