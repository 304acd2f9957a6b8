"""Two broker processes on one Redis behind Debian's NGINX with ``deploy/nginx.conf``."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import expect

from broker.queue.connection import Connection
from broker.queue.queue import Queue
from broker.settings import Settings
from comfyui_emq_node.carrier import Carrier, Errand
from tests.api.conftest import NODES, submit
from tests.support.browser import browser_page
from tests.support.commands import Replica, emq, serving
from tests.support.jobs import profile
from tests.support.nginx import Nginx, nginx
from tests.support.servers import free_port
from tests.support.simulated import SimulatedWorker
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
CONF = (ROOT / "deploy/nginx.conf").read_text()
PAGE_MS = 30_000
# Each starts several brokers, some ten of them.
pytestmark = pytest.mark.timeout(300)


@dataclass
class Site:
    """NGINX, its two replicas, and the pool behind them."""

    nginx: Nginx
    replicas: list[Replica]
    http: aiohttp.ClientSession
    queue: Queue

    @property
    def url(self) -> str:
        return self.nginx.url

    async def json(self, method: str, url: str, **options: Any) -> tuple[int, Any]:
        async with self.http.request(method, url, **options) as response:
            return response.status, await response.json()


@pytest.fixture
async def site(valkey_url: str, pool: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with contextlib.AsyncExitStack() as stack:
        ports = [free_port(), free_port()]
        site_nginx = await stack.enter_async_context(
            nginx("nginx.conf", tmp_path / "nginx", [f"127.0.0.1:{port}" for port in ports])
        )
        # A lease that no busy machine uses up while a replica starts: nobody sends heartbeats beside.
        env = {"EMQ_LEASE_S": "120"}
        env |= {"EMQ_POOL": pool, "EMQ_PUBLIC_URL": f"{site_nginx.url}/queue", "EMQ_TRUSTED_PROXIES": "127.0.0.1"}
        options = ("--data", str(tmp_path / "data"), "--redis", valkey_url)
        replicas = [Replica(port, options, env, stack) for port in ports]
        await asyncio.gather(*(replica.start() for replica in replicas))
        connection = Connection(valkey_url)
        stack.push_async_callback(connection.close)
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Site(site_nginx, replicas, http, Queue(connection, pool))


@dataclass
class Follower:
    """A client that listens to one job and comes back with the last event's id, like a real one."""

    site: Site
    job_id: str
    heard: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0

    @property
    def last(self) -> str | None:
        return self.heard[-1]["event_id"] if self.heard else None

    @property
    def ended(self) -> bool:
        return bool(self.heard) and self.heard[-1]["type"] == "complete_job"

    async def follow(self, once: Callable[[], Awaitable[None]]) -> None:
        """Connect again and again until the job's last event has come."""
        while not self.ended:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError, asyncio.TimeoutError):
                await once()
            await asyncio.sleep(0.05)

    async def by_socket(self) -> None:
        """One WebSocket, at the address of the deployment that EMQ replaces."""
        async with self.site.http.ws_connect(f"{self.site.url}/queue/ws", heartbeat=20) as ws:
            self.connections += 1
            await ws.send_json({"type": "subscribe_job", "job_id": self.job_id, "after": self.last})
            async for frame in ws:
                if frame.type is aiohttp.WSMsgType.TEXT and "event_id" in (message := json.loads(frame.data)):
                    self.heard.append(message)
                    if self.ended:
                        return

    async def by_stream(self) -> None:
        """One event stream."""
        headers = {"Last-Event-ID": self.last} if self.last else {}
        address = f"{self.site.url}/queue/api/jobs/{self.job_id}/events"
        async with self.site.http.get(
            address, headers=headers, timeout=aiohttp.ClientTimeout(sock_read=60)
        ) as response:
            if response.status != 200:
                return
            self.connections += 1
            async for line in response.content:
                if line.startswith(b"data:"):
                    self.heard.append(json.loads(line[5:]))


def logged(events: list[dict[str, Any]]) -> list[int]:
    """The numbers of the logged events (``<epoch>.n-0``), in the order in which they were heard."""
    pairs = [event["event_id"].rpartition(".")[2].split("-") for event in events if event["type"] != "reset"]
    return [int(n) for n, p in pairs if p == "0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["rolling restart", "kill -9"])
async def test_listeners_survive_the_end_of_either_replica(site: Site, number: int) -> None:
    """No event is lost, none comes twice, over sockets and streams; jobs are accepted all the time."""
    worker = SimulatedWorker(site.queue, profile=profile(nodes=NODES))
    await worker.register()
    status, accepted = await site.json("POST", site.replicas[0].url + "/api/jobs", json=submit())
    assert status == 201
    job = accepted["job_id"]
    sockets, streams = [Follower(site, job) for _ in range(4)], [Follower(site, job) for _ in range(4)]
    tasks = [asyncio.create_task(f.follow(f.by_socket)) for f in sockets]
    tasks += [asyncio.create_task(f.follow(f.by_stream)) for f in streams]
    followers = sockets + streams
    await wait_until(lambda: all(f.heard for f in followers), 30, "everybody hears the job")
    held = await worker.claim()
    assert held is not None
    for replica in site.replicas:
        await worker.report(held, 10 * held.reports)
        ending = asyncio.create_task(replica.end(number))
        for key in ("a", "b", "c"):
            await _submits(site, f"{replica.port}-{key}")
        await ending
        # Changes of state while one replica is away: a hand-back to wait, and the next claim.
        await worker.release(held)
        held = await worker.claim(job)
        assert held is not None
        await worker.report(held, 1)
        await replica.start()
    await worker.finish(held)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    (told,) = {event["event_id"] for follower in followers for event in follower.heard[-1:]}
    last = int(told.rpartition(".")[2].split("-")[0])
    for follower in followers:
        assert logged(follower.heard) == list(range(1, last + 1)), "each logged event once, in order"
        ids = [event["event_id"] for event in follower.heard]
        assert len(ids) == len(set(ids))
    assert sum(f.connections for f in followers) > len(followers), "some had to come again"


async def test_an_open_page_outlives_each_replica(site: Site) -> None:
    """In Chromium, never loaded again: what happens while one replica is away comes through the other."""
    worker = SimulatedWorker(site.queue, worker_id="gpu-7", profile=profile(nodes=NODES))
    await worker.register()
    await site.json("POST", site.url + "/api/jobs", json=submit())
    held = await worker.claim()
    assert held is not None
    faults: list[str] = []
    async with browser_page(faults) as page:
        await page.goto(site.url)
        await expect(page.locator("#live")).to_have_text("live", timeout=PAGE_MS)
        await page.evaluate("window.mark = 1")
        step = 0
        for replica in site.replicas:
            for number in (signal.SIGTERM, signal.SIGKILL):
                await replica.end(number)
                step += 1
                await worker.heartbeat()
                await worker.report(
                    held, 20 * step, node={"id": "3", "class_type": "KSampler", "value": step, "max": 9}
                )
                await expect(page.locator("article.gpu")).to_contain_text(f"KSampler {step}/9", timeout=PAGE_MS)
                await expect(page.locator("#live")).to_have_text("live", timeout=PAGE_MS)
                await replica.start()
        assert await page.evaluate("window.mark === 1")
    assert faults == []


async def _submits(site: Site, key: str) -> None:
    """A submit through NGINX, repeated with its key until it is answered."""
    last: object = None
    for _ in range(400):
        try:
            status, answer = await site.json("POST", site.url + "/api/jobs", json=submit(idempotency_key=key))
            if status in (200, 201):
                return
            assert (status, answer["code"]) == (503, "unavailable")
            last = answer
        except aiohttp.ClientError as error:
            last = error
        await asyncio.sleep(0.1)
    raise AssertionError(f"no replica took the job: {last!r}")


async def test_one_replica_takes_a_job_and_the_other_tells_its_events(site: Site) -> None:
    first, second = site.replicas
    _, accepted = await site.json("POST", first.url + "/api/jobs", json=submit())
    async with site.http.ws_connect(second.url + "/ws") as ws:
        await ws.send_json({"type": "subscribe_job", "job_id": accepted["job_id"]})
        assert (await ws.receive_json(timeout=10))["type"] == "subscription_confirmed"
        assert (await ws.receive_json(timeout=10))["status"] == "pending"
        await site.json("POST", f"{first.url}/api/jobs/{accepted['job_id']}/cancel")
        assert (await ws.receive_json(timeout=10))["status"] == "cancelled"


async def test_addresses_under_the_prefix_lead_back_to_it(site: Site, tmp_path: Path) -> None:
    """Links to files, ``Location`` and redirects, for who came in under ``/queue/``; files as the worker sends them."""
    worker = SimulatedWorker(site.queue, profile=profile(nodes=NODES))
    await worker.register()
    async with site.http.post(site.url + "/queue/api/jobs", json=submit()) as response:
        job = (await response.json())["job_id"]
        assert response.headers["Location"] == f"/queue/api/jobs/{job}"
    async with site.http.post(site.url + "/api/jobs", json=submit(idempotency_key="x")) as response:
        assert response.headers["Location"].startswith("/api/jobs/")
    held = await worker.claim(job)
    assert held is not None
    await worker.report(held, 1)
    lease = f"Lease {job}.{held.attempt}.{held.token}"
    address = f"{site.url}/queue/api/jobs/{job}/outputs/{held.attempt}/0/x.bin"
    big = bytes(range(256)) * 80_000  # 20 MB: more than a message may have, less than a file
    await asyncio.to_thread((tmp_path / "x.bin").write_bytes, big)
    carrier = Carrier()
    said = await asyncio.to_thread(carrier.put, Errand(str(tmp_path / "x.bin"), address, lease))
    carrier.close()
    assert said.get("status") == 201, said
    stored = said["answer"]
    output = {"node_id": "2", "kind": "file", "filename": "x.bin", "content_type": "application/octet-stream"}
    output |= {"hash": stored["hash"], "key": stored["key"], "name": stored["name"]}
    await worker.finish(held, {"outputs": [{**output, "size": len(big)}], "timings": {}})
    _, record = await site.json("GET", f"{site.url}/queue/api/jobs/{job}")
    (link,) = [one["url"] for one in record["result"]["outputs"]]
    assert link.startswith(f"{site.url}/queue/api/jobs/{job}/outputs/")
    for _ in range(4):  # whichever replica answers
        async with site.http.get(link) as response:
            assert response.status == 200
            assert await response.read() == big
    assert "s=" not in site.nginx.log(), "signatures stay out of the log"


async def test_refusals_and_headers(site: Site) -> None:
    """Sizes are the broker's, no arguments are logged, nobody learns the server's version, Prometheus asks brokers."""
    too_much = b"[" + b" " * (16 * 1024 * 1024) + b"]"
    for body, status in ((too_much, 413), (b"{", 400)):
        async with site.http.post(site.url + "/api/jobs", data=io.BytesIO(body)) as response:
            assert response.status == status
            assert (await response.json())["type"] == "error"
    async with site.http.get(site.url + "/api/jobs?cursor=canary&limit=1") as response:
        assert response.headers["Server"] == "nginx"
    assert (await site.json("GET", site.url + "/health"))[0] == 200
    async with site.http.get(site.url + "/metrics") as response:
        assert response.status == 404
    with contextlib.suppress(aiohttp.WSServerHandshakeError):
        async with site.http.ws_connect(site.url + "/ws?ticket=canary"):
            pass
    await wait_until(lambda: '"GET /ws"' in site.nginx.log(), 10, "the socket is logged")
    assert "canary" not in site.nginx.log()


async def test_one_address_has_its_limits(site: Site, tmp_path: Path) -> None:
    """Sockets and requests are bounded for each address that is not one of the operator's own."""
    upstream = [f"127.0.0.1:{replica.port}" for replica in site.replicas]
    edits = {"127.0.0.0/8    1;": "", "conn emq_sockets 100;": "conn emq_sockets 3;", "burst=200": "burst=5"}
    edits |= {"rate=50r/s": "rate=1r/s"}  # however long a busy machine takes for the requests, they are too many
    async with (
        nginx("nginx.conf", tmp_path / "strict", upstream, **edits) as strict,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(3):
            await stack.enter_async_context(site.http.ws_connect(strict.url + "/ws"))
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await stack.enter_async_context(site.http.ws_connect(strict.url + "/ws"))
        assert refused.value.status == 429
        answers = await asyncio.gather(*(site.json("GET", strict.url + "/health") for _ in range(60)))
        codes = {(status, body.get("code")) for status, body in answers}
        assert (429, "rate_limited") in codes
        assert (200, None) in codes


async def test_without_any_replica_the_answer_says_so(site: Site) -> None:
    for replica in site.replicas:
        await replica.end(signal.SIGKILL)
    status, answer = await site.json("POST", site.url + "/api/jobs", json=submit())
    assert (status, answer["code"]) == (503, "unavailable")


async def test_sockets_come_back_at_once_after_all_replicas_were_away(site: Site) -> None:
    """NGINX has seen both fail; no request but those for sockets, which stay open, tells it that they are well."""
    for replica in site.replicas:
        await replica.end(signal.SIGKILL)
    for _ in range(4):
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await site.http.ws_connect(f"{site.url}/queue/ws")
    await asyncio.gather(*(replica.start() for replica in site.replicas))
    sockets = await asyncio.gather(*(site.http.ws_connect(f"{site.url}/queue/ws") for _ in range(20)))
    for socket in sockets:
        await socket.close()


def test_sizes_and_times_are_those_of_the_broker() -> None:
    settings = Settings()
    assert f"client_max_body_size {settings.max_message_mb:.0f}m;" in CONF
    assert f"client_max_body_size {settings.max_output_mb}m;" in CONF
    from broker.api.heartbeat import VISIT_S
    from broker.api.sse import KEEPALIVE_S

    reads = [int(s) for s in re.findall(r"proxy_read_timeout (\d+)s", CONF)]
    assert min(reads) > 2 * max(2 * VISIT_S, KEEPALIVE_S)
    assert max(reads) > settings.hang_s
    directives = re.sub(r"#.*", "", CONF)
    assert not re.search(r"ip_hash|sticky|\$args|\$request\b|\$request_uri\"|\$http_referer", directives)


async def test_a_replica_with_another_secret_is_refused(valkey_url: str, pool: str, tmp_path: Path) -> None:
    """Its links would be refused by the others. Without EMQ_SECRET replicas share one, whatever their folders."""
    options = ("--redis", valkey_url, "--data")
    secret = "a" * 20
    async with serving(*options, str(tmp_path / "a"), EMQ_POOL=pool, EMQ_SECRET=secret):
        other = ("serve", "--port", "0", *options, str(tmp_path / "b"))
        for env in ({"EMQ_SECRET": "b" * 20}, {}):
            code, _, said = await emq(*other, EMQ_POOL=pool, **env)
            assert code == 1
            assert "Set the same EMQ_SECRET" in said
            assert secret not in said
        async with serving(*options, str(tmp_path / "b"), EMQ_POOL=pool, EMQ_SECRET="b" * 20 + "," + secret):
            pass
    shared = f"{pool}-shared"
    async with (
        serving(*options, str(tmp_path / "c"), EMQ_POOL=shared) as first,
        serving(*options, str(tmp_path / "d"), EMQ_POOL=shared) as second,
        aiohttp.ClientSession() as http,
    ):
        for served in (first, second):
            async with http.get(served.url + "/health") as response:
                assert response.status == 200
