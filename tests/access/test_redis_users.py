"""Redis' users of ``deploy/redis-users.acl``, on both servers: each may do what it must, no more; and TLS to Redis."""

from __future__ import annotations

import datetime
import ipaddress
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from redis.exceptions import AuthenticationError, NoPermissionError

from broker.access.store import AccessStore
from broker.errors import ConfigurationError, Unavailable
from broker.protocol.access import TenantPolicy
from broker.queue import startup
from broker.queue.connection import Connection
from broker.queue.queue import Queue
from broker.queue.server import check_server
from broker.settings import Settings
from comfyui_emq_node.check import find_queue
from comfyui_emq_node.queue import Claim, Failure, Registration, Report
from comfyui_emq_node.redis_queue import RedisQueue
from tests.api.conftest import Broker, Start, start_broker, submit
from tests.support.jobs import profile
from tests.support.proxy import proxy
from tests.support.servers import RedisServer, redis7_binary, valkey_binary
from tests.support.waiting import wait_until

__all__ = ["start_broker"]

ACL = Path(__file__).resolve().parents[2] / "deploy/redis-users.acl"
LOCAL = "user watcher on >watching ~* &* +@all\n"


@pytest.fixture(scope="module", params=[valkey_binary, redis7_binary], ids=["valkey", "redis7"])
def guarded_server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """A server with the users of the file, and one more for the test to look with."""
    folder = Path(tempfile.mkdtemp(prefix="emq-acl-"))
    (folder / "users.acl").write_text(ACL.read_text() + LOCAL)
    server = Guarded("acl", request.param(), folder)
    yield server.start("--aclfile", str(folder / "users.acl"))
    server.kill()
    shutil.rmtree(folder, ignore_errors=True)


class Guarded(RedisServer):
    """A server that only its users reach."""

    def client(self, user: str = "watcher", password: str = "watching") -> redis.Redis:
        return redis.Redis(port=self.port, username=user, password=password, driver_info=None, protocol=2)

    def _answers(self) -> bool:
        def ready() -> bool:
            try:
                with self.client() as client:
                    return bool(client.ping())
            except redis.RedisError:
                return False

        import time

        for _ in range(500):
            if ready():
                return True
            time.sleep(0.02)
        return False


def url(server: RedisServer, user: str) -> str:
    return f"redis://emq-{user}:change-me-{user}@127.0.0.1:{server.port}/0"


P = "emq:{default}:"
A = "emq:access:{keys}:"
# Who may do what; a command that is not here for a user is refused to it.
MAY: list[tuple[str, tuple[str, ...]]] = [
    ("broker worker", ("FCALL", "emq_claim", "1", P)),
    ("broker worker", ("BLPOP", P + "in:x", "1")),
    ("broker worker", ("HSET", P + "j:x", "status", "pending")),
    ("broker worker", ("SPUBLISH", P + "ev:x", "x")),
    ("broker worker metrics", ("PING",)),
    ("broker", ("FCALL", "emq_throttle", "1", A)),
    ("broker", ("FUNCTION", "LOAD", "#!lua name=x")),
    ("broker", ("HGETALL", A + "key:x")),
    ("broker", ("GETDEL", A + "side:x")),
    ("broker", ("SCAN", "0")),
    ("broker", ("WAIT", "1", "1")),
    ("broker", ("SSUBSCRIBE", P + "ev:x")),
    ("broker", ("XADD", A + "audit", "*", "a", "b")),
    ("broker metrics", ("INFO",)),
    ("metrics", ("SLOWLOG", "GET")),
    ("metrics", ("LATENCY", "LATEST")),
    ("", ("EVAL", "return 1", "0")),
    ("", ("EVALSHA", "x", "0")),
    ("", ("SCRIPT", "LOAD", "return 1")),
    ("", ("FUNCTION", "FLUSH")),
    ("", ("FUNCTION", "DELETE", "emq")),
    ("", ("FUNCTION", "RESTORE", "x")),
    ("", ("KEYS", "*")),
    ("", ("FLUSHALL",)),
    ("", ("FLUSHDB",)),
    ("", ("CONFIG", "SET", "dir", "/tmp")),
    ("", ("CONFIG", "GET", "*")),
    ("", ("DEBUG", "SLEEP", "1")),
    ("", ("SHUTDOWN",)),
    ("", ("MONITOR",)),
    ("", ("MIGRATE", "h", "1", P + "x", "0", "1")),
    ("", ("REPLICAOF", "h", "1")),
    ("", ("MODULE", "LIST")),
    ("", ("ACL", "LIST")),
    ("", ("CLIENT", "KILL", "ID", "1")),
    ("", ("SAVE",)),
    ("", ("SUBSCRIBE", P + "x")),
    ("", ("PSUBSCRIBE", "*")),
    ("", ("GET", "other")),
    ("", ("SET", "other", "x")),
    ("", ("SPUBLISH", "other", "x")),
    ("", ("RESTORE", P + "x", "0", "x")),
    ("", ("SORT", P + "x")),
]


def test_each_user_may_do_what_it_must_and_no_more(guarded_server: RedisServer) -> None:
    with guarded_server.client() as watcher:  # type: ignore[attr-defined]
        for allowed, command in MAY:
            for user in ("broker", "worker", "metrics"):
                answer = watcher.execute_command("ACL", "DRYRUN", f"emq-{user}", *command)
                granted = answer in (b"OK", "OK", True)
                assert granted == (user in allowed.split()), f"{user}: {' '.join(command)}: {answer!r}"
        for key in (A + "key:x", A + "side:x", "emq:{other}:j:x"):
            answer = watcher.execute_command("ACL", "DRYRUN", "emq-worker", "GET", key)
            assert answer not in (b"OK", "OK", True), f"a worker reads {key}"


async def test_a_worker_s_user_is_enough_to_check_it(guarded_server: RedisServer, tmp_path: Path) -> None:
    """``install.py --check`` asks for nothing that this user may not: ``INFO``, say."""
    connection = Connection(url(guarded_server, "broker"))
    await connection.load(P)
    await connection.close()
    level, text = await find_queue(tmp_path / "emq.json", url(guarded_server, "worker"))
    assert (level, "change-me" in text) == ("ok", False), text


def test_nobody_else_gets_in(guarded_server: RedisServer) -> None:
    for name, password in ((None, None), ("emq-broker", "wrong"), ("default", "")):
        stranger = redis.Redis(port=guarded_server.port, driver_info=None, protocol=2, username=name, password=password)
        with stranger, pytest.raises((AuthenticationError, NoPermissionError)):
            stranger.ping()
    worker = guarded_server.client("emq-worker", "change-me-worker")  # type: ignore[attr-defined]
    with worker, pytest.raises(NoPermissionError):
        worker.get(A + "key:x")
    with guarded_server.client("emq-metrics", "change-me-metrics") as metrics:  # type: ignore[attr-defined]
        assert metrics.info()["redis_version"]
        with pytest.raises(NoPermissionError):
            metrics.get(P + "j:x")


async def test_all_that_a_broker_and_a_worker_do_is_allowed(guarded_server: RedisServer, start_broker: Start) -> None:
    """Jobs with their worker, and the whole of access: afterwards the server has nothing to complain of."""
    with guarded_server.client() as watcher:  # type: ignore[attr-defined]
        watcher.execute_command("ACL", "LOG", "RESET")
        broker = await start_broker(redis_url=url(guarded_server, "broker"), pool="default", tenant_max_sockets=50)
        await work(broker, guarded_server)
        await use_templates(broker)
        await administrate(broker, guarded_server)
        log = watcher.execute_command("ACL", "LOG")
        assert log == [], log


async def use_templates(broker: Broker) -> None:
    """A template's whole life, under the broker's own user."""
    params = {"size": {"bind": ["1.width"], "type": "integer", "default": 8}}
    template = {"workflow": submit()["payload"]["workflow"], "params": params}
    for method, path, body, status in (
        ("PUT", "/api/templates/x", template, 201),
        ("GET", "/api/templates", None, 200),
        ("GET", "/api/templates/x@1", None, 200),
        ("POST", "/api/jobs", {"payload": {"template": "x"}}, 201),
        ("DELETE", "/api/templates/x", None, 200),
    ):
        assert (await broker.json(method, path, json=body))[0] == status, path


async def work(broker: Broker, server: RedisServer) -> None:
    """Jobs of each end, by a worker's own client."""
    queue = RedisQueue(lambda: url(server, "worker"), "default", "w1", "i" * 32)
    capabilities = json.loads(profile(nodes=("EmptyImage", "SaveImage")))
    await queue.register(Registration("m", capabilities, {}))
    async with broker.client() as client:
        for end in ("finish", "fail", "release", "cancel"):
            stays = end in ("fail", "cancel")
            for _ in range(2):
                assert await queue.claim(Claim("v" * 26 + end, standing=stays)) is None, "it is idle"
            await client.ask(submit(group="g", priority=1, metadata={"end": end}, delay_s=0))
            hint = (await queue.hints())[0]
            job = await queue.claim(Claim("t" * 26 + end)) if isinstance(hint, str) else hint
            assert job is not None
            if end == "release":
                await queue.release(job, "test")
                job = await queue.claim(Claim("u" * 32))
                assert job is not None
            await queue.report(Report(job, 1, {"progress": 10}, store=True))
            await queue.preview(job, 1, b"\0\0\0\4\0\0\0\2{}x")
            await queue.heartbeat("busy", [job], ["a.safetensors"], [])
            if end == "cancel":
                await client.ask({"type": "cancel_job", "job_id": job.job_id})
            if end == "finish":
                await queue.executed(job, {"execution_ms": 5}, False, (), None)
                await queue.finish(job, {"outputs": [], "timings": {"execution_ms": 5}}, False, (), None)
            else:
                await queue.fail(job, Failure("node_error", "no", retry=False), None)
        group = await client.ask({"type": "request_group", "group": "g"})
        assert {s: n for s, n in group["jobs"].items() if n} == {"completed": 1, "failed": 2, "cancelled": 1}, group
        for message in ({"type": "request_stats"}, {"type": "list_jobs", "status": "completed"},
                        {"type": "request_group", "group": "g"}, {"type": "pause", "scope": "pool"},
                        {"type": "resume", "scope": "pool"}, {"type": "cancel_group", "group": "g"},
                        {"type": "retry_dead"}, {"type": "subscribe_stats", "enabled": True}):  # fmt: skip
            assert (await client.ask(message))["type"] != "error", message
        parent = await client.ask(submit(delay_s=60, idempotency_key="k"))
        await client.ask(submit(depends_on=[parent["job_id"]], expires_s=50))
        await client.ask({"type": "set_priority", "job_id": parent["job_id"], "front": True})
        await client.ask({"type": "cancel_job", "job_id": parent["job_id"]})
    await queue.bye()
    await queue.close()
    await broker.queue.sweep()


async def administrate(broker: Broker, server: RedisServer) -> None:
    """Keys, people, tenants, limits, sessions, the audit log, the check of the queue."""
    connection = Connection(url(server, "broker"))
    store = AccessStore(connection)
    _, text = await store.create("default", ["admin"], expires_s=1000)
    headers = {"Authorization": f"Bearer {text}"}

    async def known() -> bool:
        return (await broker.json("GET", "/api/keys", headers=headers))[0] == 200

    await wait_until(known, 5, "the key counts")
    for path in (
        "/api/workers",
        "/api/dead",
        "/api/users",
        "/api/tenants",
        "/api/audit",
        "/stats",
        "/health",
        "/api/jobs",
    ):
        assert (await broker.json("GET", path, headers=headers))[0] == 200, path
    assert (await broker.json("POST", "/api/tickets", headers=headers))[0] == 201
    made = (await broker.json("POST", "/api/keys", json={"tenant": "t", "scopes": ["read"]}, headers=headers))[1]
    await broker.json("POST", f"/api/keys/{made['id']}/rotate", json={"grace_s": 5}, headers=headers)
    await broker.json("DELETE", f"/api/keys/{made['id']}", headers=headers)
    await store.create_user("ada", "default", "viewer", "a long password")
    await store.remove_user("ada")
    await store.set_tenant("t", TenantPolicy(submits_per_s=1))
    form = {"key": text}
    async with broker.http.post(broker.url + "/login", data=form, allow_redirects=False) as response:
        assert response.status == 303
    async with broker.client(headers=headers) as client:
        assert (await client.ask({"type": "request_stats"}))["type"] == "response_stats"
    queue = Queue(connection, "default")
    await connection.load(queue.prefix)
    assert await connection.scan(queue.prefix + "*", b"0")
    await connection.close()


# -- what a start refuses ---------------------------------------------------------------------------------------------


class Says:
    """A server's ``INFO``."""

    def __init__(self, **info: Any) -> None:
        self._info = {"redis_version": "8.2.2", "aof_enabled": 1, "maxmemory_policy": "noeviction", **info}

    async def info(self) -> list[dict[str, Any]]:
        return [self._info]


@pytest.mark.parametrize(
    ("version", "warned"),
    [
        ({"redis_version": "7.0.15"}, True), ({"redis_version": "7.2.10"}, True), ({"redis_version": "7.2.11"}, False),
        ({"redis_version": "8.2.1"}, True), ({"redis_version": "8.2.2"}, False), ({"redis_version": "8.4.0"}, False),
        ({"valkey_version": "8.1.3"}, True), ({"valkey_version": "8.1.4"}, False), ({"valkey_version": "9.1.0"}, False),
    ],
    ids=str,
)  # fmt: skip
async def test_known_holes_are_named(version: dict[str, str], warned: bool, caplog: pytest.LogCaptureFixture) -> None:
    await check_server(Says(**version))
    assert ("CVE-2025-49844" in caplog.text) == warned


async def test_a_server_that_lets_everybody_in_is_refused_elsewhere(
    valkey_server: RedisServer, guarded_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.queue.address.Address.is_local", property(lambda _: False))
    with pytest.raises(ConfigurationError, match="without a password"):
        await connected(redis_url=valkey_server.url)
    await connected(redis_url=valkey_server.url, allow_open_redis=True)
    await connected(redis_url=url(guarded_server, "broker"))


def test_which_addresses_are_local() -> None:
    from broker.queue.address import parse

    for text, local in (
        ("redis://127.0.0.1", True), ("redis://localhost:1/2", True), ("redis://[::1]:6379", True),
        ("unix:///tmp/x", True),
        ("redis://10.0.0.5", False), ("redis://redis:6379", False), ("redis+cluster://127.0.0.1:1,10.0.0.1:2", False),
        ("redis+sentinel://127.0.0.1:1/main", True),
    ):  # fmt: skip
        assert parse(text).is_local is local, text


async def connected(**settings: Any) -> None:
    async with startup.redis(Settings().model_copy(update={"pool": "default", **settings})):
        pass


# -- TLS --------------------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str, host: str) -> Path:
    """A certificate authority ``<name>-ca.pem`` and a server's certificate by it."""
    now = datetime.datetime.now(datetime.UTC)

    def sign(subject: str, key: Any, issuer: str, by: Any, ca: bool) -> x509.Certificate:
        names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (subject, issuer)]
        made = (
            x509.CertificateBuilder()
            .subject_name(names[0]).issuer_name(names[1]).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )  # fmt: skip
        if not ca:
            address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
            made = made.add_extension(address, critical=False)
        return made.sign(by, hashes.SHA256())

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    authority = folder / f"{name}-ca.pem"
    authority.write_bytes(sign(f"{name} CA", ca_key, f"{name} CA", ca_key, True).public_bytes(pem))
    (folder / f"{name}.pem").write_bytes(sign("redis", key, f"{name} CA", ca_key, False).public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}.key").write_bytes(private)
    return authority


async def test_redis_over_tls_by_its_authority_and_its_name(tmp_path: Path) -> None:
    authority, stranger = certificate(tmp_path, "own", "127.0.0.1"), certificate(tmp_path, "stranger", "127.0.0.1")
    certificate(tmp_path, "elsewhere", "192.0.2.1")
    from tests.support.servers import free_port

    ports = {}
    servers = []
    for name in ("own", "elsewhere"):
        ports[name] = free_port()
        server = RedisServer(name, redis7_binary(), Path(tempfile.mkdtemp(prefix="emq-tls-")))
        servers.append(server)
        server.start(
            "--tls-port", str(ports[name]), "--tls-cert-file", str(tmp_path / f"{name}.pem"), "--tls-key-file",
            str(tmp_path / f"{name}.key"), "--tls-ca-cert-file", str(authority), "--tls-auth-clients", "no",
        )  # fmt: skip
    try:
        good = f"rediss://127.0.0.1:{ports['own']}?ssl_ca_certs={authority}"
        await connected(redis_url=good)
        for bad in (
            f"rediss://127.0.0.1:{ports['own']}?ssl_ca_certs={stranger}",
            f"rediss://127.0.0.1:{ports['own']}",
            f"rediss://127.0.0.1:{ports['elsewhere']}?ssl_ca_certs={tmp_path / 'elsewhere-ca.pem'}",
        ):
            with pytest.raises((ConfigurationError, Unavailable)) as refused:
                await connected(redis_url=bad)
            assert "certificate" in str(refused.value).lower() + str(getattr(refused.value, "details", "")).lower()
        async with proxy(ports["own"], resp=False) as way:
            with pytest.raises(Unavailable):
                await connected(redis_url=f"rediss://127.0.0.1:{way.port}?ssl_ca_certs={stranger}")
            assert way.connections == 1, "what is refused once is refused always"
        worker = RedisQueue(lambda: good, "default", "w1", "i" * 32)
        with pytest.raises(Exception, match="no EMQ functions yet"):
            await worker.register(Registration("m", {}, {}))
        await worker.close()
    finally:
        for server in servers:
            server.kill()
            shutil.rmtree(server.folder, ignore_errors=True)
