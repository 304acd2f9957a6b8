"""The events of a job as a client sees them."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from broker.protocol.base import TERMINAL, JobStatus
from broker.protocol.events import JobCompleted, JobFailed, JobProgress, JobUpdate, Reset

Event = JobUpdate | JobProgress | JobCompleted | JobFailed | Reset
EVENTS = frozenset({"job_update", "update_job_progress", "complete_job", "fail_job", "reset"})
HEAD = struct.Struct(">II")
FORMAT = 4
"""ComfyUI's binary event type for a preview with metadata."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A live preview: ``image`` is a file of the type ``image_type`` (``image/jpeg``)."""

    job_id: str
    node_id: str | None
    image_type: str
    image: bytes


@cache
def _events() -> TypeAdapter[Event]:
    return TypeAdapter(Annotated[Event, Field(discriminator="type")])


def parse_event(message: dict[str, Any]) -> Event:
    """A message that has an ``event_id`` as its model. Raises pydantic's ``ValidationError``."""
    return _events().validate_python(message)


def parse_preview(frame: bytes) -> Preview | None:
    """A binary frame as a preview; ``None`` for one of another kind."""
    if len(frame) < HEAD.size:
        return None
    kind, length = HEAD.unpack_from(frame)
    if kind != FORMAT:
        return None
    about = json.loads(frame[HEAD.size : HEAD.size + length])
    image = frame[HEAD.size + length :]
    return Preview(about["job_id"], about.get("node_id"), about.get("image_type", "image/jpeg"), image)


def ends(event: Event) -> bool:
    """Whether the job is over with this event (a forced retry would start a new round)."""
    if isinstance(event, JobFailed):
        return not event.will_retry
    if isinstance(event, JobUpdate):
        return event.status == JobStatus.CANCELLED
    return isinstance(event, JobCompleted) or (isinstance(event, Reset) and event.record.status in TERMINAL)
