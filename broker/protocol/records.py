"""What a client reads: jobs, outputs, errors, workers, figures."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .base import EpochMs, Outgoing, Status

ErrorCode = Literal[
    "bad_json",
    "bad_message",
    "unknown_type",
    "invalid_workflow",
    "payload_too_large",
    "not_found",
    "conflict",
    "unauthorized",
    "forbidden",
    "rate_limited",
    "queue_full",
    "unavailable",
    "internal",
]

FailureCode = Literal[
    "validation_failed",
    "node_error",
    "out_of_memory",
    "timeout",
    "stalled",
    "interrupted",
    "worker_lost",
    "worker_disk_full",
    "input_unavailable",
    "output_upload_failed",
    "dependency_failed",
    "expired",
    "max_attempts",
]

WaitingCode = Literal[
    "no_worker",
    "no_worker_has_model",
    "no_worker_has_node_class",
    "no_worker_has_tag",
    "no_worker_has_job_type",
    "not_enough_vram",
    "no_single_worker",
    "value_out_of_range",
    "value_not_in_list",
    "required_input_missing",
    "invalid_input_type",
    "pool_paused",
    "tenant_paused",
    "tenant_at_limit",
]


class Failure(Outgoing):
    """Why a job failed."""

    code: FailureCode | str = Field(description="A stable word; readers treat one they do not know as node_error.")
    message: str = Field(description="One sentence for a person.")
    node_id: str | None = None
    node_type: str | None = None
    details: Any = None


class WaitingFor(Outgoing):
    """One reason why a job waits: no live worker could run it, or something holds it back."""

    code: WaitingCode
    detail: str | None = Field(None, description="The model file, node class, tag, `node.input` …")
    suggestion: str | None = Field(None, description="The nearest name that some worker has or takes.")
    message: str | None = Field(None, description="The reason as a sentence.")


class Output(Outgoing):
    """One file that a job made."""

    node_id: str
    kind: Literal["image", "video", "audio", "text", "file"]
    filename: str = Field(description="A label; never a path.")
    content_type: str
    size: int = Field(description="Bytes.")
    hash: str = Field(description="blake3:<hex> of the content.")
    url: str = Field(description="Where to GET it, for one hour from its delivery.")
    text: str | None = Field(None, description="The content itself, of small text outputs.")
    width: int | None = Field(None, description="Pixels, where known.")
    height: int | None = Field(None, description="Pixels, where known.")
    duration_s: float | None = Field(None, description="Length of video and audio, where known.")


class Timings(Outgoing):
    """Where a job's time went, in milliseconds."""

    queued_ms: float | None = None
    input_ms: float | None = None
    execution_ms: float | None = None
    output_ms: float | None = None


class Result(Outgoing):
    """What a completed job gives; further fields of the worker are kept."""

    outputs: list[Output] = Field(default_factory=list)
    timings: Timings | None = None


class ProgressNode(Outgoing):
    """The node that executes."""

    id: str
    class_type: str | None = None
    value: float | None = None
    max: float | None = None


class EstimatedStart(Outgoing):
    """When a waiting job is expected to start: epoch ms that half, and nine of ten, of such jobs start by."""

    p50: EpochMs
    p90: EpochMs


class Crash(Outgoing):
    """A worker that was lost while it ran a job."""

    worker_id: str | None = None
    attempt: int
    at: EpochMs
    node: ProgressNode | None = Field(None, description="What ran, as far as it was reported.")


class Job(Outgoing):
    """A job's public record, as ``GET /api/jobs/{id}`` answers it."""

    job_id: str
    status: Status
    phase: Literal["ahead", "running", "finishing"] | None = Field(None, description="Where an active job is.")
    job_type: str
    priority: int
    attempt: int = Field(description="Claims so far; it fences.")
    max_attempts: int
    failures: int = 0
    crashes: int = Field(0, description="Workers lost while this job ran.")
    dead_letter: bool = Field(False, description="Its workers were lost too often; a forced retry replays it.")
    crash_log: list[Crash] = Field(default_factory=list, description="Each worker lost while it ran, in this round.")
    round: int = 1
    worker_id: str | None = None
    position: int | None = Field(None, description="Jobs of the same requirements before it, plus one, while it waits.")
    position_exact: bool | None = None
    estimated_start: EstimatedStart | None = Field(None, description="Null while unknown.")
    progress: float | None = Field(None, description="0 to 100 over the whole workflow.")
    node: ProgressNode | None = None
    nodes_done: int | None = None
    nodes_total: int | None = None
    eta_s: float | None = None
    result: Result | None = None
    error: Failure | None = None
    reason: str | None = None
    cancel_requested: bool = False
    waiting_for: list[WaitingFor] = Field(default_factory=list)
    metadata: Any = None
    requirements: dict[str, Any] | None = None
    template: str | None = Field(None, description="The template's version that it was made from.")
    params: dict[str, Any] | None = Field(
        None,
        description="The template's parameters as they were bound, drawn seeds among them; long ones are left out.",
    )
    models: list[str] = Field(default_factory=list, description="The heavy model files that it needs.")
    group: str | None = None
    depends_on: list[str] = Field(default_factory=list)
    timeout_s: float | None = None
    created_at: EpochMs | None = None
    due_at: EpochMs | None = None
    expires_at: EpochMs | None = None
    claimed_at: EpochMs | None = None
    started_at: EpochMs | None = None
    executed_at: EpochMs | None = None
    finished_at: EpochMs | None = None
    tenant: str | None = None


class HeldJob(Outgoing):
    """A job in a worker's hands."""

    job_id: str
    phase: str


class Worker(Outgoing):
    """A worker's public record."""

    worker_id: str
    machine_id: str | None = None
    status: str = Field(description="idle, busy, draining, unhealthy or offline.")
    paused: bool = False
    draining: bool = False
    via: str | None = Field(None, description="redis or gateway.")
    jobs: list[HeldJob] = Field(default_factory=list)
    gpus: Any = None
    loaded_models: list[str] = Field(default_factory=list)
    version: str | None = None
    comfyui_version: str | None = None
    manager_version: str | None = None
    manager_security: str | None = Field(None, description="ComfyUI-Manager's security_level.")
    python_version: str | None = None
    torch_version: str | None = None
    gpu_count: int | None = Field(None, description="As `GPU_COUNT` says; one ComfyUI runs one prompt at a time.")
    labels: dict[str, str] = Field(default_factory=dict, description="What its `COMFYUI_HOST` … say.")
    supported_job_types: list[str] = Field(default_factory=list)
    tags: list[str] = Field(default_factory=list)
    simulated: bool = Field(False, description="It only behaves like a ComfyUI, for load and for looking.")
    slots: int | None = None
    last_heartbeat: EpochMs | None = None
    registered_at: EpochMs | None = None


class Stats(Outgoing):
    """The queue's figures; ``jobs`` counts by status."""

    jobs: dict[str, int]
    queued: int = Field(description="Waiting jobs: pending, scheduled and blocked.")
    running: int = Field(description="Claimed and processing jobs.")
    depth_by_priority: dict[str, int] = Field(default_factory=dict)
    oldest_wait_ms: int | None = None
    oldest_job_id: str | None = Field(None, description="The job that waits longest.")
    workers: dict[str, int] = Field(
        default_factory=dict, description="Live workers by state, their `total`, and `down`: known and gone."
    )
    totals: dict[str, int] = Field(default_factory=dict, description="Counters since the pool was made.")
    dead: int = Field(0, description="Dead letters.")
    failed_last_hour: int | None = Field(None, description="Jobs that failed in the last hour; of the whole pool only.")
    estimates: dict[str, int] = Field(
        default_factory=dict, description="Started jobs that had an `estimated_start`, and how many kept p50 and p90."
    )
    paused: bool = False


class Health(Outgoing):
    """``GET /health``."""

    status: Literal["ok", "unavailable"]
    redis: Literal["ok", "unavailable"]
    version: str
    uptime_s: float


class ErrorBody(Outgoing):
    """An error, as a frame and as the body of an HTTP response."""

    type: Literal["error"] = "error"
    message_id: str | None = None
    code: ErrorCode
    error: str = Field(description="One sentence a person can act on.")
    details: dict[str, Any] = Field(default_factory=dict)
    retry_after_s: float | None = Field(None, description="With rate_limited and queue_full.")
    timestamp: EpochMs
