"""Every message of a client's socket, by every scope; and other tenants' things, which are not there."""

from __future__ import annotations

from typing import Any

import pytest

from broker.protocol.messages import CLIENT_MESSAGES
from tests.access.conftest import Guarded
from tests.api.conftest import Client, submit

SCOPES = ("submit", "read", "worker", "admin")

NEEDS = {
    "submit_job": "submit",
    "submit_jobs": "submit",
    "set_priority": "submit",
    "pause": "submit",
    "resume": "submit",
    "drain_worker": "admin",
    "cancel_group": "submit",
    "request_group": "read",
    "subscribe_group": "read",
    "subscribe_job": "read",
    "unsubscribe_job": "read",
    "request_job_status": "read",
    "cancel_job": "submit",
    "force_retry_job": "submit",
    "retry_dead": "submit",
    "list_jobs": "read",
    "request_stats": "read",
    "subscribe_stats": "read",
}


def test_every_message_says_who_may_send_it() -> None:
    assert set(NEEDS) == {model.model_fields["type"].default for model in CLIENT_MESSAGES}


@pytest.mark.parametrize("scope", SCOPES)
async def test_a_scope_allows_its_messages_and_no_other(guarded: Guarded, scope: str) -> None:
    key = await guarded.key(scope)
    async with guarded.client(key) as client:
        for kind, needed in NEEDS.items():
            reply = await client.ask({"type": kind, "scope": "tenant"})
            refused = reply.get("code") == "forbidden"
            assert refused == (scope not in (needed, "admin")), f"{kind} with {scope}: {reply}"


async def test_a_tenant_pauses_itself_alone(guarded: Guarded) -> None:
    async with guarded.client(await guarded.key("submit")) as client:
        for what in ({"scope": "pool"}, {"scope": "tenant", "id": "foreign"}, {"scope": "worker", "id": "w"}):
            for kind in ("pause", "resume"):
                assert (await client.ask({"type": kind, **what}))["code"] == "forbidden"
        await client.ask(submit())
        reply = await client.ask({"type": "pause", "scope": "tenant", "id": "own"})
        assert reply["type"] == "ack", reply


def about(job: str) -> list[dict[str, Any]]:
    """Every message that names a job."""
    return [
        {"type": "request_job_status", "job_id": job},
        {"type": "subscribe_job", "job_id": job},
        {"type": "cancel_job", "job_id": job},
        {"type": "force_retry_job", "job_id": job},
        {"type": "set_priority", "job_id": job, "front": True},
        submit(depends_on=[job]),
        {**submit(), "payload": {**submit()["payload"], "inputs": {"1.x": output_of(job)}}},
    ]


def output_of(job: str) -> dict[str, Any]:
    return {"output": {"job_id": job, "node_id": "2", "index": 0}}


async def listed(client: Client, **filters: Any) -> set[str]:
    return {job["job_id"] for job in (await client.ask({"type": "list_jobs", **filters}))["jobs"]}


async def test_another_tenants_job_is_one_that_is_not_there(guarded: Guarded) -> None:
    """Word for word: nothing tells a foreign id from one that nobody has."""
    keys = {tenant: await guarded.key("submit", "read", tenant=tenant) for tenant in ("own", "foreign")}
    async with guarded.client(keys["own"]) as own, guarded.client(keys["foreign"]) as foreign:
        job = (await foreign.ask(submit(group="g", idempotency_key="k")))["job_id"]
        missing = "0" * len(job)
        for there, gone in zip(about(job), about(missing), strict=True):
            answers = [await own.ask(message) for message in (there, gone)]
            said = [
                (a.get("code"), str(a.get("error")).replace(i, ""))
                for a, i in zip(answers, (job, missing), strict=True)
            ]
            assert said[0] == said[1], there["type"]
            assert said[0][0] == "not_found", f"{there['type']}: {answers[0]}"
        mine = (await own.ask(submit(group="g", idempotency_key="k")))["job_id"]
        assert mine != job, "idempotency keys are a tenant's own"
        assert await listed(own) == {mine}
        assert await listed(own, group="g") == {mine}
        assert (await own.ask({"type": "list_jobs", "tenant": "foreign"}))["code"] == "forbidden"
        assert (await own.ask({"type": "list_jobs", "tenant": "*"}))["code"] == "forbidden"
        assert (await own.ask({"type": "request_group", "group": "g"}))["total"] == 1
        assert (await own.ask({"type": "cancel_group", "group": "g"}))["cancelled"] == 1
        assert (await foreign.ask({"type": "request_job_status", "job_id": job}))["status"] == "pending"
        assert (await own.ask({"type": "request_stats"}))["stats"]["jobs"]["pending"] == 0
    async with guarded.client(await guarded.key("admin")) as admin:
        assert await listed(admin, tenant="*") >= {mine, job}
        assert (await admin.ask({"type": "request_stats"}))["stats"]["jobs"]["pending"] == 1
