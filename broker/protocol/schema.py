"""The JSON Schema of the wire contract, generated from the models.

``python -m broker.protocol.schema docs/schema.json`` writes it; a test keeps the file equal.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from . import events, gateway, messages, records, templates

REPLIES: tuple[type[BaseModel], ...] = (
    messages.JobAccepted, messages.JobsAccepted, messages.JobStatusReply, messages.JobList, messages.GroupStatus,
    messages.GroupDone,
    messages.StatsReply, messages.SubscriptionConfirmed, messages.Ack, messages.ErrorMessage,
)  # fmt: skip
EVENTS: tuple[type[BaseModel], ...] = (
    events.JobUpdate, events.JobProgress, events.JobCompleted, events.JobFailed, events.Reset, events.StatsBroadcast,
)  # fmt: skip
RECORDS: tuple[type[BaseModel], ...] = (
    records.Job, records.Worker, records.Stats, records.Health, templates.TemplateStored, templates.TemplateList,
    templates.Template, templates.BoundTemplate, templates.TemplatesRemoved,
)  # fmt: skip


def schema() -> dict[str, Any]:
    """One document: every model under ``$defs``, and the four families as ``oneOf`` lists."""
    incoming: list[type[BaseModel]] = [
        *messages.CLIENT_MESSAGES,
        *gateway.WORKER_MESSAGES,
        messages.InputFile,
        templates.PutTemplate,
    ]
    outgoing: list[type[BaseModel]] = [*REPLIES, *EVENTS, *gateway.GATEWAY_REPLIES, *RECORDS]
    _, first = models_json_schema([(m, "validation") for m in incoming])
    _, second = models_json_schema([(m, "serialization") for m in outgoing])
    families = {
        "ClientMessage": messages.CLIENT_MESSAGES,
        "ServerMessage": (*REPLIES, *EVENTS),
        "WorkerMessage": gateway.WORKER_MESSAGES,
        "GatewayMessage": gateway.GATEWAY_REPLIES,
    }
    unions = {name: {"oneOf": [{"$ref": f"#/$defs/{m.__name__}"} for m in group]} for name, group in families.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "EMQ wire contract",
        "$defs": {**first["$defs"], **second["$defs"], **unions},
    }


def text() -> str:
    """The document as it lies in ``docs/schema.json``."""
    return json.dumps(schema(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
