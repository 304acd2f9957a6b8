"""Every route, by every kind of credential, for own and others' things: enumerated, so that none can be forgotten."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from blake3 import blake3
from redis import Redis

from tests.access.conftest import Guarded, bearer, handshake
from tests.api.conftest import GRAPH as WORKFLOW
from tests.api.conftest import submit
from tests.support.dump import dump
from tests.support.servers import RedisServer
from tests.support.simulated import Held

SCOPES = ("submit", "read", "worker", "admin")
PUBLIC = {"/health", "/health/live", "/login", "/static"}
ANY = "any"

# What each route asks for (operator: read and submit together). A route that is not here fails: say who may use it.
NEEDS = {
    ("POST", "/api/jobs"): "submit",
    ("GET", "/api/jobs"): "read",
    ("GET", "/api/jobs/{job_id}"): "read",
    ("DELETE", "/api/jobs/{job_id}"): "submit",
    ("POST", "/api/jobs/{job_id}/cancel"): "submit",
    ("POST", "/api/jobs/{job_id}/retry"): "submit",
    ("POST", "/api/jobs/{job_id}/priority"): "submit",
    ("GET", "/api/jobs/{job_id}/events"): "read",
    ("GET", "/api/jobs/{job_id}/preview"): "read",
    ("GET", "/api/jobs/{job_id}/outputs/{name}"): "read",
    ("GET", "/api/jobs/{job_id}/outputs.zip"): "read",
    ("GET", "/api/jobs/{job_id}/outputs/by-node/{node_id}/{index}"): "read",
    ("GET", "/api/jobs/{job_id}/webhooks"): "read",
    ("POST", "/api/jobs/{job_id}/webhooks/redeliver"): "submit",
    ("GET", "/api/webhooks/secret"): "submit",
    ("POST", "/api/webhooks/secret/rotate"): "submit",
    ("GET", "/api/dead"): "read",
    ("POST", "/api/dead/retry"): "submit",
    ("GET", "/api/groups/{group}"): "read",
    ("POST", "/api/groups/{group}/cancel"): "submit",
    ("GET", "/api/workers"): "read",
    ("GET", "/api/workers/{worker_id}"): "read",
    ("POST", "/api/workers/{worker_id}/pause"): "admin",
    ("POST", "/api/workers/{worker_id}/resume"): "admin",
    ("POST", "/api/workers/{worker_id}/drain"): "admin",
    ("POST", "/api/workers/{worker_id}/gone"): "worker",
    ("POST", "/api/pause"): "submit",
    ("POST", "/api/resume"): "submit",
    ("PUT", "/api/assets/{hash}"): "submit",
    ("GET", "/api/assets/{hash}"): "read",
    ("POST", "/api/assets"): "submit",
    ("GET", "/api/templates"): "read",
    ("GET", "/api/templates/{template}"): "read",
    ("PUT", "/api/templates/{template}"): "submit",
    ("DELETE", "/api/templates/{template}"): "submit",
    ("POST", "/api/templates/{template}/test"): "read",
    ("GET", "/api/keys"): "admin",
    ("POST", "/api/keys"): "admin",
    ("DELETE", "/api/keys/{key_id}"): "admin",
    ("POST", "/api/keys/{key_id}/rotate"): "admin",
    ("GET", "/api/users"): "admin",
    ("POST", "/api/users"): "admin",
    ("DELETE", "/api/users/{user}"): "admin",
    ("POST", "/api/users/{user}/password"): "admin",
    ("GET", "/api/tenants"): "admin",
    ("GET", "/api/tenants/{tenant}"): "read",
    ("PUT", "/api/tenants/{tenant}"): "admin",
    ("GET", "/api/audit"): "admin",
    ("POST", "/api/tickets"): ANY,
    ("GET", "/stats"): "read",
    ("GET", "/metrics"): "read",
    ("GET", "/openapi.json"): ANY,
    ("GET", "/"): "read",
    ("GET", "/workers"): "read",
    ("GET", "/workers/{worker_id}"): "read",
    ("GET", "/timeline"): "read",
    ("GET", "/failures"): "read",
    ("GET", "/gallery"): "read",
    ("GET", "/models"): "read",
    ("GET", "/metrics-view"): "read",
    ("GET", "/admin"): "admin",
    ("GET", "/help"): "read",
    ("GET", "/style"): "read",
    ("POST", "/ui/failures/{signature}/retry"): "operator",
    ("POST", "/ui/keys"): "admin",
    ("POST", "/ui/keys/{key_id}/revoke"): "admin",
    ("POST", "/ui/users"): "admin",
    ("POST", "/ui/users/{user}/remove"): "admin",
    ("POST", "/ui/tenants/{tenant}/limits"): "admin",
    ("GET", "/queue"): "read",
    ("GET", "/jobs"): "read",
    ("GET", "/jobs/bulk"): "operator",
    ("GET", "/jobs/{job_id}"): "read",
    ("POST", "/ui/jobs/{job_id}/cancel"): "operator",
    ("POST", "/ui/jobs/{job_id}/retry"): "operator",
    ("POST", "/ui/jobs/{job_id}/elsewhere"): "operator",
    ("POST", "/ui/jobs/{job_id}/front"): "operator",
    ("POST", "/ui/jobs/{job_id}/priority"): "operator",
    ("POST", "/ui/jobs/{job_id}/raise"): "operator",
    ("POST", "/ui/jobs/{job_id}/lower"): "operator",
    ("POST", "/ui/jobs/{job_id}/duplicate"): "operator",
    ("POST", "/ui/jobs/{job_id}/redeliver"): "operator",
    ("POST", "/ui/jobs/selected"): "operator",
    ("POST", "/ui/jobs/search"): "operator",
    ("GET", "/ui/events"): "read",
    ("GET", "/ui/preview/{job_id}"): "read",
    ("POST", "/ui/pause"): "admin",
    ("POST", "/ui/resume"): "admin",
    ("POST", "/ui/theme"): "read",
    ("POST", "/ui/workers/{worker_id}/pause"): "admin",
    ("POST", "/ui/workers/{worker_id}/resume"): "admin",
    ("POST", "/ui/workers/{worker_id}/drain"): "admin",
    ("POST", "/logout"): ANY,
    ("GET", "/ws"): ANY,
    ("GET", "/ws/client/{client_id}"): ANY,
    ("GET", "/ws/monitor/{monitor_id}"): "read",
    ("GET", "/ws/worker"): "worker",
    ("GET", "/ws/worker/{worker_id}"): "worker",
}
WITH_QUERY = {"/ui/events": "/ui/events?page=fleet", "/ui/users/{user}/remove": "/ui/users/{leaver}/remove"}
"""Addresses that say nothing without one."""
BETWEEN_REPLICAS = "/internal/files/{area}/{key}"
LEASE_ONLY = "/api/jobs/{job_id}/outputs/{attempt}/{slash}{number}/{name}"
GROUP = "g"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def routes(app: web.Application) -> set[tuple[str, str]]:
    """Method and path of every route; HEAD is GET's."""
    found = {(r.method, r.resource.canonical) for r in app.router.routes() if r.resource is not None}
    return {(method, path) for method, path in found if method != "HEAD"}


@dataclass
class Things:
    """What a tenant has: a job of each kind, an asset, a group; and names that fit into paths."""

    job: str
    asset: bytes
    fill: Callable[[str], str]


async def things(guarded: Guarded, tenant: str) -> Things:
    """A completed job with an output in a group, an input file, a worker, a key that may go."""
    key = await guarded.key("submit", "read", tenant=tenant)
    _, accepted = await guarded.ask(key, "POST", "/api/jobs", json=submit(group=GROUP))
    worker = guarded.broker.worker("sim-1")
    await worker.register()
    held = await worker.claim()
    assert held is not None
    assert held.job_id == accepted["job_id"]
    await worker.report(held, 1)
    stored = await upload(guarded, held)
    output = {
        "node_id": "2", "kind": "image", "filename": "x.png", "content_type": "image/png", "size": len(PNG),
        "hash": stored["hash"], "key": stored["key"], "name": stored["name"],
    }  # fmt: skip
    await worker.finish(held, {"outputs": [output], "timings": {}})
    asset = f"an input file of {tenant}".encode()
    digest = blake3(asset).hexdigest()
    assert (await guarded.ask(key, "PUT", f"/api/assets/{digest}", data=asset))[0] == 201
    template = {"workflow": WORKFLOW}
    assert (await guarded.ask(key, "PUT", f"/api/templates/{tenant}-1", json=template))[0] == 201
    spare = (await guarded.store.create("spare", ["read"]))[0].key_id
    for person in ("person", "leaver"):
        await guarded.store.create_user(f"{person}-{tenant}", tenant, "viewer", "a long password")
    names = {
        "job_id": held.job_id, "hash": digest, "group": GROUP, "worker_id": "sim-1", "key_id": spare,
        "area": "outputs", "key": "own/x/1/0",
        "name": stored["name"], "user": f"person-{tenant}", "leaver": f"leaver-{tenant}",
        "signature": "0" * 16, "tenant": tenant,
        "node_id": "2", "index": "0", "client_id": "c", "monitor_id": "m",
        "template": f"{tenant}-1",
    }  # fmt: skip
    return Things(held.job_id, asset, lambda path: path.format(**names))


async def upload(guarded: Guarded, held: Held) -> dict[str, Any]:
    path = f"/api/jobs/{held.job_id}/outputs/{held.attempt}/0/x.png"
    headers = {"Authorization": f"Lease {held.job_id}.{held.attempt}.{held.token}"}
    status, stored = await guarded.broker.json("PUT", path, data=PNG, headers=headers)
    assert status == 201, "a lease is all that an upload needs"
    return dict(stored)


async def status_of(guarded: Guarded, method: str, path: str, key: str | None, **options: Any) -> int:
    """The status of a request with a body that any message takes, or of an upgrade."""
    headers = {**(bearer(key) if key else {}), **options.pop("headers", {})}
    if path.startswith("/ws"):
        return await handshake(guarded.broker, path, headers=headers)
    body: dict[str, Any] = {} if method == "GET" or "data" in options else {"json": {"front": True, "scope": "tenant"}}
    url = guarded.broker.url + path
    async with guarded.broker.http.request(
        method, url, headers=headers, allow_redirects=False, **body, **options
    ) as response:
        return response.status


def test_every_route_says_who_may_use_it(guarded: Guarded) -> None:
    found = {(m, p) for m, p in routes(guarded.broker.server.app) if p not in PUBLIC | {LEASE_ONLY, BETWEEN_REPLICAS}}
    assert found == set(NEEDS)


async def test_without_a_valid_credential_nothing_answers(guarded: Guarded) -> None:
    """Whatever the router has, also what no table knows yet."""
    own = await things(guarded, "own")
    key = await guarded.key(*SCOPES)
    bad = {
        "none": None,
        "unknown": "emq_" + "0" * 16 + "_" + "A" * 43,
        "another secret": key[:-4] + ("AAAA" if key[-4:] != "AAAA" else "BBBB"),
        "no key at all": "x",
        "empty": " ",
    }
    app = guarded.broker.server.app
    for method, path in sorted(routes(app)):
        if path in PUBLIC or path == LEASE_ONLY:
            continue
        address = own.fill(path)
        for what, credential in bad.items():
            assert await status_of(guarded, method, address, credential) == 401, f"{method} {path} with {what}"
        assert await status_of(guarded, method, address, None, headers={"Authorization": f"Basic {key}"}) == 401
        assert await status_of(guarded, method, f"{address}?key={key}", None) == 400, f"{method} {path}?key="
        assert await status_of(guarded, method, f"{address}?x=Bearer%20{key}", key) == 400, f"{method} {path}?x="
    for path in ("/health", "/health/live", "/login", "/static/emq.css"):
        assert await status_of(guarded, "GET", path, None) == 200
    upload = f"/api/jobs/{own.job}/outputs/1/0/x.png"
    assert await status_of(guarded, "PUT", upload, None) == 401
    assert await status_of(guarded, "PUT", upload, key) == 401, "an upload needs the lease, a key is none"
    assert await status_of(guarded, "GET", "/nowhere", None) == 401, "what there is is nobody's business"


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_scope_opens_its_routes_and_no_other(guarded: Guarded, scope: str) -> None:
    """For what is its tenant's; what is another tenant's is not there, also for an administrator."""
    own, foreign = await things(guarded, "own"), await things(guarded, "foreign")
    key = await guarded.key(scope)
    for (method, path), needed in sorted(NEEDS.items(), key=lambda item: (item[0][0] == "DELETE", item)):
        may = needed in (ANY, scope) or scope == "admin"
        body: dict[str, Any] = {"data": own.asset} if "/assets/" in path and method == "PUT" else {}
        if (method, path) == ("PUT", "/api/templates/{template}"):
            body = {"data": json.dumps({"workflow": WORKFLOW})}
        address = own.fill(WITH_QUERY.get(path, path))
        status = await status_of(guarded, method, address, key, **body)
        if not may:
            assert status == 403, f"{method} {path} with {scope}"
            continue
        assert status < 500, f"{method} {path} with {scope}"
        assert status not in (401, 403, 404), f"{method} {path} with {scope}: {status}"
        if scope == "admin" and path.startswith(("/ui/", "/jobs/")):
            continue  # an administrator's pages show everybody's
        if (
            "{job_id}" in path
            or ("{template}" in path and method != "PUT")
            or (method, path) == ("GET", "/api/assets/{hash}")
        ):
            status = await status_of(guarded, method, foreign.fill(path), key)
            assert status == 404, f"{method} {path} of another tenant"


NO_CHANGE = re.compile(r"^(access:\{keys\}:(tb:|whsec:|used)|\{[^}]*\}:(config|meta|watch:|history))")
"""What passes by itself, and what is made by the first look: a tenant's webhook secret, a preview that is watched."""


async def test_looking_changes_nothing(guarded: Guarded, own_valkey: RedisServer) -> None:
    """Every GET, twice: whatever page or program asks, the queue and the access records stay as they were."""
    await guarded.instead(lease_s=3600)  # the worker that sends no heartbeat is not to be lost meanwhile
    own = await things(guarded, "own")
    key = await guarded.key("admin")
    looked = [path for method, path in NEEDS if method == "GET" and not path.startswith("/ws")]
    with Redis.from_url(own_valkey.url) as redis:
        before = dump(redis, "emq:")
        for path in looked * 2:
            status = await status_of(guarded, "GET", own.fill(WITH_QUERY.get(path, path)), key)
            assert status < 400, f"{path}: {status}"
        changed = before.differences(dump(redis, "emq:"))
    assert [line for line in changed if not NO_CHANGE.match(line)] == []


async def test_no_change_comes_from_another_site(guarded: Guarded) -> None:
    """Whatever a page elsewhere can make a browser send, with whatever credential: a form, a text, a socket."""
    own = await things(guarded, "own")
    key = await guarded.key("admin")
    foreign = ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"})
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json")
    for method, path in NEEDS:
        if method == "GET" and not path.startswith("/ws"):
            continue
        for site in foreign if not path.startswith("/ws") else foreign[:2]:
            for kind in kinds:
                headers = {**site, "Content-Type": kind}
                status = await status_of(guarded, method, own.fill(path), key, headers=headers, data=b"{}")
                assert status == 403, f"{method} {path} from {site}"
