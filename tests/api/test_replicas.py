"""Replicas with a disk each: whichever is asked gives the file."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from blake3 import blake3

from broker.app import SIGNER, STORE
from broker.files.outputs import checked_result
from broker.files.replicas import ReplicatedStore
from broker.files.secret import Secrets
from broker.files.urls import REPLICAS, UrlSigner
from tests.api.conftest import Broker, Start
from tests.support.outputs import PNG, fetch, held_job, put
from tests.support.proxy import proxy
from tests.support.servers import free_port
from tests.support.waiting import PATIENCE_S

SECRET = "the same at both replicas"
Replica = Callable[..., Awaitable[Broker]]


@pytest.fixture
def start_replica(start_broker: Start, tmp_path: Path) -> Replica:
    """Starts a replica whose data folder is its own."""

    async def start(name: str, **settings: object) -> Broker:
        chosen = {"port": free_port(), "secret": SECRET, "data": tmp_path / name, **settings}
        return await start_broker(**chosen)

    return start


async def test_what_one_replica_stored_every_other_serves(start_replica: Replica) -> None:
    one, other = await start_replica("one"), await start_replica("other")
    async with held_job(one) as (worker, held):
        _, stored = await put(one, held)
        assert stored["replica"] == one.url
        await worker.finish(held, {"outputs": [{"node_id": "2", "kind": "image", **stored}]})
    path = f"/api/jobs/{held.job_id}/outputs/{stored['name']}"
    here, body = await fetch(one, path)
    there, same = await fetch(other, path)
    assert (there.status, same) == (200, body)
    told = ("Content-Type", "Content-Disposition", "Content-Length", "ETag", "Content-Security-Policy")
    assert [there.headers[name] for name in told] == [here.headers[name] for name in told]
    part, some = await fetch(other, path, Range="bytes=5-9")
    assert (part.status, some, part.headers["Content-Range"]) == (206, PNG[5:10], f"bytes 5-9/{len(PNG)}")
    assert (await fetch(other, path, **{"If-None-Match": there.headers["ETag"]}))[0].status == 304
    assert (await fetch(other, f"/api/jobs/{held.job_id}/outputs/by-node/2/0"))[1] == PNG
    _, record = await other.json("GET", f"/api/jobs/{held.job_id}")
    assert not {"replica", "key"} & record["result"]["outputs"][0].keys()
    assert (await fetch(other, record["result"]["outputs"][0]["url"]))[1] == PNG
    _, archive = await fetch(other, f"/api/jobs/{held.job_id}/outputs.zip")
    assert zipfile.ZipFile(io.BytesIO(archive)).read("cat.png") == PNG


async def test_input_files_are_found_at_every_replica(start_replica: Replica) -> None:
    one, other = await start_replica("one"), await start_replica("other")
    path = f"/api/assets/{blake3(PNG).hexdigest()}"
    assert (await fetch(other, path))[0].status == 404
    assert (await one.json("PUT", f"{path}?filename=cat.png", data=PNG))[0] == 201
    assert (await fetch(other, path))[1] == PNG
    async with held_job(one) as (_, held):
        ticket = {"Authorization": f"Lease {held.job_id}.{held.attempt}.{held.token}"}
        assert (await fetch(other, path, **ticket))[1] == PNG


async def test_a_result_may_be_reported_to_another_replica_than_its_files(start_replica: Replica) -> None:
    one, other = await start_replica("one"), await start_replica("other")
    async with held_job(one) as (_, held):
        _, stored = await put(one, held)
        result = {"outputs": [{"node_id": "2", "key": stored["key"]}]}
        checked = await checked_result(other.server.app[STORE], "default", held.job_id, 1, result)
    assert (checked["outputs"][0]["size"], checked["outputs"][0]["name"]) == (len(PNG), "1-0.png")


async def test_a_replica_that_is_down_is_said_to_be(start_replica: Replica, valkey_url: str) -> None:
    one, other = await start_replica("one"), await start_replica("other")
    async with held_job(one) as (worker, held):
        _, stored = await put(one, held)
        await worker.finish(held, {"outputs": [{"node_id": "2", "kind": "image", **stored}]})
    path = f"/api/jobs/{held.job_id}/outputs/{stored['name']}"
    assert (await other.json("GET", f"/api/jobs/{held.job_id}/outputs/1-7.png"))[0] == 404
    await one.server.close()
    assert (await other.json("GET", path))[0] == 503, "it is still in the list, and does not answer"
    with redis.Redis.from_url(valkey_url) as client:  # 15 s later
        assert client.zrem(f"{other.queue.prefix}replicas", one.url) == 1
    status, body = await other.json("GET", path)
    assert (status, body["code"]) == (503, "unavailable")
    assert "replica" in body["error"]
    assert (await other.json("GET", "/api/jobs/nothing/outputs/1-0.png"))[0] == 404


async def test_reading_goes_on_after_a_broken_connection(start_replica: Replica) -> None:
    content = os.urandom(12_000_000)
    port = free_port()
    async with proxy(port, resp=False) as way:
        one = await start_replica("one", port=port, replica_url=f"http://127.0.0.1:{way.port}")
        other = await start_replica("other")
        async with held_job(one) as (_, held):
            assert (await put(one, held, data=io.BytesIO(content), name="x.bin"))[0] == 201
        got = bytearray()
        async with other.http.get(f"{other.url}/api/jobs/{held.job_id}/outputs/1-0.bin") as answer:
            assert answer.status == 200
            async for piece in answer.content.iter_chunked(1 << 16):
                if not got:
                    way.cut()
                got += piece
        assert way.connections > 1
        assert bytes(got) == content


async def test_who_reads_slowly_keeps_nobody_from_files_elsewhere(start_replica: Replica) -> None:
    one, other = await start_replica("one"), await start_replica("other")
    async with held_job(one) as (_, held):
        assert (await put(one, held, data=io.BytesIO(bytes(4_000_000)), name="x.bin"))[0] == 201
    path = f"/api/jobs/{held.job_id}/outputs/1-0.bin"
    async with contextlib.AsyncExitStack() as slow:
        for _ in range(100):  # as many connections as an HTTP client commonly has
            reader = await slow.enter_async_context(beginning(other, path))
            assert b" 200 " in await reader.readline()
        async with asyncio.timeout(PATIENCE_S):
            part, some = await fetch(other, path, Range="bytes=5-9")
        assert (part.status, some) == (206, bytes(5))


@contextlib.asynccontextmanager
async def beginning(broker: Broker, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """A download of which little is taken."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", broker.server.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        yield reader
    finally:
        writer.transport.abort()


async def test_only_a_replica_s_own_signature_opens_the_way_between_them(start_replica: Replica) -> None:
    one = await start_replica("one")
    async with held_job(one) as (_, held):
        await put(one, held)
        path = f"/internal/files/outputs/default/{held.job_id}/1/0"
        right = UrlSigner(Secrets([SECRET]), purpose=REPLICAS)
        assert (await fetch(one, right.sign(path, "")))[1] == PNG
        assert (await fetch(one, right.sign(path, ""), "DELETE"))[0].status == 403
        assert (await fetch(one, right.sign(path.replace("/1/0", "/1/1"), "")))[0].status == 404
        assert (await fetch(one, right.sign("/internal/files/secret/x", "")))[0].status == 404
        assert (await fetch(one, right.sign(path, "", age_s=-1)))[0].status == 403
        signed = urlsplit(right.sign(path, ""))
        assert (await fetch(one, f"{path}x?{signed.query}"))[0].status == 403
        assert (await fetch(one, one.server.app[SIGNER].sign(path, "default")))[0].status == 403
        other = UrlSigner(Secrets(["another secret, somebody else's"]), purpose=REPLICAS)
        assert (await fetch(one, other.sign(path, "")))[0].status == 403
        assert (await fetch(one, path))[0].status == 403
        for hostile in ("../../secret", "..%2f..%2fsecret", "default/~x"):
            assert (await fetch(one, right.sign(f"/internal/files/outputs/{hostile}", "")))[0].status in (403, 404)


async def test_files_are_removed_at_every_replica(start_replica: Replica, tmp_path: Path) -> None:
    one, other = await start_replica("one"), await start_replica("other")
    async with held_job(one) as (_, held):
        await put(one, held)
        await put(other, held, number=1)
    store = other.server.app[STORE]
    assert isinstance(store, ReplicatedStore)
    await store.delete_everywhere(f"default/{held.job_id}")
    left = await asyncio.to_thread(lambda: [p for p in tmp_path.rglob("objects/**/*") if p.is_file()])
    assert left == []
