"""Webhooks over HTTP: a tenant's secret, a job's deliveries."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from broker.protocol.base import CONTROL_FREE, EpochMs, Message, Outgoing


class Redeliver(Message):
    """``POST /api/jobs/{job_id}/webhooks/redeliver``."""

    type: Literal["redeliver"] = "redeliver"
    entry: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=CONTROL_FREE)] = Field(
        description="As the log names it."
    )


class WebhookSecret(Outgoing):
    """What a receiver checks signatures with."""

    secret: str = Field(description="whsec_<base64>, as the Standard Webhooks libraries take it.")


class Delivery(Outgoing):
    """One try to deliver."""

    entry: str = Field(description="What is told: job, event, attempt and round.")
    event: str
    webhook_id: str = Field(description="The same for every try.")
    at: EpochMs
    status: int | None = Field(None, description="HTTP status; null when there was no answer.")
    ms: int = 0
    error: str | None = None
    again_s: float | None = Field(None, description="When it is tried again; null: no more.")


class DeliveryList(Outgoing):
    """A job's deliveries, oldest first; the last 50 of seven days."""

    deliveries: list[Delivery]
