"""Every form of EMQ_REDIS_URL builds a client."""

from __future__ import annotations

import warnings

import pytest
from redis.asyncio import Redis, RedisCluster

from comfyui_emq_node.queue import Refused
from comfyui_emq_node.redis_client import open_client


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("redis://:secret@127.0.0.1:6379/3", Redis),
        ("rediss://user:secret@host:6380/0", Redis),
        ("unix:///run/valkey.sock?db=1&password=x", Redis),
        ("redis+sentinel://:secret@a:26379,b/service/2", Redis),
        ("rediss+sentinel://a/service", Redis),
        ("redis+cluster://:secret@a:7000,b:7001", RedisCluster),
    ],
)
async def test_a_url_builds_aopen_client(url: str, kind: type[Redis | RedisCluster]) -> None:
    client = open_client(url, 5.0, 2)
    assert isinstance(client, kind)
    if isinstance(client, Redis):
        options = client.connection_pool.connection_kwargs
        assert options.get("password") in (None, "secret", "x")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a cluster client that never connected has nothing to close, and says so
        await client.aclose()


async def test_a_bad_url_is_refused() -> None:
    for url in ("redis+sentinel://a/service/three", "redis+odd://a", "http://a", "redis://a:many/0"):
        with pytest.raises(Refused, match="EMQ_REDIS_URL"):
            open_client(url, 5.0, 2)
