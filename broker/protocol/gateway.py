"""The worker gateway's messages: what a worker behind NAT says over ``/ws/worker``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints

from .base import Id, Incoming, Message, Name, Reply

Token = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[\x21-\x7e]+$")]
"""A lease or claim token; opaque."""
WorkerState = Literal["idle", "busy", "draining", "unhealthy"]


class Gpu(Incoming):
    """One GPU as registered."""

    name: Name = "unknown"
    vram_mb: int = Field(0, ge=0)


class GpuLoad(Incoming):
    """One GPU as of now."""

    vram_free_mb: float | None = None
    utilisation: float | None = None


class Capabilities(Incoming):
    """What a worker can do."""

    version: Name | None = None
    comfyui_version: Name | None = None
    manager_version: str | None = Field(None, max_length=128, description="ComfyUI-Manager's; empty without one.")
    manager_security: str | None = Field(None, max_length=128, description="Its security_level.")
    supported_job_types: list[Name] = Field(default_factory=lambda: ["comfyui"], max_length=64)
    node_classes: list[Name] = Field(default_factory=list, max_length=50_000)
    models: dict[Name, list[Name]] = Field(default_factory=dict, description="Folder → file names.")
    model_inputs: dict[Name, dict[Name, Name]] | None = Field(None, description="Class → input → folder.")
    ranges: dict[str, Any] | None = Field(
        None,
        description="What values inputs take: `lists` of choices, and by class `r` required, `n` numbers, `c` lists.",
    )
    python_version: str | None = Field(None, max_length=128)
    torch_version: str | None = Field(None, max_length=128)
    gpus: list[Gpu] = Field(default_factory=list, max_length=64)
    gpu_count: int | None = Field(None, ge=0, le=65_535, description="Only shown.")
    labels: dict[Name, Name] = Field(default_factory=dict, max_length=16, description="Only shown.")
    tags: list[Name] = Field(default_factory=list, max_length=64)
    slots: int = Field(1, ge=1, le=64, description="Prompts executing at once.")
    simulated: bool = Field(False, description="It only behaves like a ComfyUI; pages say so.")


class ClaimFields(Incoming):
    """What a message that also claims the next job carries."""

    claim: bool = False
    claim_token: Token | None = None
    loaded_models: list[Name] | None = Field(None, max_length=1024)


class HeldLease(Incoming):
    """A job a worker still has."""

    job_id: Id
    lease: Token


class RegisterWorker(Message):
    """Join the fleet; a second process with the same ``worker_id`` supersedes the first."""

    type: Literal["register_worker"] = "register_worker"
    worker_id: Id
    machine_id: Id | None = None
    capabilities: Capabilities = Field(default_factory=Capabilities)
    status: WorkerState = "idle"
    instance: Id | None = Field(None, description="The one it had before, when this process comes back.")
    jobs: list[HeldLease] | None = Field(None, max_length=256, description="What it still has from then.")


class WorkerStatus(Message):
    """Anything of ``capabilities`` that changed, in ``capabilities`` or beside it."""

    model_config = ConfigDict(extra="allow")

    type: Literal["worker_status"] = "worker_status"
    worker_id: Id | None = None
    capabilities: dict[str, Any] = Field(default_factory=dict)
    status: WorkerState | None = None

    def changes(self) -> dict[str, Any]:
        """What changed, not checked yet."""
        beside = {name: value for name, value in (self.model_extra or {}).items() if name in Capabilities.model_fields}
        return beside | self.capabilities


class SteerWorker(Message):
    """Pause, resume or drain this worker itself; resuming ends a drain too."""

    type: Literal["steer_worker"] = "steer_worker"
    worker_id: Id | None = None
    word: Literal["pause", "resume", "drain"]


class ClaimJob(Message):
    """Take a named job, or the best one for this worker."""

    type: Literal["claim_job"] = "claim_job"
    worker_id: Id | None = None
    claim_token: Token | None = None
    job_id: Id | None = None
    loaded_models: list[Name] | None = Field(None, max_length=1024)
    ahead: bool = Field(False, description="While another job runs: to fetch its inputs before.")


class WorkerHeartbeat(Message):
    """Alive, and with these jobs."""

    type: Literal["worker_heartbeat"] = "worker_heartbeat"
    worker_id: Id | None = None
    status: WorkerState = "idle"
    jobs: list[HeldLease] = Field(default_factory=list, max_length=256)
    loaded_models: list[Name] | None = Field(None, max_length=1024)
    gpus: list[GpuLoad] = Field(default_factory=list, max_length=64)


class _Leased(Message):
    worker_id: Id | None = None
    job_id: Id
    lease: Token


class NodeProgress(Incoming):
    """The node that executes."""

    id: Id
    class_type: Name | None = None
    value: float | None = None
    max: float | None = None


class WorkerProgress(_Leased):
    """Progress; the first one starts the job."""

    type: Literal["update_job_progress"] = "update_job_progress"
    progress: float = Field(ge=0, le=100)
    node: NodeProgress | None = None
    nodes_done: int | None = Field(None, ge=0)
    nodes_total: int | None = Field(None, ge=0)
    eta_s: float | None = Field(None, ge=0)
    message: Annotated[str, StringConstraints(max_length=512)] | None = None


class Step(Incoming):
    """A step of a claim, for its trace."""

    kind: Literal["inputs", "execution", "node", "upload"]
    start_ms: int = Field(ge=0, description="After the claim.")
    ms: int = Field(ge=0, description="How long it took.")
    node_id: Id | None = None
    class_type: Name | None = None


class Steps(Incoming):
    """What a worker tells of a claim whose job has a trace."""

    steps: list[Step] = Field(default_factory=list, max_length=256)


class JobExecuted(_Leased, ClaimFields):
    """The GPU is free; outputs are still uploading."""

    type: Literal["job_executed"] = "job_executed"
    timings: dict[str, Any] = Field(default_factory=dict)
    cold: bool = Field(False, description="Models were loaded for it.")


class WorkerComplete(_Leased, ClaimFields):
    """The job is done; repeated with the same lease it has no second effect."""

    type: Literal["complete_job"] = "complete_job"
    result: dict[str, Any] = Field(default_factory=dict)
    cold: bool = Field(False, description="Models were loaded for it.")
    trace: Steps | None = Field(None, description="With a `traceparent` in `job_assigned`: the steps.")


class WorkerFailure(Incoming):
    """Why an attempt failed."""

    code: Annotated[str, StringConstraints(min_length=1, max_length=64)] = "node_error"
    message: str = ""
    node_id: Id | None = None
    node_type: Name | None = None
    details: Any = None


class WorkerFail(_Leased, ClaimFields):
    """The attempt failed, or (``hand_back``) this worker cannot run the job."""

    type: Literal["fail_job"] = "fail_job"
    error: WorkerFailure
    hand_back: bool = False
    missing: list[Name] = Field(
        default_factory=list, max_length=64, description="With hand_back: n:<node class>, m:<model file>."
    )
    retry: Literal["auto", "no"] = "auto"
    trace: Steps | None = Field(None, description="As in `complete_job`.")


class ReleaseJob(_Leased):
    """Give a job back that has not started."""

    type: Literal["release_job"] = "release_job"
    reason: Annotated[str, StringConstraints(max_length=512)] = ""


class WorkerGone(Message):
    """The process of a worker has died; said over HTTP by whoever saw it. ``instance`` is what its registration told.

    A closed socket alone may be a worker on its way to another broker, so its jobs wait for one lease.
    """

    type: Literal["worker_gone"] = "worker_gone"
    worker_id: Id
    instance: Token


WORKER_MESSAGES: tuple[type[Message], ...] = (
    RegisterWorker, WorkerStatus, SteerWorker, ClaimJob, WorkerHeartbeat, WorkerProgress, JobExecuted, WorkerComplete,
    WorkerFail, ReleaseJob,
)  # fmt: skip


class WorkerRegistered(Reply):
    """Part of the fleet."""

    type: Literal["worker_registered"] = "worker_registered"
    worker_id: str
    instance: str
    lease_s: float


class Superseded(Reply):
    """Another process registered with this ``worker_id``: stop."""

    type: Literal["superseded"] = "superseded"
    worker_id: str


class JobAvailable(Reply):
    """A hint to an idle worker."""

    type: Literal["job_available"] = "job_available"
    job_id: str | None = None
    job_type: str | None = None
    priority: int | None = None


class Uploads(Incoming):
    """Where outputs go."""

    url_prefix: str
    authorization: str
    max_bytes: int


class JobAssigned(Reply):
    """A claimed job."""

    type: Literal["job_assigned"] = "job_assigned"
    job_id: str
    attempt: int
    lease: str
    lease_s: float
    job_type: str
    priority: int
    payload: dict[str, Any]
    timeout_s: float | None = None
    round: int = 1
    watch: bool = Field(False, description="Somebody watches its previews.")
    preview_px: int | None = Field(None, description="How large they may be; else 256 pixels.")
    input_urls: str | None = Field(None, description="Where its input files may be fetched from (EMQ_INPUT_URLS).")
    queued_ms: int | None = None
    rules: str = Field("", description="What the job's tenant may use (JSON); the worker looks at it again.")
    traceparent: str | None = Field(None, description="The job has a trace: tell its steps at the end.")
    uploads: Uploads


class JobVerdict(Incoming):
    """A held job, as the queue sees it."""

    job_id: str
    state: Literal["ok", "cancel", "lost"]
    reason: str | None = None


class HeartbeatAck(Reply):
    """What the queue wants of this worker."""

    type: Literal["worker_heartbeat_ack"] = "worker_heartbeat_ack"
    worker_id: str
    jobs: list[JobVerdict] = Field(default_factory=list)
    work: bool = False
    pause: bool = False
    drain: bool = False
    watch: list[str] = Field(default_factory=list, description="Jobs whose previews somebody watches.")


class JobExecutedAck(Reply):
    """The reply to ``job_executed``."""

    type: Literal["job_executed_ack"] = "job_executed_ack"
    job_id: str


class CompleteJobAck(Reply):
    """The reply to ``complete_job``."""

    type: Literal["complete_job_ack"] = "complete_job_ack"
    job_id: str
    status: str | None = None


class JobFailedAck(Reply):
    """The reply to ``fail_job``."""

    type: Literal["job_failed_ack"] = "job_failed_ack"
    job_id: str
    status: str | None = None
    will_retry: bool | None = None


class CancelOrder(Reply):
    """The broker tells the worker to stop a job."""

    type: Literal["cancel_job"] = "cancel_job"
    job_id: str
    lease: str | None = None
    reason: str | None = None


class WorkerOrder(Reply):
    """A hint to the worker; the next heartbeat's answer repeats it."""

    type: Literal["pause", "resume", "drain"]
    worker_id: str


class WatchJob(Reply):
    """Somebody watches a job's previews now."""

    type: Literal["watch_job"] = "watch_job"
    job_id: str
    px: int | None = Field(None, description="How large its previews may be; else 256 pixels.")


GATEWAY_REPLIES: tuple[type[Reply], ...] = (
    WorkerRegistered, Superseded, JobAvailable, JobAssigned, HeartbeatAck, JobExecutedAck, CompleteJobAck,
    JobFailedAck, CancelOrder, WorkerOrder, WatchJob,
)  # fmt: skip
