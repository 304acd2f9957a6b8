"""A broker's settings, read from the environment.

The names of the deployment that EMQ replaces (``REDIS_HOST`` …, ``LOG_LEVEL``) keep working; the rest are ``EMQ_…``.
``docs/configuration.md`` describes each one, and a test keeps the two equal.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_data_dir() -> Path:
    """Where a broker without ``EMQ_DATA`` keeps its data; a worker without settings looks here too."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "emq"


def _env(*names: str) -> AliasChoices:
    return AliasChoices(*names)


class Settings(BaseSettings):
    """Everything a broker replica can be told. Seconds, megabytes and counts as the names say."""

    model_config = SettingsConfigDict(populate_by_name=True, extra="ignore", frozen=True, env_ignore_empty=True)

    host: str = Field("127.0.0.1", validation_alias=_env("EMQ_HOST"), description="Address to listen on.")
    port: int = Field(8000, validation_alias=_env("EMQ_PORT"), description="Port to listen on; 0 takes a free one.")
    data: Path = Field(
        default_factory=default_data_dir,
        validation_alias=_env("EMQ_DATA"),
        description="Data folder: the embedded Valkey, outputs, the secret.",
    )
    pool: str = Field(
        "default",
        pattern=r"^[A-Za-z0-9_-]{1,64}$",
        validation_alias=_env("EMQ_POOL"),
        description="Name of the queue.",
    )
    log_level: str = Field("INFO", validation_alias=_env("LOG_LEVEL"), description="DEBUG, INFO, WARNING or ERROR.")
    log_format: Literal["console", "json"] = Field(
        "console", validation_alias=_env("EMQ_LOG_FORMAT"), description="How log lines look."
    )

    redis_url: str | None = Field(
        None,
        validation_alias=_env("EMQ_REDIS_URL"),
        description="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://; wins over REDIS_HOST.",
    )
    redis_host: str | None = Field(None, validation_alias=_env("REDIS_HOST"), description="Host of the Redis server.")
    redis_port: int = Field(6379, validation_alias=_env("REDIS_PORT"), description="Port of the Redis server.")
    redis_db: int = Field(0, ge=0, validation_alias=_env("REDIS_DB"), description="Database number.")
    redis_password: str | None = Field(
        None, repr=False, validation_alias=_env("REDIS_PASSWORD"), description="Password of the Redis server."
    )
    allow_volatile: bool = Field(
        False,
        validation_alias=_env("EMQ_ALLOW_VOLATILE"),
        description="Accept a Redis server without append-only file.",
    )
    allow_open_redis: bool = Field(
        False,
        validation_alias=_env("EMQ_ALLOW_OPEN_REDIS"),
        description="Accept a Redis server on another machine that asks for no password.",
    )
    appendfsync: Literal["always", "everysec"] = Field(
        "always", validation_alias=_env("EMQ_APPENDFSYNC"), description="Durability of the embedded Valkey."
    )
    durability: Literal["server", "replica"] = Field(
        "server",
        validation_alias=_env("EMQ_DURABILITY"),
        description="What has a submit before it is accepted: the Redis server, or a replica of it, too.",
    )

    store_url: str | None = Field(
        None,
        repr=False,
        validation_alias=_env("EMQ_STORE_URL"),
        description="Where files lie: file://, s3://, gs:// or az://. Unset: the data folder.",
    )
    store_presign: Literal["off", "get", "put", "both"] = Field(
        "off",
        validation_alias=_env("EMQ_STORE_PRESIGN"),
        description="Which way files go straight between a cloud and who reads or sends them.",
    )

    replica_url: str | None = Field(
        None,
        validation_alias=_env("EMQ_REPLICA_URL"),
        description="This replica's own URL as other replicas reach it.",
    )
    public_url: str | None = Field(
        None, validation_alias=_env("EMQ_PUBLIC_URL"), description="The broker's URL as clients see it."
    )
    worker_url: str | None = Field(
        None, validation_alias=_env("EMQ_WORKER_URL"), description="The broker's URL as workers see it."
    )
    origins: str = Field(
        "",
        validation_alias=_env("EMQ_ORIGINS"),
        description="Comma-separated origins that browsers may connect from.",
    )
    secret: str | None = Field(
        None,
        repr=False,
        validation_alias=_env("EMQ_SECRET"),
        description="Comma-separated signing secrets; the first signs. Unset: the first broker's own.",
    )

    trusted_proxies: str = Field(
        "",
        validation_alias=_env("EMQ_TRUSTED_PROXIES"),
        description="Comma-separated addresses and networks of proxies whose X-Forwarded-For counts.",
    )
    auth_failures_per_min: float = Field(
        1000.0,
        ge=0,
        validation_alias=_env("EMQ_AUTH_FAILURES_PER_MIN"),
        description="Wrong keys that one address may show; 0: no limit.",
    )
    logins_per_min: float = Field(
        5.0,
        ge=0,
        validation_alias=_env("EMQ_LOGINS_PER_MIN"),
        description="Wrong log-ins of one address under one name; 0: no limit.",
    )

    dashboard_read_only: bool = Field(
        False,
        validation_alias=_env("EMQ_DASHBOARD_READ_ONLY"),
        description="The dashboard shows everything and changes nothing, whoever uses it.",
    )

    payload_key: str | None = Field(
        None,
        repr=False,
        validation_alias=_env("EMQ_PAYLOAD_KEY"),
        description="Comma-separated secrets; the first encrypts payloads and results in Redis, all decrypt.",
    )
    partner_keys_s: float = Field(
        0.0,
        ge=0,
        le=604_800,
        validation_alias=_env("EMQ_PARTNER_KEYS_S"),
        description="How long a job may wait with partner keys in its extra_data; 0: they are refused.",
    )

    lease_s: float = Field(30.0, gt=0, validation_alias=_env("EMQ_LEASE_S"), description="A worker's lease.")
    reap_s: float = Field(1.0, gt=0, validation_alias=_env("EMQ_REAP_S"), description="Pause between two sweeps.")
    hang_s: float = Field(
        600.0,
        gt=0,
        validation_alias=_env("EMQ_HANG_S"),
        description="How long a worker may be silent behind a live lease.",
    )
    stall_s: float = Field(
        600.0,
        gt=0,
        validation_alias=_env("EMQ_STALL_S"),
        description="A job without any event for this long is stalled.",
    )
    timeout_s: float = Field(
        0.0,
        ge=0,
        validation_alias=_env("EMQ_TIMEOUT_S"),
        description="How long a job without timeout_s of its own may run; 0: no limit.",
    )
    backoff_s: float = Field(
        2.0,
        ge=0,
        le=5,
        validation_alias=_env("EMQ_BACKOFF_S"),
        description="First pause before a retry; it doubles.",
    )
    affinity_max_wait_s: float = Field(
        60.0,
        ge=0,
        validation_alias=_env("EMQ_AFFINITY_MAX_WAIT_S"),
        description="How long loaded models may be preferred over a job that waits.",
    )
    aging_s: float = Field(
        0.0,
        ge=0,
        validation_alias=_env("EMQ_AGING_S"),
        description="Waiting jobs rise one priority in this time; 0: off.",
    )
    max_finishing: int = Field(
        4,
        ge=1,
        le=64,
        validation_alias=_env("EMQ_MAX_FINISHING"),
        description="Jobs of one worker still uploading.",
    )
    max_queued: int = Field(
        1_000_000,
        ge=0,
        validation_alias=_env("EMQ_MAX_QUEUED"),
        description="Waiting jobs of the pool; 0: no limit.",
    )
    ttl_completed_s: float = Field(
        86_400.0,
        gt=0,
        validation_alias=_env("EMQ_TTL_COMPLETED_S"),
        description="Life of a completed job's record.",
    )
    ttl_failed_s: float = Field(
        604_800.0,
        gt=0,
        validation_alias=_env("EMQ_TTL_FAILED_S"),
        description="Life of a failed job's record.",
    )
    ttl_cancelled_s: float = Field(
        86_400.0,
        gt=0,
        validation_alias=_env("EMQ_TTL_CANCELLED_S"),
        description="Life of a cancelled job's record.",
    )
    keep_outputs: str = Field(
        "",
        validation_alias=_env("EMQ_KEEP_OUTPUTS"),
        description="Seconds that outputs are kept, by tenant and status, where shorter than the record.",
    )
    keep_inputs_s: float = Field(
        34_560_000.0,
        ge=0,
        validation_alias=_env("EMQ_KEEP_INPUTS_S"),
        description="Life of an uploaded input file after its last use, longer than jobs may wait; 0: for ever.",
    )
    max_finished: int = Field(
        1_000_000,
        ge=0,
        validation_alias=_env("EMQ_MAX_FINISHED"),
        description="Finished jobs kept a status; 0: no limit.",
    )
    idempotency_ttl_s: float = Field(
        86_400.0,
        gt=0,
        validation_alias=_env("EMQ_IDEMPOTENCY_TTL_S"),
        description="Life of an idempotency key.",
    )

    node_allow: str = Field(
        "",
        validation_alias=_env("EMQ_NODE_ALLOW"),
        description="Comma-separated node classes that workflows may use, with * for any part; unset: all.",
    )
    node_deny: str = Field(
        "",
        validation_alias=_env("EMQ_NODE_DENY"),
        description="Comma-separated node classes that no workflow may use, with * for any part.",
    )
    model_allow: str = Field(
        "",
        validation_alias=_env("EMQ_MODEL_ALLOW"),
        description="Comma-separated model files that workflows may use, with * for any part; unset: all.",
    )
    max_sockets: int | None = Field(
        None,
        ge=1,
        validation_alias=_env("EMQ_MAX_SOCKETS"),
        description="Connections that may stay open at this replica; unset: what the open-file limit allows.",
    )
    tenant_submits_per_s: float = Field(
        0.0, ge=0, validation_alias=_env("EMQ_TENANT_SUBMITS_PER_S"), description="Jobs a second of one tenant; 0: any."
    )
    tenant_max_queued: int = Field(
        0, ge=0, validation_alias=_env("EMQ_TENANT_MAX_QUEUED"), description="Waiting jobs of one tenant; 0: any."
    )
    tenant_max_queued_mb: float = Field(
        0.0,
        ge=0,
        validation_alias=_env("EMQ_TENANT_MAX_QUEUED_MB"),
        description="Payloads of one tenant's waiting jobs; 0: any.",
    )
    tenant_max_running: int = Field(
        0, ge=0, validation_alias=_env("EMQ_TENANT_MAX_RUNNING"), description="Running jobs of one tenant; 0: any."
    )
    tenant_max_sockets: int = Field(
        0, ge=0, validation_alias=_env("EMQ_TENANT_MAX_SOCKETS"), description="Open sockets of one tenant; 0: any."
    )
    tenant_max_subscriptions: int = Field(
        0,
        ge=0,
        validation_alias=_env("EMQ_TENANT_MAX_SUBSCRIPTIONS"),
        description="Jobs that one tenant follows; 0: any.",
    )
    tenant_upload_mb_per_h: float = Field(
        0.0,
        ge=0,
        validation_alias=_env("EMQ_TENANT_UPLOAD_MB_PER_H"),
        description="Input files of one tenant an hour; 0: any.",
    )
    key_submits_per_s: float = Field(
        0.0, ge=0, validation_alias=_env("EMQ_KEY_SUBMITS_PER_S"), description="Jobs a second by one key; 0: any."
    )
    key_max_sockets: int = Field(
        0, ge=0, validation_alias=_env("EMQ_KEY_MAX_SOCKETS"), description="Open sockets by one key; 0: any."
    )

    max_message_mb: float = Field(
        16.0, gt=0, validation_alias=_env("EMQ_MAX_MESSAGE_MB"), description="Largest WebSocket message."
    )
    max_payload_kb: int = Field(
        1024, gt=0, validation_alias=_env("EMQ_MAX_PAYLOAD_KB"), description="Largest payload of a job."
    )
    max_metadata_kb: int = Field(
        16, gt=0, validation_alias=_env("EMQ_MAX_METADATA_KB"), description="Largest metadata of a job."
    )
    max_result_kb: int = Field(
        256,
        gt=0,
        validation_alias=_env("EMQ_MAX_RESULT_KB"),
        description="Largest result a worker may report.",
    )
    max_output_mb: int = Field(
        4096, gt=0, validation_alias=_env("EMQ_MAX_OUTPUT_MB"), description="Largest output file."
    )
    traces: bool = Field(
        False,
        validation_alias=_env("EMQ_TRACES"),
        description="Send OpenTelemetry traces of jobs; the exporter is set by the OTEL_… variables.",
    )
    webhook_urls: str = Field(
        "public",
        pattern=r"^(off|public|any|allow:.+)$",
        validation_alias=_env("EMQ_WEBHOOK_URLS"),
        description="Which URLs webhooks may call: off, public, any, allow:host,host.",
    )
    webhook_ports: str = Field(
        "443",
        pattern=r"^[0-9]{1,5}(,[0-9]{1,5})*$",
        validation_alias=_env("EMQ_WEBHOOK_PORTS"),
        description="Ports that webhooks may call with the rule public.",
    )
    input_urls: str = Field(
        "public",
        pattern=r"^(off|public|any|allow:.+)$",
        validation_alias=_env("EMQ_INPUT_URLS"),
        description="Where workers may fetch input files from: off, public, any, allow:host,host.",
    )
