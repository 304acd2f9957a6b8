"""The types that messages are made of: strict values, bounded strings, states."""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

CONTROL_FREE = r"^[^\x00-\x1f\x7f]*$"
"""Names travel in newline-joined lists and in log lines."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=CONTROL_FREE)]
"""A job, worker, group or node id."""
Name = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=CONTROL_FREE)]
"""A model file, node class, tag or file name."""
MessageId = Annotated[str, StringConstraints(max_length=128)]
EpochMs = Annotated[int, Field(ge=0, le=2**53)]
"""Milliseconds since 1970, by Redis' clock where a record says so."""
Blake3 = Annotated[str, StringConstraints(pattern=r"^blake3:[0-9a-f]{64}$")]


class JobStatus(StrEnum):
    """The states of a job; ``docs/protocol.md`` draws the transitions."""

    SCHEDULED = "scheduled"
    BLOCKED = "blocked"
    PENDING = "pending"
    CLAIMED = "claimed"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


WAITING = frozenset({JobStatus.SCHEDULED, JobStatus.BLOCKED, JobStatus.PENDING})
"""Not handed to a worker yet."""
ACTIVE = frozenset({JobStatus.CLAIMED, JobStatus.PROCESSING})
"""Held by a worker."""
TERMINAL = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})
"""Ended; only a forced retry changes it."""

Status = Annotated[JobStatus, Field(strict=False)]


def now_ms() -> int:
    """This machine's clock in epoch milliseconds, for the ``timestamp`` of messages."""
    return time.time_ns() // 1_000_000


class Model(BaseModel):
    """Unknown fields are ignored; values are not coerced (``true`` is no number, ``"5"`` neither)."""

    # An error says what is wrong, not what was sent: it may end in a log.
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False, hide_input_in_errors=True)


class Incoming(Model):
    """What a client or worker sends: an explicit ``null`` means the field was left out."""

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if v is not None} if isinstance(data, dict) else data


class Outgoing(Model):
    """What a broker sends; answers may grow, so readers keep what they do not know."""

    model_config = ConfigDict(extra="allow", strict=True)


class Message(Incoming):
    """A request over the socket."""

    message_id: MessageId | None = Field(None, description="Echoed by the direct reply.")
    timestamp: Any = Field(None, description="Not looked at.")


class Reply(Outgoing):
    """A message of the broker."""

    message_id: str | None = Field(None, description="The request's, when this is its direct reply.")
    timestamp: EpochMs = Field(default_factory=now_ms)

    def wire(self) -> dict[str, Any]:
        """The message as a dict ready for JSON."""
        return self.model_dump(mode="json")
