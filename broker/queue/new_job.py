"""A new job as the queue takes it, and how many of them go in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from broker.queue.seal import Seal, payload_of

SUBMIT_CHUNK, SUBMIT_BYTES = 50, 1 << 20
"""Jobs of one ``emq_submit``, and bytes of theirs unless one alone has more: with a worker woken for each it stays
under 5 ms."""

Value = str | bytes | int | float | bool

_RARE = ("timeout_s", "delay_ms", "start_at", "expires_ms", "idem", "body", "group", "est", "hook", "trace")
_NONE = (None,) * len(_RARE)


@dataclass(slots=True)
class NewJob:
    """What a submit hands to the queue; ``None`` leaves the function's default."""

    job_id: str
    payload: bytes
    spec: bytes
    job_class: str
    atoms: Sequence[str]
    job_type: str = "comfyui"
    priority: int = 0
    kind: Sequence[str] = ()
    vram_mb: int = 0
    max_attempts: int = 3
    timeout_s: float | None = None
    delay_ms: int | None = None
    start_at: int | None = None
    expires_ms: int | None = None
    idempotency_key: str | None = None
    body_digest: str | None = None
    depends_on: Sequence[str] = ()
    on_parent_failure: str = "fail"
    group: str | None = None
    estimate: str | None = None
    labels: Sequence[str] = ()
    hook: str | None = None
    """Events that a webhook is told of, joined by spaces."""
    trace: str | None = None
    """The context of its submit's span (a ``traceparent``), where it has a trace."""

    def arguments(self, before: NewJob | None = None, same: bool = False) -> list[bytes | str]:
        """The job's section of ``emq_submit``; what has its default is left out.

        ``before``: the job before it in the call. ``same``: an earlier one has the same class, and said what that
        needs.
        """
        like = before if before is not None and before.job_class == self.job_class else None
        out: list[bytes | str] = ["again", self.job_id]
        if like is None:
            out = ["job", self.job_id, "class", self.job_class, *(() if same else self._needs())]
        if like is None or len(like.spec) != len(self.spec):
            out += ("spec_len", str(len(self.spec)))
        out += ("payload", self.spec + self.payload)
        if self.job_type != "comfyui":
            out += ("job_type", self.job_type)
        if self.priority:
            out += ("priority", str(self.priority))
        if self.max_attempts != 3:
            out += ("max_attempts", str(self.max_attempts))
        if self.depends_on:
            out += ("depends_on", "\n".join(self.depends_on))
        if self.on_parent_failure != "fail":
            out += ("on_parent_failure", self.on_parent_failure)
        if self.labels:
            out += ("labels", "".join(self.labels))
        rare = self._rare()
        if rare != _NONE:
            for name, value in zip(_RARE, rare, strict=True):
                if value is not None:
                    out += (name, str(value))
        return out

    def _needs(self) -> list[str]:
        """What its class needs."""
        out = ["atoms", "\n".join(self.atoms)]
        if self.kind:
            out += ("kind", "\n".join(self.kind))
        if self.vram_mb:
            out += ("vram_mb", str(self.vram_mb))
        return out

    def _rare(self) -> tuple[str | float | None, ...]:
        """What most jobs have not."""
        return (
            self.timeout_s, self.delay_ms, self.start_at, self.expires_ms, self.idempotency_key, self.body_digest,
            self.group, self.estimate, self.hook, self.trace,
        )  # fmt: skip


def flatten(pairs: Iterable[tuple[str, Value | None]]) -> list[bytes | str]:
    """Name/value pairs as a function's flat arguments; ``None`` is left out."""
    out: list[bytes | str] = []
    for name, value in pairs:
        if value is None:
            continue
        out.append(name)
        if isinstance(value, bool):
            out.append("1" if value else "0")
        else:
            out.append(value if isinstance(value, bytes | str) else str(value))
    return out


def parts_of(jobs: Sequence[NewJob]) -> Iterator[Sequence[NewJob]]:
    """Jobs in their order, so many together as one call may take."""
    start = size = 0
    for end, job in enumerate(jobs):
        more = len(job.spec) + len(job.payload)
        if end > start and (end - start == SUBMIT_CHUNK or size + more > SUBMIT_BYTES):
            yield jobs[start:end]
            start, size = end, 0
        size += more
    if len(jobs) > start:
        yield jobs[start:]


def submission(
    tenant: str, limits: Mapping[str, Value | None] | None, jobs: Sequence[NewJob], seal: Seal
) -> list[bytes | str]:
    """The arguments of a submit; payloads are sealed here."""
    args = flatten([("tenant", tenant), *(limits or {}).items()])
    said: set[str] = set()
    before = None
    for job in jobs:
        if seal.active:
            job.payload = seal.close(job.payload, payload_of(job.job_id))
        args += job.arguments(before, job.job_class in said)
        said.add(job.job_class)
        before = job
    return args
