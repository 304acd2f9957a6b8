"""A revoked key ends what it has opened, on every replica."""

from __future__ import annotations

import asyncio
import contextlib
import time

import aiohttp

from tests.access.conftest import Guarded, bearer
from tests.api.conftest import submit
from tests.support.access import session_of
from tests.support.gateway import GatewayWorker, capabilities
from tests.support.waiting import wait_until

CLOSED = {aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING}


async def test_revoking_closes_sockets_and_streams_on_two_replicas(guarded: Guarded) -> None:
    """Of clients, monitors, workers, sessions, tickets and event streams; another key's stay."""
    await guarded.another()
    key, other = await guarded.key("admin"), await guarded.key("submit", "read")
    job = (await guarded.ask(key, "POST", "/api/jobs", json=submit()))[1]["job_id"]
    async with contextlib.AsyncExitStack() as stack:
        opened: list[aiohttp.ClientWebSocketResponse] = []
        streams: list[aiohttp.ClientResponse] = []
        for broker in guarded.brokers:
            for path in ("/ws", "/ws/client/c", "/ws/monitor/m", "/ws/worker"):
                opened.append((await stack.enter_async_context(broker.client(path, headers=bearer(key)))).ws)
            session = {**await session_of(broker, key), "Origin": broker.url}
            ticket = (await broker.json("POST", "/api/tickets", headers=bearer(key)))[1]["ticket"]
            offered = ("emq.v1", f"emq.bearer.{key}")
            for path, options in (("/ws", {"headers": session}), (f"/ws?ticket={ticket}", {}),
                                  ("/ws", {"protocols": offered})):  # fmt: skip
                opened.append((await stack.enter_async_context(broker.client(path, **options))).ws)
            events = broker.http.get(f"{broker.url}/api/jobs/{job}/events", headers=bearer(key))
            streams.append(await stack.enter_async_context(events))
        stay = [await stack.enter_async_context(guarded.client(other, broker)) for broker in guarded.brokers]
        silent = await stack.enter_async_context(guarded.broker.client(headers=bearer(key)))
        started = time.monotonic()
        await guarded.store.revoke(guarded.keys[0].key_id)
        async with asyncio.timeout(5):
            for ws in opened:
                assert await closing(ws) == 1008
            for stream in streams:
                await stream.read()
        assert time.monotonic() - started < 5
        del silent
        for client in stay:
            assert (await client.ask({"type": "list_jobs"}))["type"] == "job_list"


async def closing(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    """Read to the close frame; its code."""
    while (frame := await ws.receive()).type not in CLOSED:
        pass
    return ws.close_code if frame.type is not aiohttp.WSMsgType.CLOSE else int(frame.data)


async def test_a_client_that_takes_nothing_is_cut_off_too(guarded: Guarded) -> None:
    """It never answers the close frame."""
    key = await guarded.key("read")
    upgrade = (
        f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        f"Authorization: Bearer {key}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.broker.server.port)
    writer.write(upgrade.encode())
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    await guarded.store.revoke(guarded.keys[0].key_id)
    async with asyncio.timeout(5):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()


async def test_a_worker_behind_the_gateway_works_with_its_key_and_leaves_with_it(guarded: Guarded) -> None:
    key, client = await guarded.key("worker"), await guarded.key("submit", "read", tenant="another")
    job = (await guarded.ask(client, "POST", "/api/jobs", json=submit()))[1]["job_id"]
    async with guarded.broker.http.ws_connect(guarded.broker.url + "/ws/worker", headers=bearer(key)) as ws:
        worker = GatewayWorker(ws)
        await worker.ask("register_worker", worker_id="gw-1", capabilities=capabilities())
        given = await worker.ask("claim_job", worker_id="gw-1", claim_token="t")
        assert given["job_id"] == job, "workers serve every tenant"
        await guarded.store.revoke(guarded.keys[0].key_id)
        async with asyncio.timeout(5):
            assert await closing(ws) == 1008

    async def left() -> bool:
        status, shown = await guarded.ask(client, "GET", "/api/workers/gw-1")
        return (status, shown["status"]) == (200, "offline")

    await wait_until(left, what="the worker is offline, long before its lease ends")
