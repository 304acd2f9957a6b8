"""What is kept about keys, on both servers and in a cluster."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import redis

from broker.access.identity import Identity, Scope
from broker.access.store import KEPT_MS, AccessStore, P
from broker.errors import NotFound
from broker.queue.connection import Connection
from tests.support.servers import RedisServer, redis7_binary, valkey_binary
from tests.support.waiting import wait_until

KINDS = {"valkey": (valkey_binary, False), "redis7": (redis7_binary, False), "cluster": (redis7_binary, True)}


def answers(url: str) -> bool:
    with redis.Redis.from_url(url) as admin:
        info: dict[str, str] = admin.execute_command("CLUSTER INFO")
        return info["cluster_state"] == "ok"


@pytest.fixture(params=KINDS)
async def kept(request: pytest.FixtureRequest) -> AsyncIterator[tuple[AccessStore, redis.Redis]]:
    """A store, and a plain client to look behind its back."""
    binary: Callable[[], str]
    binary, cluster = KINDS[request.param]
    folder = Path(tempfile.mkdtemp(prefix="emq-access-"))
    server = RedisServer("access", binary(), folder).start(*(("--cluster-enabled", "yes") if cluster else ()))
    url = f"redis+cluster://127.0.0.1:{server.port}" if cluster else server.url
    with redis.Redis.from_url(server.url) as client:
        if cluster:
            client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            await wait_until(lambda: answers(server.url), 20, "the cluster is whole")
        connection = Connection(url)
        yield AccessStore(connection), client
        await connection.close()
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


async def test_keys_sessions_and_tickets(kept: tuple[AccessStore, redis.Redis]) -> None:
    store, client = kept
    assert await store.load() == (0, {})
    key, text = await store.create("a", ["read", "submit"], expires_s=60, name="n")
    version, found = await store.load()
    assert (version, found) == (1, {key.key_id: key})
    assert text.startswith(f"emq_{key.key_id}_")
    assert 60_000 < client.pttl(f"{P}key:{key.key_id}") <= 60_000 + KEPT_MS
    rotated, _ = await store.rotate(key.key_id, 5)
    assert rotated.old_digest == key.digest != rotated.digest
    await store.used({key.key_id: 7})
    assert (await store.get(key.key_id)).used_at == 7
    revoked = await store.revoke(key.key_id)
    assert (revoked.revoked_at is not None, revoked.digest) == (True, "")
    assert await store.revoke(key.key_id) == revoked, "twice is once"
    for change in (store.rotate(key.key_id), store.revoke("nope"), store.get("nope"), store.rotate("nope")):
        with pytest.raises(NotFound):
            await change
    assert await store.version() == 3
    client.delete(f"{P}key:{key.key_id}")
    assert await store.load() == (3, {})
    assert client.scard(P + "ids") == 0, "what is forgotten leaves nothing behind"
    assert client.hlen(P + "used") == 0
    who = Identity("a", frozenset({Scope.READ}), "k", "d")
    ticket, session = await store.make_ticket(who), await store.open_session(who)
    assert await store.take_ticket(ticket) == who
    assert await store.take_ticket(ticket) is None
    seen = await store.session(session)
    assert seen is not None
    assert (seen.tenant, seen.scopes, seen.key_id, seen.digest) == ("a", who.scopes, "k", "d")
    assert await store.living([seen.session, "x"]) == {seen.session}
    await store.close_session(session)
    assert await store.session(session) is None
