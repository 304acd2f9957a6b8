"""The socket itself: limits, who may connect, slow readers, the end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import socket
from functools import partial
from typing import Any

import aiohttp
import pytest

from broker.api import heartbeat, sending, websocket
from broker.api.outbox import HIGH_BYTES, Outbox
from broker.api.services import SERVICES
from tests.api.conftest import GRAPH, Broker, Start, submit
from tests.support.processes import idle_s
from tests.support.waiting import PATIENCE_S, wait_until


async def test_a_message_over_the_limit_closes_with_1009(start_broker: Start) -> None:
    broker = await start_broker(max_message_mb=0.25)
    async with broker.client() as client:
        text = json.dumps(submit(metadata="x"))
        await client.send(text + " " * (256 * 1024 - len(text)))
        assert (await client.next())["type"] == "job_accepted", "exactly the limit is accepted"
    async with broker.client() as client:
        await client.send(text + " " * (256 * 1024 - len(text) + 1))
        frame = await client.ws.receive(PATIENCE_S)
        assert (frame.type, client.ws.close_code) == (aiohttp.WSMsgType.CLOSE, 1009)


async def test_the_default_limit_is_16_mib(broker: Broker) -> None:
    async with broker.client() as client:
        await client.send(json.dumps({"type": "request_stats", "message_id": "big", "x": "y" * (16 * 2**20 - 200)}))
        assert (await client.next())["type"] == "response_stats"
        await client.send(" " * (17 * 2**20))
        await client.ws.receive(PATIENCE_S)
        assert client.ws.close_code == 1009


@pytest.mark.parametrize("extra", [{}, {"priority": "wrong"}, {"payload": {"blob": "x" * 1_100_000}}, {"job_type": 5}])
async def test_a_payload_over_the_limit_is_told_before_anything_else(broker: Broker, extra: dict[str, Any]) -> None:
    async with broker.client() as client:
        graph = {**GRAPH, "3": {"class_type": "Text", "inputs": {"text": "x" * (1024 * 1024)}}}
        message = {**submit(graph), "message_id": "m5", **extra}
        await client.send(message)
        answer = await client.next()
        assert (answer["code"], answer["message_id"]) == ("payload_too_large", "m5")
        assert (await client.ask(submit()))["type"] == "job_accepted"
        status, body = await broker.json("POST", "/api/jobs", data=io.BytesIO(json.dumps(message).encode()))
        assert (status, body["code"], body["message_id"]) == (413, "payload_too_large", "m5")


async def test_a_payload_just_under_the_limit_is_accepted(broker: Broker) -> None:
    async with broker.client() as client:
        graph = {**GRAPH, "3": {"class_type": "Text", "inputs": {"text": "x" * (1024 * 1024 - 500)}}}
        assert (await client.ask(submit(graph)))["type"] == "job_accepted"


async def test_a_body_over_the_message_limit_is_413(start_broker: Start) -> None:
    broker = await start_broker(max_message_mb=0.25)
    status, body = await broker.json("POST", "/api/jobs", data=b" " * 300_000)
    assert (status, body["code"]) == (413, "payload_too_large")


ORIGINS = [
    (None, True), ("own", True), ("http://evil.example", False), ("null", False), ("https://evil.example:443", False),
    ("http://app.example", True), ("HTTP://APP.example", True), ("http://app.example.evil.com", False),
    ("http://127.0.0.1:1", False), ("file://", False), ("", False),
]  # fmt: skip


@pytest.mark.parametrize(("origin", "allowed"), ORIGINS)
async def test_origins(start_broker: Start, origin: str | None, allowed: bool) -> None:
    broker = await start_broker(origins="http://app.example")
    headers = {} if origin is None else {"Origin": broker.url if origin == "own" else origin}
    for path in ("/ws", "/ws/monitor/m"):
        if allowed:
            async with broker.client(path, headers=headers) as client:
                assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"
        else:
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                async with broker.client(path, headers=headers):
                    pass
            assert refused.value.status == 403
    status, _ = await broker.json("POST", "/api/jobs", json=submit(), headers=headers)
    assert status == (201 if allowed else 403)


SITES = [("cross-site", 403), ("same-site", 403), ("same-origin", 201), ("none", 201)]


@pytest.mark.parametrize(("site", "status"), SITES)
async def test_posts_of_other_sites_are_refused(broker: Broker, site: str, status: int) -> None:
    found, _ = await broker.json("POST", "/api/jobs", json=submit(), headers={"Sec-Fetch-Site": site})
    assert found == status


async def test_a_rebound_name_is_refused_while_there_is_no_key(start_broker: Start) -> None:
    broker = await start_broker(public_url="http://queue.example")
    for host, status in (("evil.example", 403), ("localhost:1", 200), ("[::1]:1", 200), ("queue.example", 200)):
        found, _ = await broker.json("GET", "/stats", headers={"Host": host})
        assert found == status, host


async def test_messages_are_limited_and_the_socket_stays(broker: Broker) -> None:
    """A browser's socket may send 50 a second."""
    async with broker.client(headers={"Origin": broker.url}) as client:
        for _ in range(1000):  # many and cheap: also a slow machine answers them faster than 50 a second
            await client.send({"type": "unsubscribe_job", "job_id": "none"})
        answers = [await client.next() for _ in range(1000)]
        limited = [a for a in answers if a.get("code") == "rate_limited"]
        assert limited
        assert limited[0]["retry_after_s"] > 0

        async def served() -> bool:
            return bool((await client.ask({"type": "request_stats"}))["type"] == "response_stats")

        await wait_until(served, what="served again")


async def test_a_client_that_takes_nothing_is_cut_off(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "STALLED_S", 0.5)
    body = json.dumps({"type": "make_coffee", "message_id": "x" * 100}).encode()
    frame = bytes([0x81, 0x80 | 126]) + len(body).to_bytes(2, "big") + bytes(4) + body
    async with broker.raw_socket() as (_, writer):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        async def cut_off() -> bool:
            try:
                writer.write(frame * 200)
                async with asyncio.timeout(0.1):
                    await writer.drain()
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            return writer.transport.is_closing()

        await wait_until(cut_off, what="the broker cuts the connection")
    await wait_until(lambda: not broker.server.app[SERVICES].sockets, what="nothing of it is left")
    async with broker.client() as client:
        assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"


@pytest.mark.parametrize(
    "bad",
    [b"\xf1\x80aaaa", b"\x83\x80aaaa", b"\x81\xff\x7f" + b"\xff" * 7 + b"aaaa"],
    ids=["reserved bits", "unknown opcode", "2^63 bytes"],
)
async def test_a_broken_frame_ends_only_its_own_connection(broker: Broker, bad: bytes) -> None:
    async with broker.raw_socket() as (reader, writer):
        writer.write(bad)
        async with asyncio.timeout(PATIENCE_S):
            assert (await reader.read(2))[:1] in (b"\x88", b""), "a close frame, or the end"
    async with broker.client() as client:
        assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"


async def test_the_stop_is_quick_and_says_goodbye(start_broker: Start) -> None:
    """Sockets get 1001 and event streams end, in under a second, on a machine that has nothing else to do."""
    broker = await start_broker()
    sockets = [await broker.http.ws_connect(broker.url + "/ws") for _ in range(20)]
    status, job = await broker.json("POST", "/api/jobs", json=submit())
    assert status == 201
    for ws in sockets[:10]:
        await ws.send_json({"type": "subscribe_job", "job_id": job["job_id"]})
        await ws.receive_json()
    stream = await broker.http.get(f"{broker.url}/api/jobs/{job['job_id']}/events")
    readers = [asyncio.create_task(until_closed(ws)) for ws in sockets]
    began = idle_s()
    await broker.server.close()
    waited = idle_s() - began
    assert [await reader for reader in readers] == [1001] * 20
    await stream.read()
    assert waited < 1.0


async def until_closed(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    async for _ in ws:
        pass
    return ws.close_code


async def test_the_stop_does_not_wait_for_clients_that_do_not_answer(start_broker: Start) -> None:
    broker = await start_broker()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(5):
            await stack.enter_async_context(broker.raw_socket())
        began = idle_s()
        await broker.server.close()
        assert idle_s() - began < 1.0


async def test_newer_progress_takes_the_place_of_older_but_never_overtakes() -> None:
    box = Outbox()
    box.put_latest("progress", "a", "a 10")
    box.put("a processing again")
    box.put_latest("progress", "a", "a 20")
    box.put_latest("progress", "b", "b 5")
    assert [await box.get() for _ in range(3)] == ["a processing again", "a 20", "b 5"]
    assert len(box) == 0


async def test_previews_go_first_when_a_client_lags() -> None:
    box = Outbox()
    for n in range(20):
        box.put_preview(f"job{n}", b"x")
    assert len(box) == 8
    box.put("y" * (HIGH_BYTES + 1))
    box.put_preview("late", b"x")
    assert len(box) == 9
    waiting = asyncio.create_task(box.room())
    for _ in range(9):
        await box.get()
    await asyncio.wait_for(waiting, PATIENCE_S)


async def test_nobody_waits_for_a_client_that_takes_no_more() -> None:
    box = Outbox()
    box.put("y" * (HIGH_BYTES + 1))
    waiting = asyncio.create_task(box.room())
    await asyncio.sleep(0)
    assert not waiting.done()
    box.end()
    await asyncio.wait_for(waiting, PATIENCE_S)
    for put in (box.put, partial(box.put_latest, "progress", "a"), partial(box.put_preview, "a")):
        put("y" * (HIGH_BYTES + 1))
    assert len(box) == 0


async def test_a_client_that_lags_gets_everything_in_order_once_it_reads(broker: Broker) -> None:
    """What is sent at once, what waits for room on the connection and what is long do not overtake each other."""
    count, sent = 4_000, 0
    async with broker.client() as client:
        await client.ask(submit(subscribe=False, metadata="x" * 10_000))

        async def ask() -> None:
            nonlocal sent
            for number in range(count):
                kind = "list_jobs" if number % 100 == 0 else "make_coffee"
                await client.send({"type": kind, "message_id": f"{number} {'x' * 100}"})
                sent += 1

        asking = asyncio.create_task(ask())

        async def stuck() -> bool:
            before = sent
            await asyncio.sleep(0.3)
            return asking.done() or (0 < before == sent)

        await wait_until(stuck, what="the broker reads no more of one who takes nothing")
        answers = [await client.next() for _ in range(count)]
        await asking
    assert [int(answer["message_id"].split()[0]) for answer in answers] == list(range(count))
    assert {answer["type"] for answer in answers[::100]} <= {"job_list", "error"}


async def test_pipelined_messages_are_answered_in_order(broker: Broker) -> None:
    """Submits that wait together go to Redis together; each has its own answer, at its own place."""
    async with broker.client() as client:
        for n in range(300):
            kinds: list[dict[str, Any]] = [
                submit(message_id=str(n), metadata=n, subscribe=False),
                {"type": "submit_job", "message_id": str(n), "payload": {}},
                {"type": "request_job_status", "message_id": str(n), "job_id": "nope"},
                submit(message_id=str(n), dry_run=True),
            ]
            await client.send(kinds[0] if n % 20 < 16 else kinds[n % 20 - 16])
        answers = [await client.next() for _ in range(300)]
        assert [answer["message_id"] for answer in answers] == [str(n) for n in range(300)]
        codes = [answer.get("code") or answer["type"] for answer in answers[16:20]]
        assert codes == ["job_accepted", "invalid_workflow", "not_found", "job_accepted"]
        jobs = [answer["job_id"] for answer in answers if answer.get("job_id")]
        seen: list[int] = []
        cursor = None
        while True:
            page = await client.ask({"type": "list_jobs", "limit": 500, "cursor": cursor})
            seen += [job["metadata"] for job in page["jobs"]]
            if (cursor := page["next_cursor"]) is None:
                break
        assert seen == sorted(seen, reverse=True), "they queue in the order they were sent"
        assert len(seen) == len(jobs)


async def test_who_says_nothing_is_pinged_and_then_cut(start_broker: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not who answers the pings, nor who is in the middle of a long message and cannot."""
    monkeypatch.setattr(heartbeat, "VISIT_S", 0.9)
    broker = await start_broker()
    unfinished = bytes([0x81, 0x80 | 126]) + (60_000).to_bytes(2, "big") + bytes(4)
    async with broker.client() as client, broker.raw_socket() as (_, slow), broker.raw_socket() as (gone, _):
        slow.write(unfinished)
        answering = asyncio.ensure_future(client.next(60))

        async def talk() -> None:
            while True:
                slow.write(b" ")
                await asyncio.sleep(0.1)

        talking = asyncio.ensure_future(talk())
        assert await asyncio.wait_for(gone.read(), 60) == b"\x89\x00"
        talking.cancel()
        assert not slow.transport.is_closing()
        await client.send({"type": "request_stats"})
        assert (await answering)["type"] == "response_stats"


async def test_sockets_that_came_together_are_visited_one_behind_the_other() -> None:
    beat = heartbeat.Heartbeat()
    with contextlib.ExitStack() as stack:
        for _ in range(2 * heartbeat.SLICES):
            stack.enter_context(beat.watch(websocket.open_socket(1, ())))
        assert {len(sockets) for sockets in beat._slices} == {2}
    assert {len(sockets) for sockets in beat._slices} == {0}
