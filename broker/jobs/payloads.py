"""What a submit leaves in the queue beside the record's fields: the payload's bytes, its files, the spec, digests."""

from __future__ import annotations

import zlib
from typing import Any

from blake3 import blake3
from pydantic import ValidationError

from broker.errors import BadMessage
from broker.jobs import strict
from broker.jobs.ranges import Problem
from broker.jobs.templates import Bound
from broker.jobs.workflow import Graph, check_inputs
from broker.protocol.messages import MAX_PARENTS, InputFile, SubmitJob

NOT_IN_BODY = frozenset(
    {"message_id", "timestamp", "type", "subscribe", "strict", "dry_run", "idempotency_key", "traceparent"}
)
"""Fields that do not change which job a submit means: a repeated one may differ in them."""


def message_errors(exc: ValidationError) -> BadMessage:
    """What pydantic found, as one sentence about the first problem and all of them in ``details.errors``."""
    found = [
        {"field": ".".join(str(part) for part in error["loc"])[:200], "problem": error["msg"]}
        for error in exc.errors(include_url=False, include_context=False, include_input=False)[:20]
    ]
    first = found[0]
    where = f"{first['field']}: " if first["field"] else ""
    return BadMessage(f"{where}{first['problem'].removeprefix('Value error, ')}.", errors=found)


def encode_payload(payload: dict[str, Any]) -> bytes:
    """The bytes the queue keeps: JSON, or zlib of it when that is smaller (the first byte tells)."""
    plain = strict.dumps(payload).encode()
    packed = zlib.compress(plain, 1)
    return packed if len(packed) < len(plain) else plain


def decode_payload(stored: bytes) -> Any:
    """The payload from the queue's bytes."""
    return strict.parse(stored if stored[:1] == b"{" else zlib.decompress(stored))


def checked_inputs(inputs: Any, graph: Graph) -> dict[str, dict[str, Any]]:
    """``payload.inputs`` as it is kept; raises ``BadMessage``, ``InvalidWorkflow``."""
    if not isinstance(inputs, dict):
        raise BadMessage("payload.inputs must map node_id.input_name to a source.")
    result: dict[str, dict[str, Any]] = {}
    for key, value in inputs.items():
        try:
            result[key] = InputFile.model_validate(value).model_dump(exclude_none=True)
        except ValidationError as exc:
            error = message_errors(exc)
            raise BadMessage(f"payload.inputs[{key[:160]!r}]: {error.message}", **error.details) from None
    check_inputs(result, graph)
    return result


def with_parents(submit: SubmitJob, payload: dict[str, Any]) -> SubmitJob:
    """Make the job depend on those whose outputs it takes; raises ``BadMessage`` when they are too many.

    A job can only name jobs that are there before it, so no two of them can wait for each other.
    """
    inputs = payload.get("inputs") if submit.job_type == "comfyui" else None
    sources = inputs.values() if isinstance(inputs, dict) else ()
    parents = list(dict.fromkeys([*submit.depends_on, *(s["output"]["job_id"] for s in sources if s.get("output"))]))
    if len(parents) > MAX_PARENTS:
        raise BadMessage(f"A job depends on at most {MAX_PARENTS} others, those whose outputs it takes included.")
    return submit.model_copy(update={"depends_on": parents})


def spec_of(submit: SubmitJob, problems: list[Problem], bound: Bound | None, *, secret: bool = False) -> bytes:
    """What the record keeps beside its fields; small, for every waiting job has one.

    ``secret``: payloads are encrypted, so of a template's parameters only drawn seeds may stand here.
    """
    given = {k: v for k, v in submit.requirements.model_dump().items() if v}
    fields = {
        "requirements": given,
        "metadata": submit.metadata,
        "webhook_url": submit.webhook_url,
        "depends_on": submit.depends_on,
        "suspects": [problem.suspect() for problem in problems],
        "template": bound and bound.template,
        "params": bound and bound.recorded(secret=secret),
    }
    # An empty list says nothing, except in metadata, which comes back as it was given.
    kept = {k: v for k, v in fields.items() if v is not None and (k == "metadata" or v not in ({}, []))}
    return strict.dumps(kept).encode()


def told(bound: Bound | None) -> dict[str, Any]:
    """What an answer says of a template: a duplicate's parameters are those of the first, which its record has."""
    return {"template": bound.template, "params": bound.recorded()} if bound else {}


def digest(data: bytes) -> str:
    """128 bits that stand for ``data``."""
    return blake3(data).hexdigest()[:32]


def body_digest(submit: SubmitJob) -> str:
    """What tells a repeated submit from another one with the same idempotency key."""
    return digest(strict.canonical(submit.model_dump(mode="json", exclude=set(NOT_IN_BODY))))
