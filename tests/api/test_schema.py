"""The published schema is the models', and what the broker sends fits it."""

from __future__ import annotations

import pytest

from broker.protocol import messages, schema
from broker.protocol.base import Message
from tests.api.conftest import Broker, submit
from tests.support.schema import SCHEMA, validator


def test_the_schema_in_docs_is_the_models() -> None:
    assert SCHEMA.read_text() == schema.text(), "run: python -m broker.protocol.schema docs/schema.json"


async def test_what_a_client_hears_fits_the_schema(broker: Broker, valkey_url: str) -> None:
    async with broker.client() as client:
        for message in (
            submit(message_id="1"), {"type": "make_coffee"}, {"type": "request_stats"}, {"type": "list_jobs"},
            {"type": "subscribe_stats"},
        ):  # fmt: skip
            await client.send(message)
            await client.next()
        async with broker.worker().running(valkey_url):
            job = (await client.until("complete_job"))["job_id"]
        await client.ask({"type": "request_job_status", "job_id": job})
        await client.ask({"type": "force_retry_job", "job_id": job})
        await client.ask({"type": "subscribe_job", "job_id": job, "after": "other.1-0"})
        await client.until("reset")
        await client.ask({"type": "submit_jobs", "jobs": [submit(group="g")]})
        await client.ask({"type": "request_group", "group": "g"})
        while not any(message["type"] == "stats_broadcast" for message in client.heard):
            await client.next()
    kinds = set()
    for message in client.heard:
        kinds.add(message["type"])
        validator("ServerMessage", message["type"]).validate(message)
    assert kinds >= {
        "job_accepted", "error", "response_stats", "job_list", "subscription_confirmed", "job_update", "complete_job",
        "update_job_progress", "response_job_status", "ack", "reset", "jobs_accepted", "group_status",
        "stats_broadcast",
    }  # fmt: skip


@pytest.mark.parametrize("model", messages.CLIENT_MESSAGES, ids=lambda m: m.__name__)
def test_every_message_says_what_it_is(model: type[Message]) -> None:
    assert model.__doc__
