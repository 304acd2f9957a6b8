"""What clients send, and the broker's direct replies."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from .base import Blake3, EpochMs, Id, Incoming, JobStatus, Message, Name, Reply, Status
from .records import ErrorBody, EstimatedStart, Job, Stats, WaitingFor

DAY_S = 86_400.0
YEAR_S = 366 * DAY_S
MAX_PARENTS = 1000
Label = Annotated[str, StringConstraints(max_length=256)]
WebhookEvent = Literal["started", "retrying", "completed", "failed", "cancelled"]
Priority = Annotated[int, Field(ge=-100, le=100)]


class OutputRef(Incoming):
    """A file that another job of the same tenant made; the job that takes it depends on that one."""

    job_id: Id
    node_id: Id
    index: int = Field(0, ge=0, le=100_000, description="Which of the node's files.")


class InputFile(Incoming):
    """Where an input file comes from: exactly one of ``url``, ``asset``, ``base64``, ``output``."""

    url: Annotated[str, StringConstraints(max_length=8192, pattern=r"^https?://[^\s/]+")] | None = None
    asset: Blake3 | None = None
    base64: str | None = None
    output: OutputRef | None = None
    filename: Name | None = Field(None, description="A label; only its extension is used.")
    hash: Blake3 | None = Field(None, description="What the content must be; the job fails if it is not.")
    size: int | None = Field(None, ge=0, description="How many bytes it must have.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("url", "asset", "base64", "output") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of url, asset, base64, output")
        return self


class Requirements(Incoming):
    """What a worker must have; the broker adds what the graph itself names."""

    models: list[Name] = Field(default_factory=list, max_length=256)
    node_classes: list[Name] = Field(default_factory=list, max_length=5000)
    min_vram_mb: int = Field(0, ge=0, le=100_000_000)
    tags: list[Name] = Field(default_factory=list, max_length=64)


class SubmitJob(Message):
    """Submit one job; answered by ``job_accepted`` once it is durable."""

    type: Literal["submit_job"] = "submit_job"
    payload: dict[str, Any] = Field(
        description="`workflow` (or `prompt`, or the bare graph) or `template` and `params`; `inputs`, `extra_data`."
    )
    job_type: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = "comfyui"
    priority: Priority = Field(0, description="-100 to 100, higher first.")
    requirements: Requirements = Field(default_factory=Requirements)
    idempotency_key: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    depends_on: list[Id] = Field(
        default_factory=list, max_length=MAX_PARENTS, description="And the jobs whose outputs `payload.inputs` names."
    )
    on_parent_failure: Literal["fail", "run"] = "fail"
    delay_s: float = Field(0, ge=0, le=YEAR_S)
    start_at: EpochMs | None = Field(None, description="Not before this time; epoch ms.")
    expires_s: float | None = Field(None, gt=0, le=YEAR_S, description="Not started by then: failed `expired`.")
    max_attempts: int = Field(3, ge=1, le=100)
    timeout_s: float | None = Field(None, gt=0, le=30 * DAY_S, description="Limit of one execution.")
    metadata: Any = Field(None, description="Yours; comes back with the record.")
    webhook_url: Annotated[str, StringConstraints(max_length=2048, pattern=r"^https?://[^\s/]+")] | None = None
    webhook_events: list[WebhookEvent] = Field(
        ["completed", "failed", "cancelled"], max_length=8, description="What it is told of."
    )
    group: Id | None = None
    traceparent: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="W3C trace context of the client: the job's trace goes on from there."
    )
    subscribe: bool = True
    strict: bool = Field(False, description="Refuse instead of waiting for a worker that could run it.")
    dry_run: bool = Field(False, description="Answer everything, submit nothing.")


class SubmitJobs(Message):
    """Submit up to 1,000 jobs; each gets its own answer."""

    type: Literal["submit_jobs"] = "submit_jobs"
    jobs: list[dict[str, Any]] = Field(min_length=1, max_length=1000, description="`submit_job` messages.")
    group: Id | None = Field(None, description="For those that name none themselves.")


class SetPriority(Message):
    """Move a waiting job."""

    type: Literal["set_priority"] = "set_priority"
    job_id: Id
    priority: Priority | None = None
    front: bool = False

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.priority is None) == (not self.front):
            raise ValueError("give either priority or front:true")
        return self


class _Scoped(Message):
    scope: Literal["pool", "tenant", "worker"] = "pool"
    id: Id | None = Field(None, description="The worker; the tenant (default: your own).")

    @model_validator(mode="after")
    def _worker_is_named(self) -> Self:
        if self.scope == "worker" and self.id is None:
            raise ValueError("id names the worker")
        return self


class Pause(_Scoped):
    """Hand out no more jobs of the pool, a tenant, or to a worker."""

    type: Literal["pause"] = "pause"


class Resume(_Scoped):
    """Undo ``pause`` (and a worker's ``drain_worker``)."""

    type: Literal["resume"] = "resume"


class DrainWorker(Message):
    """Let a worker finish what it has and take nothing new."""

    type: Literal["drain_worker"] = "drain_worker"
    worker_id: Id


class CancelGroup(Message):
    """Cancel every job of a group that has not ended."""

    type: Literal["cancel_group"] = "cancel_group"
    group: Id
    reason: Annotated[str, StringConstraints(max_length=512)] = ""


class RequestGroup(Message):
    """Ask for a group's figures."""

    type: Literal["request_group"] = "request_group"
    group: Id


class SubscribeGroup(Message):
    """Hear ``group_done`` whenever the last open job of a group ends, at once if that has happened."""

    type: Literal["subscribe_group"] = "subscribe_group"
    group: Id
    enabled: bool = True


class SubscribeJob(Message):
    """Every event of a job after ``after``, in order, none missing and none twice."""

    type: Literal["subscribe_job"] = "subscribe_job"
    job_id: Id
    after: Annotated[str, StringConstraints(max_length=128)] | None = None
    previews: bool = False
    preview_px: int = Field(0, ge=0, le=1024, description="Larger previews than 256 pixels, up to this.")


class UnsubscribeJob(Message):
    """End a subscription."""

    type: Literal["unsubscribe_job"] = "unsubscribe_job"
    job_id: Id


class RequestJobStatus(Message):
    """Ask for a job's public record."""

    type: Literal["request_job_status"] = "request_job_status"
    job_id: Id


class CancelJob(Message):
    """Cancel a job; a running one stays ``processing`` until its worker has stopped it."""

    type: Literal["cancel_job"] = "cancel_job"
    job_id: Id
    reason: Annotated[str, StringConstraints(max_length=512)] = ""


class ForceRetryJob(Message):
    """Start a new round of a job that has ended."""

    type: Literal["force_retry_job"] = "force_retry_job"
    job_id: Id


class RetryDead(Message):
    """Start a new round of dead letters: the named ones, or all."""

    type: Literal["retry_dead"] = "retry_dead"
    job_ids: list[Id] | None = Field(None, max_length=1000)


class ListJobs(Message):
    """The newest jobs, page by page; those that every given filter matches. A page may be short before the end."""

    type: Literal["list_jobs"] = "list_jobs"
    status: list[Status] = Field(default_factory=list, description="One state, several (a list or `a,b`), or all.")
    limit: int = Field(50, ge=1, le=1000)
    cursor: Annotated[str, StringConstraints(pattern=r"^[0-9]{0,16}$")] | None = None
    worker: Id | None = Field(None, description="Held or ended by this worker.")
    error: Id | None = Field(None, description="Failed with this code.")
    model: Name | None = Field(None, description="A heavy model file (checkpoint, diffusion model) that it needs.")
    group: Id | None = None
    metadata: dict[Label, Label | bool | int | float] | None = Field(
        None, max_length=8, description="Values that its metadata has; the first eight scalars of a job are indexed."
    )
    since: EpochMs | None = Field(None, description="Submitted at this time or later.")
    until: EpochMs | None = Field(None, description="Submitted at this time or before.")
    age_s: float | None = Field(None, gt=0, le=YEAR_S, description="Submitted within this time.")
    dead: bool = Field(False, description="Dead letters only.")
    tenant: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        None, description="Another tenant's, or `*` for all: for administrators."
    )

    @field_validator("status", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class RequestStats(Message):
    """Ask for the queue's figures."""

    type: Literal["request_stats"] = "request_stats"


class SubscribeStats(Message):
    """Figures, at most once a second and only on change."""

    type: Literal["subscribe_stats"] = "subscribe_stats"
    enabled: bool = True


CLIENT_MESSAGES: tuple[type[Message], ...] = (
    SubmitJob, SubmitJobs, SetPriority, Pause, Resume, DrainWorker, CancelGroup, RequestGroup, SubscribeGroup,
    SubscribeJob, UnsubscribeJob, RequestJobStatus, CancelJob, ForceRetryJob, RetryDead, ListJobs,
    RequestStats, SubscribeStats,
)  # fmt: skip


class JobAccepted(Reply):
    """The job is durable (or known already, or only looked at: ``dry_run``)."""

    type: Literal["job_accepted"] = "job_accepted"
    job_id: str | None = Field(None, description="Absent with `dry_run`.")
    status: Status
    position: int | None = None
    position_exact: bool | None = Field(None, description="False: an estimate, with many tenants' jobs before it.")
    estimated_start: EstimatedStart | None = Field(None, description="Null while unknown.")
    notified_workers: int = 0
    duplicate: bool = False
    waiting_for: list[WaitingFor] = Field(default_factory=list)
    requirements: dict[str, Any] | None = Field(None, description="As completed from the graph.")
    dry_run: bool = False
    template: str | None = Field(None, description="The template's version that was used.")
    params: dict[str, Any] | None = Field(None, description="Its parameters as in the record, drawn seeds among them.")

    def wire(self) -> dict[str, Any]:
        """Without ``job_id`` when nothing was submitted, without ``dry_run`` when something was."""
        return self.model_dump(mode="json", exclude={"job_id"} if self.dry_run else {"dry_run"})


class JobsAccepted(Reply):
    """One answer a job, in order."""

    type: Literal["jobs_accepted"] = "jobs_accepted"
    results: list[dict[str, Any]] = Field(description="job_accepted or error each.")


class JobStatusReply(Job, Reply):
    """A job's public record as a message."""

    type: Literal["response_job_status"] = "response_job_status"


class JobList(Reply):
    """A page of records without their results; ``next_cursor`` null: the end."""

    type: Literal["job_list"] = "job_list"
    jobs: list[Job]
    next_cursor: str | None = None


class GroupStatus(Reply):
    """A group's figures."""

    type: Literal["group_status"] = "group_status"
    group: str
    total: int
    jobs: dict[str, int] = Field(description="Counts by status.")
    done: bool = Field(description="Every job has ended.")
    progress: float = Field(description="Ended jobs in per cent.")


class GroupDone(Reply):
    """The last open job of a group has ended."""

    type: Literal["group_done"] = "group_done"
    group: str
    total: int
    jobs: dict[str, int] = Field(description="Counts by status.")
    ended: int = Field(description="How often that has happened: a group may get more jobs, or one is retried.")


class StatsReply(Reply):
    """The queue's figures."""

    type: Literal["response_stats"] = "response_stats"
    stats: Stats


class SubscriptionConfirmed(Reply):
    """A subscription stands."""

    type: Literal["subscription_confirmed"] = "subscription_confirmed"
    job_id: str | None = None
    group: str | None = Field(None, description="Of subscribe_group.")
    subscribed: bool = True
    enabled: bool | None = Field(None, description="Of subscribe_stats.")


class Ack(Reply):
    """Done."""

    type: Literal["ack"] = "ack"
    job_id: str | None = None
    status: JobStatus | str | None = None


class ErrorMessage(ErrorBody):
    """The refusal of a message; the connection stays open."""
