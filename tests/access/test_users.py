"""People: they log in with a password, have a role, and go with what they opened; attempts are counted everywhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from redis import Redis

from broker.access import users
from broker.access.credentials import CREDENTIALS
from broker.access.identity import Role, Scope, role_of
from broker.access.users import hashed, matches
from broker.errors import BadMessage, Conflict, NotFound
from tests.access.conftest import Guarded, bearer
from tests.api.conftest import Broker, submit
from tests.support.commands import emq_says
from tests.support.servers import RedisServer
from tests.support.waiting import wait_until

PASSWORD = "correct horse battery"


async def log_in(broker: Broker, user: str, password: str = PASSWORD, **headers: str) -> tuple[int, dict[str, str]]:
    """The status of a log-in, and the headers of its session or the time to wait."""
    form = {"user": user, "password": password}
    async with broker.http.post(broker.url + "/login", data=form, allow_redirects=False, headers=headers) as response:
        cookie = response.headers.get("Set-Cookie")
        return response.status, {"Cookie": cookie.partition(";")[0]} if cookie else dict(response.headers)


async def person(guarded: Guarded, name: str, role: str) -> None:
    await guarded.store.create_user(name, "own", role, PASSWORD)

    # Not by logging in: a fast machine would be through with its wrong log-ins before the broker looks again.
    ring = guarded.broker.server.app[CREDENTIALS].ring
    await wait_until(lambda: ring.user(name), what=f"the broker knows {name}")


@pytest.mark.parametrize(("role", "may"), [("viewer", 403), ("operator", 201), ("admin", 201)])
async def test_a_role_is_what_a_person_may_do(guarded: Guarded, role: str, may: int) -> None:
    await guarded.key("read")
    await person(guarded, "ada", role)
    status, session = await log_in(guarded.broker, "ada")
    assert status == 303
    own = {**session, "Origin": guarded.broker.url}
    assert (await guarded.broker.json("GET", "/stats", headers=own))[0] == 200
    assert (await guarded.broker.json("POST", "/api/jobs", json=submit(), headers=own))[0] == may
    assert (await guarded.broker.json("GET", "/api/keys", headers=own))[0] == (200 if role == "admin" else 403)
    other = await guarded.another()
    assert (await other.json("GET", "/stats", headers=session))[0] == 200, "at every broker"


def test_scopes_amount_to_a_role() -> None:
    roles = {
        (): Role.NONE, ("worker",): Role.NONE, ("submit",): Role.NONE, ("read",): Role.VIEWER,
        ("read", "submit"): Role.OPERATOR, ("admin",): Role.ADMIN,
    }  # fmt: skip
    for scopes, role in roles.items():
        assert role_of([Scope(scope) for scope in scopes]) is role


async def test_a_new_password_and_a_removal_end_what_was_opened(guarded: Guarded) -> None:
    await guarded.key("read")
    await person(guarded, "ada", "viewer")
    session = (await log_in(guarded.broker, "ada"))[1]
    for end in (guarded.store.set_password("ada", "another long one"), guarded.store.remove_user("ada")):
        async with guarded.broker.client(headers={**session, "Origin": guarded.broker.url}) as client:
            await end
            async with asyncio.timeout(5):
                assert (await client.ws.receive()).data == 1008
        assert (await guarded.broker.json("GET", "/stats", headers=session))[0] == 401
        session = (await log_in(guarded.broker, "ada", "another long one"))[1]
    assert "Cookie" not in session, "a removed person cannot log in"


async def test_only_a_slow_hash_of_a_password_is_stored(guarded: Guarded, own_valkey: RedisServer) -> None:
    await guarded.store.create_user("ada", "own", "viewer", PASSWORD)
    with Redis.from_url(own_valkey.url) as redis:
        stored = redis.hget("emq:access:{keys}:user:ada", "password")
    assert stored is not None
    assert stored.startswith(b"scrypt$32768$8$3$")
    filed = b"".join(file.read_bytes() for file in own_valkey.folder.rglob("*") if file.is_file())
    assert PASSWORD.encode() not in filed
    assert matches(PASSWORD, stored.decode())
    assert not matches(PASSWORD + "x", stored.decode())
    assert not matches(PASSWORD, "")
    assert hashed(PASSWORD) != stored.decode(), "salted"
    with pytest.raises(Conflict):
        await guarded.store.create_user("ada", "own", "viewer", PASSWORD)
    for bad in ({"name": "a b"}, {"role": "root"}, {"password": "short"}, {"tenant": ""}):
        with pytest.raises(BadMessage):
            await guarded.store.create_user(
                **{"name": "x", "tenant": "own", "role": "viewer", "password": PASSWORD, **bad}
            )
    with pytest.raises(NotFound):
        await guarded.store.remove_user("nobody")


async def test_wrong_log_ins_are_bounded_at_all_replicas_together(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "_N", 2**4)  # one more is allowed every 12 s, and a slow machine needs them for six
    await guarded.key("read")
    await person(guarded, "ada", "viewer")
    brokers = [guarded.broker, await guarded.another()]
    codes = [(await log_in(brokers[n % 2], "ada", "wrong password"))[0] for n in range(6)]
    assert codes == [401] * 5 + [429]
    status, headers = await log_in(brokers[1], "ada")
    assert status == 429, "the right password neither, by then"
    assert 0 < int(headers["Retry-After"]) <= 60
    assert (await log_in(brokers[0], "ben", "wrong password"))[0] == 401, "another name is counted by itself"


async def test_wrong_keys_from_one_address_are_bounded(guarded: Guarded) -> None:
    key = await guarded.key("read")
    broker = await guarded.another(auth_failures_per_min=5.0, trusted_proxies="127.0.0.0/8")
    await guarded.honoured(broker, key)
    wrong = {**bearer("emq_" + "0" * 16 + "_" + "A" * 43), "X-Forwarded-For": "6.6.6.6, 192.0.2.7"}
    answers = [await broker.json("GET", "/stats", headers=wrong) for _ in range(7)]
    assert [status for status, _ in answers] == [401] * 5 + [429] * 2
    assert answers[-1][1]["code"] == "rate_limited"
    assert answers[-1][1]["retry_after_s"] > 0
    assert (await broker.json("GET", "/stats", headers={**wrong, **bearer(key)}))[0] == 200, "a right one goes on"
    assert (await broker.json("GET", "/stats", headers={**wrong, "X-Forwarded-For": "192.0.2.8"}))[0] == 401
    spoofed = {**wrong, "X-Forwarded-For": "192.0.2.99, 192.0.2.7"}
    assert (await broker.json("GET", "/stats", headers=spoofed))[0] == 429, "what the client itself wrote is no address"


async def test_only_a_known_proxy_says_where_a_request_comes_from(guarded: Guarded) -> None:
    key = await guarded.key("admin")
    for settings, ip in (({}, "127.0.0.1"), ({"trusted_proxies": "127.0.0.1"}, "203.0.113.9")):
        broker = await guarded.another(**settings)
        headers = {**bearer(key), "X-Forwarded-For": "1.2.3.4, 203.0.113.9"}
        await guarded.honoured(broker, key)
        assert (await broker.json("POST", "/api/keys", json={"tenant": "t", "scopes": ["read"]}, headers=headers))[
            0
        ] == 201
        entry = (await broker.json("GET", "/api/audit?limit=1", headers=headers))[1]["entries"][0]
        assert entry["ip"] == ip
    with pytest.raises(Exception, match="EMQ_TRUSTED_PROXIES"):
        await guarded.another(trusted_proxies="not an address")


async def test_who_did_what_is_written_down(guarded: Guarded) -> None:
    admin, own = await guarded.key("admin"), await guarded.key("submit", "read")
    made = (await guarded.ask(admin, "POST", "/api/keys", json={"tenant": "t", "scopes": ["read"]}))[1]["id"]
    job = (await guarded.ask(admin, "POST", "/api/jobs", json=submit()))[1]["job_id"]
    await guarded.ask(own, "POST", "/api/jobs", json=submit())
    await guarded.ask(admin, "POST", f"/api/jobs/{job}/cancel")
    await guarded.ask(admin, "DELETE", f"/api/keys/{made}")
    async with guarded.client(admin) as client:
        await client.ask({"type": "pause", "scope": "pool"})
        await client.ask({"type": "resume", "scope": "pool"})
    await log_in(guarded.broker, "mallory")
    await guarded.ask(own, "POST", "/api/pause", json={"scope": "pool"})
    _, page = await guarded.ask(admin, "GET", "/api/audit")
    seen = [(entry["who"], entry["what"], entry.get("target", "")) for entry in reversed(page["entries"])]
    who = guarded.keys[0].key_id
    assert seen == [
        (who, "POST /api/keys", made), (who, "POST /api/jobs/{job_id}/cancel", job),
        (who, "DELETE /api/keys/{key_id}", made), (who, "pause", "pool"), (who, "resume", "pool"),
        ("nobody", "failed log-in", "mallory"),
    ]  # fmt: skip
    assert {entry["ip"] for entry in page["entries"]} == {"127.0.0.1"}
    _, first = await guarded.ask(admin, "GET", "/api/audit?limit=2")
    _, second = await guarded.ask(admin, "GET", f"/api/audit?limit=2&before={first['next']}")
    assert [e["id"] for e in first["entries"] + second["entries"]] == [e["id"] for e in page["entries"][:4]]
    assert (await guarded.ask(own, "GET", "/api/audit"))[0] == 403


async def test_people_on_the_command_line(own_valkey: RedisServer, tmp_path: Path) -> None:
    where = ("--redis", own_valkey.url)
    out = await emq_says("users", "create", "ada", "--role", "operator", *where)
    password = out.splitlines()[-1]
    assert len(password) == 16
    assert "ben" in await emq_says(
        "users", "create", "ben", "--scopes", "read,submit", "--password-stdin", *where, stdin=PASSWORD
    )
    listed = await emq_says("users", "list", *where)
    assert listed.count("operator") == 2
    assert password not in listed


async def test_people_are_changed_on_the_command_line(guarded: Guarded, own_valkey: RedisServer) -> None:
    where = ("--redis", own_valkey.url)
    for name in ("ada", "ben"):
        await guarded.store.create_user(name, "own", "viewer", PASSWORD)
    drawn = (await emq_says("users", "password", "ada", *where)).splitlines()[-1]
    assert matches(drawn, (await guarded.store.user("ada")).password)
    await emq_says("users", "remove", "ben", *where)
    listed = await emq_says("users", "list", *where)
    assert ("ada" in listed, "ben" in listed) == (True, False)
    assert await emq_says("audit", *where) == "nothing\n"
