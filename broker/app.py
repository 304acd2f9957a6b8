"""Puts an application together from settings; the one place that knows every part."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from broker.access.audit import AUDIT, AuditLog
from broker.access.credentials import CREDENTIALS, Credentials
from broker.access.identity import Scope, current
from broker.access.keyring import KeyRing
from broker.access.origin import OriginGuard, is_loopback, no_key_for
from broker.access.policies import Policies
from broker.access.proxies import PROXIES, Proxies
from broker.access.side_keys import SideKeys
from broker.access.store import AccessStore
from broker.access.webhook_secrets import WebhookSecrets
from broker.api import edge, gateway, keys, metrics, openapi, rest, sse, templates, tenants, users, webhooks, websocket
from broker.api.assets import AssetRoutes
from broker.api.figures import StatsFeed
from broker.api.gateway_session import GatewayParts
from broker.api.internal import InternalRoutes
from broker.api.outputs import OutputRoutes
from broker.api.seats import socket_limit
from broker.api.services import SERVICES, Services
from broker.api.streams import Streams
from broker.api.tally import Tally
from broker.api.tenants import TenantShares, charge_upload
from broker.api.tickets import FileAccess
from broker.dashboard import setup as dashboard
from broker.dashboard.problems import errors_to_pages
from broker.dashboard.roles import check_role
from broker.errors import ConfigurationError, Unavailable
from broker.files.cleanup import Cleaner, drop_unused
from broker.files.opening import open_objects, open_stores
from broker.files.outputs import delivered_result, remove_outputs
from broker.files.replicas import Replicas, ReplicatedStore
from broker.files.retention import parse_rules
from broker.files.secret import Secrets, configured_secrets, own_secret, refuse_another
from broker.files.store import FileStore
from broker.files.urls import REPLICAS, UrlSigner
from broker.jobs.fleet import Fleet
from broker.jobs.history import History, Recorder
from broker.jobs.metrics import PoolMetrics
from broker.jobs.operations import Operations
from broker.jobs.records import Deliver
from broker.jobs.submission import Submitter
from broker.jobs.templates import Templates
from broker.jobs.traces import LOOK_S, TraceMaker, Tracer
from broker.jobs.webhooks import Webhooks
from broker.memory import tidied
from broker.outbound import Outbound, UrlRule
from broker.queue.connection import Connection
from broker.queue.events import EventHub
from broker.queue.group_events import GroupHub
from broker.queue.inbox import Inbox
from broker.queue.janitor import Janitor, repeat
from broker.queue.queue import Queue
from broker.queue.seal import Seal
from broker.queue.series import Series
from broker.queue.startup import pool_config, redis
from broker.queue.templates import TemplateStore
from broker.settings import Settings
from broker.version import emq_version

log = logging.getLogger(__name__)

SETTINGS = web.AppKey("settings", Settings)
CONNECTION = web.AppKey("connection", Connection)
QUEUE = web.AppKey("queue", Queue)
HUB = web.AppKey("hub", EventHub)
SIGNER = web.AppKey("signer", UrlSigner)
SIDE_KEYS = web.AppKey("side_keys", SideKeys)
STORE = web.AppKey("store", FileStore)
TRACER = web.AppKey[Tracer | None]("tracer")
JANITOR = web.AppKey("janitor", Janitor)
SECRETS = web.AppKey("secrets", Secrets)
SERVER_SECTIONS = ("server", "clients", "memory", "persistence", "stats", "replication", "cpu", "commandstats")
"""What ``/metrics`` reads of ``INFO``."""


def create_app(settings: Settings) -> web.Application:
    """The broker's application. Nothing happens before it is started: then it connects, and raises what is wrong."""
    app = web.Application(
        middlewares=[edge.errors_to_responses, errors_to_pages, edge.guard, edge.audit, check_role],
        client_max_size=int(settings.max_message_mb * 1024 * 1024),
    )
    app[SETTINGS] = settings
    app[edge.GUARD] = OriginGuard(settings)
    app[PROXIES] = Proxies(settings.trusted_proxies)
    app.on_response_prepare.append(edge.add_headers)
    app.cleanup_ctx.extend([_memory, _queue, _traces, _access, _files, _events, _services, _webhooks])
    rest.add_to(app)
    websocket.add_to(app)
    gateway.add_to(app)
    openapi.add_to(app)
    metrics.add_to(app)
    keys.add_to(app)
    templates.add_to(app)
    webhooks.add_to(app)
    users.add_to(app)
    tenants.add_to(app)
    dashboard.add_to(app)
    app.on_shutdown.append(sse.stop_all)
    return app


def worker_url(settings: Settings) -> str | None:
    """Where workers reach this broker, as far as it can know: its public addresses, else loopback."""
    if settings.worker_url or settings.public_url:
        return settings.worker_url or settings.public_url
    return f"http://{settings.host}:{settings.port}" if is_loopback(settings.host) and settings.port else None


def replica_url(settings: Settings) -> str | None:
    """Where other replicas reach this one; ``None`` where they need not, since all have the same store."""
    if settings.store_url or not settings.port:
        return None
    anywhere = settings.host in ("", "0.0.0.0", "::")  # noqa: S104 # nosec B104 - compared, not bound
    host = socket.gethostname() if anywhere else settings.host
    return settings.replica_url or f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


async def _queue(app: web.Application) -> AsyncIterator[None]:
    """Redis, the queue in it, and the janitor."""
    settings = app[SETTINGS]
    async with redis(settings) as connection:
        queue = Queue(connection, settings.pool, Seal.of(settings.payload_key))
        app[SECRETS] = secrets = await _secrets(settings, AccessStore(connection))
        config = pool_config(settings, worker_url(settings), replica_url(settings))
        config |= {"secret_key_id": secrets.key_id, "secrets": "\n".join(secrets.key_ids)}
        await connection.load(queue.prefix)
        pool = await queue.configure(**config)
        refuse_another(secrets, pool.text("secret_key_id"), settings.secret is not None)
        janitor = Janitor(queue, connection, config, reap_s=settings.reap_s)
        janitor.start()
        app[CONNECTION], app[QUEUE], app[JANITOR] = connection, queue, janitor
        yield
        await janitor.stop()


async def _traces(app: web.Application) -> AsyncIterator[None]:
    """Spans of what becomes of jobs, where they are wanted."""
    app[TRACER] = None
    if not app[SETTINGS].traces:
        yield
        return
    try:
        from broker.tracing import OtelTracer  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise ConfigurationError(
            "EMQ_TRACES needs packages that are not installed: "
            f"pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http ({error})."
        ) from None
    app[TRACER] = tracer = OtelTracer(emq_version())
    maker = TraceMaker(app[QUEUE], tracer)
    looking = asyncio.create_task(repeat("traces", maker.look, LOOK_S), name="traces")
    yield
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    await tracer.close()


async def _secrets(settings: Settings, store: AccessStore) -> Secrets:
    """What this broker signs links with (first) and takes for signed."""
    if settings.secret:
        return configured_secrets(settings.secret)
    own = own_secret(settings.data)
    shared = await store.shared_secret(own)
    return Secrets([shared] if shared == own else [shared, own])


async def _access(app: web.Application) -> AsyncIterator[None]:
    """The keys, and who they are."""
    settings, store = app[SETTINGS], AccessStore(app[CONNECTION])
    ring = KeyRing(store, Policies(settings), may_be_open=is_loopback(settings.host))
    ring.on_change = TenantShares(app[QUEUE], ring.policies).push
    await ring.start()
    app[CREDENTIALS] = Credentials(ring, store, settings)
    app[AUDIT] = AuditLog(store)
    yield
    await ring.stop()


async def require_key(settings: Settings) -> None:
    """Refuse to listen where others can connect while no key protects the broker."""
    if is_loopback(settings.host):
        return
    async with redis(settings, supervise=False) as connection:
        if not await AccessStore(connection).version():
            raise no_key_for(settings.host)


async def _files(app: web.Application) -> AsyncIterator[None]:
    """The object store, its routes, and the removal of what nobody can ask for any more."""
    settings = app[SETTINGS]
    secrets = app[SECRETS]
    app[SIGNER] = UrlSigner(secrets, settings.public_url)
    charge = partial(charge_upload, app[CREDENTIALS])
    access = FileAccess(app[QUEUE], app[SIGNER], lambda request, scope: current(request).require(Scope(scope)).tenant)
    replicas = Replicas(app[QUEUE].replicas, replica_url(settings), UrlSigner(secrets, purpose=REPLICAS))
    outputs, assets = _stores(settings, replicas)
    await _check(outputs)
    app[STORE] = outputs
    # The side keys' own secret is the deployment's where payloads have none: what is short-lived may be lost with it.
    seal = Seal.of(settings.payload_key, "side") if settings.payload_key else Seal([secrets.derived("side")], "side")
    side = SideKeys(app[CREDENTIALS].store, seal, settings.pool, settings.partner_keys_s)
    app[SIDE_KEYS] = side
    inbox = Inbox(app[CONNECTION], app[QUEUE].prefix)
    app[gateway.GATEWAY] = gateway.Gateway(GatewayParts(app[QUEUE], inbox, outputs, settings, side))
    limit = settings.max_output_mb * 1024 * 1024
    OutputRoutes(outputs, access, limit).add_to(app)
    AssetRoutes(assets, access, limit, charge).add_to(app)
    InternalRoutes({"outputs": outputs, "assets": assets}, UrlSigner(secrets, purpose=REPLICAS)).add_to(app)
    shortest = min(settings.ttl_completed_s, settings.ttl_failed_s, settings.ttl_cancelled_s)
    rules = parse_rules(settings.keep_outputs)
    cleaners = [
        asyncio.create_task(Cleaner(outputs, app[QUEUE], shortest, rules).run(), name="files-cleaner"),
        asyncio.create_task(drop_unused(assets), name="inputs-cleaner"),
    ]
    yield
    for cleaner in cleaners:
        cleaner.cancel()
    await asyncio.gather(*cleaners, return_exceptions=True)
    await replicas.close()


def _stores(settings: Settings, replicas: Replicas) -> tuple[FileStore, FileStore]:
    """Outputs and input files, in one place for all replicas or on the disks of each."""
    if settings.store_url:
        return open_stores(settings)
    outputs, assets = (
        ReplicatedStore(open_objects(settings.data, f"{settings.pool}/{area}"), replicas, area, keep_unused_s)
        for area, keep_unused_s in (("outputs", 0), ("assets", settings.keep_inputs_s))
    )
    return outputs, assets


async def _check(store: FileStore) -> None:
    """A store that cannot be used ends the start; one that does not answer now may do so later."""
    try:
        await store.check()
    except Unavailable as error:
        log.warning("%s Files cannot be stored or read until it does.", error.message)


async def _events(app: web.Application) -> AsyncIterator[None]:
    """The listener to jobs' events."""
    app[HUB] = EventHub(app[CONNECTION], app[QUEUE])
    await app[HUB].start()
    yield
    await app[HUB].stop()


async def _services(app: web.Application) -> AsyncIterator[None]:
    """What the handlers work with."""
    settings, queue, ring = app[SETTINGS], app[QUEUE], app[CREDENTIALS].ring
    deliver: Deliver = partial(delivered_result, app[SIGNER])
    tally = Tally()
    app[CONNECTION].observe = tally.redis_calls.observe
    fleet, series = Fleet(queue), Series(app[CONNECTION], queue.prefix)
    store = TemplateStore(app[CONNECTION], queue.prefix, queue.seal)
    stored = Templates(store, fleet, settings.max_payload_kb * 1024)
    submitter = Submitter(queue, fleet, settings, ring.policies, app[SIDE_KEYS], templates=stored, tracer=app[TRACER])
    operations = Operations(queue, fleet, submitter, deliver, partial(remove_outputs, app[STORE]))
    parts = Services(
        settings=settings,
        operations=operations,
        templates=stored,
        streams=Streams(app[HUB], deliver, tally),
        figures=StatsFeed(operations.stats),
        groups=GroupHub(app[CONNECTION], queue),
        history=History(queue, series),
        health=partial(app[CONNECTION].health, queue.prefix),
        version=emq_version(),
        audit=app[AUDIT],
        usage=ring.usage,
        max_sockets=socket_limit(settings.max_sockets),
        metrics=PoolMetrics(queue, fleet, partial(app[CONNECTION].info_of, queue.prefix, *SERVER_SECTIONS)),
        tally=tally,
        workers=app[gateway.GATEWAY].count,
    )
    app[SERVICES] = parts
    recorder = asyncio.create_task(Recorder(queue, series).run(), name="history")
    yield
    recorder.cancel()
    await asyncio.gather(recorder, return_exceptions=True)
    parts.figures.close()
    await parts.groups.stop()


async def _memory(app: web.Application) -> AsyncIterator[None]:
    """What was freed goes back to the system."""
    async with tidied(caches=dashboard.CACHES):
        yield


async def _webhooks(app: web.Application) -> AsyncIterator[None]:
    """The deliveries of webhooks; the janitor says when some are due."""
    settings = app[SETTINGS]
    app[webhooks.SECRETS] = WebhookSecrets(app[CONNECTION])
    outbound = Outbound(UrlRule(settings.webhook_urls, settings.webhook_ports))
    sender = Webhooks(app[QUEUE], app[webhooks.SECRETS], outbound, partial(delivered_result, app[SIGNER]))
    app[JANITOR].hooks_due = sender.wake
    sender.start()
    yield
    await sender.stop()
    await outbound.close()
