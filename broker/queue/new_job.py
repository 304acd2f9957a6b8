"""A new job as the queue takes it, and how many of them go in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from broker.queue.seal import Seal, payload_of

SUBMIT_CHUNK, SUBMIT_BYTES = 50, 1 << 20
"""Jobs of one ``emq_submit``, and bytes of theirs unless one alone has more: with a worker woken for each it stays
under 5 ms."""

Value = str | bytes | int | float | bool


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

    def pairs(self, same: bool = False) -> list[tuple[str, Value | None]]:
        """The job's section of ``emq_submit``; what has its default is left out.

        ``same``: an earlier job of the call has the same class, and said what that needs.
        """
        return [
            ("job", self.job_id), ("class", self.job_class), *(() if same else self._needs()),
            ("spec_len", len(self.spec)), ("payload", self.spec + self.payload),
            ("job_type", self.job_type if self.job_type != "comfyui" else None), ("priority", self.priority or None),
            ("max_attempts", self.max_attempts if self.max_attempts != 3 else None),
            ("timeout_s", self.timeout_s), ("delay_ms", self.delay_ms), ("start_at", self.start_at),
            ("expires_ms", self.expires_ms), ("idem", self.idempotency_key), ("body", self.body_digest),
            ("depends_on", "\n".join(self.depends_on) or None),
            ("on_parent_failure", self.on_parent_failure if self.on_parent_failure != "fail" else None),
            ("group", self.group), ("est", self.estimate), ("labels", "".join(self.labels) or None),
            ("hook", self.hook), ("trace", self.trace),
        ]  # fmt: skip

    def _needs(self) -> tuple[tuple[str, Value | None], ...]:
        """What its class needs."""
        kind = "\n".join(self.kind) or None
        return ("atoms", "\n".join(self.atoms)), ("kind", kind), ("vram_mb", self.vram_mb or None)


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
    pairs: list[tuple[str, Value | None]] = [("tenant", tenant), *(limits or {}).items()]
    said: set[str] = set()
    for job in jobs:
        if seal.active:
            job.payload = seal.close(job.payload, payload_of(job.job_id))
        pairs.extend(job.pairs(job.job_class in said))
        said.add(job.job_class)
    return flatten(pairs)
