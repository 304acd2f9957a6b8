"""Each way to show a credential, and what none of them may do."""

from __future__ import annotations

import ast
import asyncio
import hashlib
import hmac
import io
import re
from pathlib import Path

import aiohttp
import pytest
from redis import Redis

from broker.access import keyring
from broker.access.credentials import CREDENTIALS
from broker.errors import Unauthorized
from broker.protocol.base import now_ms
from tests.access.conftest import Guarded, bearer, handshake
from tests.api.conftest import submit
from tests.support.access import log_in_with, session_of
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
HTML = {"Accept": "text/html"}


async def test_without_a_key_everybody_here_may_do_everything(guarded: Guarded) -> None:
    for path in ("/", "/stats", "/api/keys", "/api/workers"):
        assert (await guarded.broker.http.get(guarded.broker.url + path)).status == 200
    assert (await guarded.ask(None, "POST", "/api/jobs", json=submit()))[0] == 201
    assert await handshake(guarded.broker) == 101
    assert (await log_in_with(guarded.broker, "x"))[0] == 303
    assert (await guarded.ask(None, "GET", "/stats", headers={"Host": "evil.example"}))[0] == 403


async def test_the_first_key_closes_the_broker_within_a_second(guarded: Guarded) -> None:
    async with guarded.broker.client() as client:
        _, made = await guarded.ask(None, "POST", "/api/keys", json={"tenant": "a", "scopes": ["admin"]})
        async with asyncio.timeout(5):
            frame = await client.ws.receive()
        assert (frame.type, frame.data) == (aiohttp.WSMsgType.CLOSE, 1008), "an open socket had no credential"
    assert keyring.LOOK_S <= 0.5, "the rest of the second is for the work"
    assert (await guarded.ask(None, "GET", "/stats"))[0] == 401
    assert (await guarded.ask(made["key"], "GET", "/stats"))[0] == 200
    await guarded.store.revoke(made["id"])
    await guarded.honoured(guarded.broker, made["key"], 401)
    again = await guarded.another()
    assert (await again.json("GET", "/stats"))[0] == 401, "a broker that has had a key stays closed"


async def test_a_subprotocol_is_a_credential_and_only_emq_v1_is_answered(guarded: Guarded) -> None:
    key = await guarded.key("submit")
    offered = ("emq.v1", f"emq.bearer.{key}")
    for path in ("/ws", "/ws/client/c"):
        async with guarded.broker.client(path, protocols=offered) as client:
            assert client.ws.protocol == "emq.v1"
            assert (await client.ask(submit()))["type"] == "job_accepted"
    # a browser closes a socket whose answer names none of what it offered
    async with guarded.broker.client("/ws", protocols=offered[1:]) as client:
        assert client.ws.protocol == offered[1]
        assert (await client.ask(submit()))["type"] == "job_accepted"
    assert await handshake(guarded.broker, protocols=offered[::-1]) == 101
    assert await handshake(guarded.broker, protocols=["emq.v1"]) == 401
    assert await handshake(guarded.broker, protocols=["emq.v1", f"emq.bearer.{key}x"]) == 401
    assert await handshake(guarded.broker, "/ws/worker", protocols=offered) == 403
    worker = await guarded.key("worker")
    assert await handshake(guarded.broker, "/ws/worker", protocols=["emq.v1", f"emq.bearer.{worker}"]) == 101
    assert await handshake(guarded.broker, headers=bearer(key[:-1]), protocols=offered) == 401, "the header counts"


async def test_a_ticket_opens_one_connection_with_the_rights_of_its_maker(
    guarded: Guarded, own_valkey: RedisServer
) -> None:
    key = await guarded.key("read")
    status, made = await guarded.ask(key, "POST", "/api/tickets")
    assert (status, made["expires_s"]) == (201, 30)
    path = f"/ws?ticket={made['ticket']}"
    other = await guarded.another()
    async with other.client(path) as client:
        assert (await client.ask({"type": "list_jobs"}))["type"] == "job_list"
        assert (await client.ask(submit()))["code"] == "forbidden"
    assert [await handshake(broker, path) for broker in (other, guarded.broker)] == [401, 401], "once"
    assert await handshake(other, "/ws?ticket=") == 401
    made = (await guarded.ask(key, "POST", "/api/tickets"))[1]
    assert (await guarded.ask(None, "GET", f"/stats?ticket={made['ticket']}"))[0] == 401, "for connections only"
    with Redis.from_url(own_valkey.url) as redis:
        (name,) = redis.scan_iter("emq:access:*ticket:*")
        assert 0 < redis.ttl(name) <= 30
        assert made["ticket"].encode() not in name
    await guarded.store.revoke(guarded.keys[0].key_id)
    await guarded.honoured(other, key, 401)
    assert await handshake(other, f"/ws?ticket={made['ticket']}") == 401, "a ticket ends with its key"


async def test_an_event_stream_takes_a_ticket_too(guarded: Guarded) -> None:
    key = await guarded.key("submit", "read")
    job = (await guarded.ask(key, "POST", "/api/jobs", json=submit()))[1]["job_id"]
    made = (await guarded.ask(key, "POST", "/api/tickets"))[1]
    url = f"{guarded.broker.url}/api/jobs/{job}/events?ticket={made['ticket']}"
    async with guarded.broker.http.get(url) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")


async def test_a_key_in_a_url_is_refused_and_not_logged(guarded: Guarded, logged: io.StringIO) -> None:
    key = await guarded.key("admin")
    for query in (f"?key={key}", f"?token=Bearer+{key}", f"?{key}", f"?a=b&api_key={key.replace('_', '%5F')}"):
        for path in ("/ws", "/api/jobs", "/login", "/health"):
            status, body = await guarded.broker.json("GET", path + query, headers=bearer(key))
            assert (status, body["code"]) == (400, "bad_message")
            assert key not in str(body)
    assert "/api/jobs?" in logged.getvalue(), "requests are logged at this level"
    assert key[-43:] not in logged.getvalue()


async def test_a_foreign_origin_is_refused_whatever_key_it_brings(guarded: Guarded) -> None:
    key = await guarded.key("admin")
    own = {"Origin": guarded.broker.url}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert await handshake(guarded.broker, headers={**bearer(key), "Origin": origin}) == 403
    assert await handshake(guarded.broker, headers={**bearer(key), **own}) == 101
    session = await session_of(guarded.broker, key)
    for headers, status in ((own, 101), ({}, 403), ({"Origin": "null"}, 403)):
        assert await handshake(guarded.broker, headers={**session, **headers}) == status
    for headers, status in ((own, 201), ({"Sec-Fetch-Site": "same-origin"}, 201), ({}, 403),
                            ({"Sec-Fetch-Site": "cross-site"}, 403)):  # fmt: skip
        answer = await guarded.ask(None, "POST", "/api/jobs", json=submit(), headers={**session, **headers})
        assert answer[0] == status


async def test_a_person_logs_in_and_out(guarded: Guarded) -> None:
    broker = guarded.broker
    key = await guarded.key("read")
    async with broker.http.get(broker.url + "/", headers=HTML, allow_redirects=False) as response:
        assert (response.status, response.headers["Location"]) == (303, "/login")
    async with broker.http.get(broker.url + "/login") as response:
        page = await response.text()
        assert 'method="post"' in page
        assert "http-equiv" not in page, "a page that loads itself anew would lose what is typed"
    status, text = await log_in_with(broker, key)
    assert status == 303
    assert re.fullmatch(r"emq=[\w-]{43}; HttpOnly; Path=/; SameSite=Strict", str(text))
    session = {"Cookie": str(text).partition(";")[0]}
    async with broker.http.get(broker.url + "/", headers=session) as response:
        assert (response.status, "Log out" in await response.text()) == (200, True)
    other = await guarded.another()
    assert (await other.json("GET", "/stats", headers=session))[0] == 200, "a session counts at every broker"
    second = await log_in_with(broker, key, **session)
    assert second[1] != text, "a log-in has a new number always"
    assert (await broker.json("GET", "/stats", headers=session))[0] == 401, "and ends the one before"
    session = {"Cookie": str(second[1]).partition(";")[0]}
    own = {**session, "Origin": broker.url}
    async with broker.client(headers=own) as client:
        async with broker.http.post(broker.url + "/logout", headers=own, allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, "/login")
            assert "Max-Age=0" in response.headers["Set-Cookie"]
        async with asyncio.timeout(5):
            assert (await client.ws.receive()).data == 1008
    assert (await broker.json("GET", "/stats", headers=session))[0] == 401


async def test_the_cookie_is_secure_behind_https_and_there_is_none_in_the_clear(guarded: Guarded) -> None:
    key = await guarded.key("read")
    status, text = await log_in_with(guarded.broker, key, **{"X-Forwarded-Proto": "https", "Host": "emq.example"})
    assert status == 303
    assert re.fullmatch(r"__Host-emq=[\w-]{43}; HttpOnly; Path=/; SameSite=Strict; Secure", str(text))
    assert await log_in_with(guarded.broker, key, Host="emq.example") == (403, None)


@pytest.mark.parametrize("what", ["", "nonsense", "emq_" + "0" * 16 + "_" + "A" * 43])
async def test_a_log_in_without_a_valid_key_says_no_more(guarded: Guarded, what: str) -> None:
    await guarded.key("read")
    assert await log_in_with(guarded.broker, what) == (401, None)
    async with guarded.broker.http.post(guarded.broker.url + "/login", data=b"k" * 5000) as response:
        assert response.status == 413
    worker = await guarded.key("worker")
    assert await log_in_with(guarded.broker, worker) == (403, None)


async def test_the_secret_rests_nowhere(guarded: Guarded, own_valkey: RedisServer) -> None:
    """Neither in Redis' memory nor in its file; of a session and a ticket too."""
    key = await guarded.key("admin")
    secret = key.split("_", 2)[2]
    assert (await guarded.ask(key, "GET", "/stats"))[0] == 200
    session = (await session_of(guarded.broker, key))["Cookie"].partition("=")[2]
    ticket = (await guarded.ask(key, "POST", "/api/tickets"))[1]["ticket"]
    with Redis.from_url(own_valkey.url) as redis:
        dumped = b"".join(name + (redis.dump(name) or b"") for name in redis.scan_iter("*", count=1000))
        assert hashlib.sha256(key.split("_", 2)[2].encode()).hexdigest().encode() in dumped, "the hash is there"
    filed = b"".join(file.read_bytes() for file in own_valkey.folder.rglob("*") if file.is_file())
    for canary in (secret, key, session, ticket):
        assert canary.encode() not in dumped + filed


async def test_last_use_is_noted(guarded: Guarded) -> None:
    key = await guarded.key("admin")
    await guarded.ask(key, "GET", "/stats")
    await guarded.broker.server.close()
    used = (await guarded.store.get(guarded.keys[0].key_id)).used_at
    assert used is not None
    assert used >= guarded.keys[0].created_at


async def test_a_key_expires(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    lasting, short = await guarded.key("read"), await guarded.key("read", expires_s=600)
    async with guarded.client(short) as client:
        monkeypatch.setattr(keyring, "now_ms", lambda: now_ms() + 600_000)
        async with asyncio.timeout(5):
            assert (await client.ws.receive()).data == 1008
    assert (await guarded.ask(short, "GET", "/stats"))[0] == 401
    assert (await guarded.ask(lasting, "GET", "/stats"))[0] == 200


async def test_a_rotated_key_has_another_secret(guarded: Guarded) -> None:
    first = await guarded.key("read")
    key_id = guarded.keys[0].key_id
    _, second = await guarded.store.rotate(key_id, grace_s=600)
    await guarded.honoured(guarded.broker, second)
    assert (await guarded.ask(first, "GET", "/stats"))[0] == 200, "the old one has its grace"
    async with guarded.client(second) as client:
        _, third = await guarded.store.rotate(key_id)
        await guarded.honoured(guarded.broker, third)
        async with asyncio.timeout(5):
            assert (await client.ws.receive()).data == 1008, "what the old secret opened ends with it"
    assert [(await guarded.ask(key, "GET", "/stats"))[0] for key in (first, second, third)] == [401, 401, 200]
    await guarded.store.revoke(key_id)
    await guarded.honoured(guarded.broker, third, 401)


async def test_secrets_are_compared_in_constant_time() -> None:
    """No digest is compared by ``==``, and an unknown id meets the same comparison."""
    for file in (ROOT / "broker/access").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops):
                names = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
                names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                assert not names & {"digest", "old_digest", "secret", "text"}, ast.unparse(node)


async def test_an_unknown_id_takes_the_work_of_a_wrong_secret(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = await guarded.key("read")
    ring = guarded.broker.server.app[CREDENTIALS].ring
    work: list[tuple[str, str]] = []
    monkeypatch.setattr(hmac, "compare_digest", lambda *two: work.append(two) or two[0] == two[1])  # type: ignore[func-returns-value]
    told, done = set(), set()
    for wrong in (f"emq_{'0' * 16}_{'A' * 43}", key[:-4] + ("AAAA" if key[-4:] != "AAAA" else "BBBB")):
        work.clear()
        with pytest.raises(Unauthorized) as refused:
            ring.find(wrong)
        told.add(refused.value.message)
        done.add(tuple((len(mine), len(shown)) for mine, shown in work))
    assert (len(told), len(done)) == (1, 1)
    assert done.pop(), "they are compared at all"


async def test_keys_outlive_a_redis_that_goes_away(guarded: Guarded, own_valkey: RedisServer) -> None:
    key = await guarded.key("read")
    own_valkey.kill()
    assert (await guarded.ask(None, "GET", "/openapi.json"))[0] == 401
    assert (await guarded.ask(key, "GET", "/openapi.json"))[0] == 200
    own_valkey.start("--appendfsync", "always")
    _, made = await guarded.store.create("own", ["read"])

    async def honoured() -> bool:
        return (await guarded.ask(made, "GET", "/openapi.json"))[0] == 200

    await wait_until(honoured, 10, "a key made after Redis came back counts")
