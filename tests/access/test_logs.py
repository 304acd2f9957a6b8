"""What the log does not have, and what nobody may put into it; and what answers do not tell."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from pydantic import ValidationError

from broker.logging import redact
from broker.protocol.messages import SubmitJob
from tests.access.conftest import Guarded, bearer
from tests.api.conftest import submit

KEY = "emq_0123456789abcdef_" + "A" * 43
CANARY = "canary55aa"
SECRET = [
    f"Authorization: Bearer {CANARY}", f"'authorization': 'Lease {CANARY}'", f"key emq_0123456789abcdef_{CANARY}",
    f"emq.bearer.{CANARY}", f"redis://user:{CANARY}@host:6379/0", f"rediss://:{CANARY}@host", f"whsec_{CANARY}",
    f"Cookie: __Host-emq={CANARY}; x=y", f"Cookie: emq={CANARY}", f"/ws?ticket={CANARY}&x=1", f"password={CANARY}",
    f"GET /ws?key=emq%5F0123456789abcdef%5f{CANARY}",
    f'"password": "{CANARY}"', f'"api_key_comfy_org": "{CANARY}"', f"auth_token_comfy_org={CANARY}", f"token: {CANARY}",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRET)
def test_secrets_are_taken_out_of_every_line(logged: io.StringIO, text: str) -> None:
    assert CANARY not in redact(text)
    log = logging.getLogger("test")
    log.info("it says %s here", text)
    log.info("fields", extra={"header": text})
    try:
        raise RuntimeError(text)
    except RuntimeError:
        log.exception("it failed with %s", text)
    assert "it says" in logged.getvalue()
    assert "RuntimeError" in logged.getvalue(), "the trace is there"
    assert CANARY not in logged.getvalue()


def test_one_record_is_one_line_whatever_is_in_it(logged: io.StringIO) -> None:
    logging.getLogger("test").info("client %s", "a\r\n2026-11-25 [info] forged\x1b[31m\u2028\x00")
    lines = logged.getvalue().splitlines()
    assert len(lines) == 1, lines
    assert "\x1b[31m" not in lines[0]


def test_what_a_client_sent_is_not_in_an_error() -> None:
    with pytest.raises(ValidationError) as refused:
        SubmitJob.model_validate({"payload": CANARY, "priority": CANARY, "metadata": [CANARY]})
    assert CANARY not in str(refused.value)


async def test_payloads_are_not_logged(guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bad: list[Any] = [
        {"payload": {"workflow": {"1": {"class_type": CANARY, "inputs": {"x": CANARY}}}}},
        {"payload": {"workflow": {"1": {"class_type": 5, "inputs": CANARY}}}},
        {"payload": CANARY},
        submit(metadata={"a": CANARY}, priority=CANARY),
    ]
    async with guarded.broker.client() as client:
        for message in bad:
            await client.ask({"type": "submit_job", **message})
        await client.send("{" + CANARY)
    for message in bad:
        await guarded.broker.json("POST", "/api/jobs", json=message)
    assert CANARY not in caplog.text


async def test_answers_tell_no_traces_paths_or_texts_of_redis(guarded: Guarded) -> None:
    for path in (
        "/api/jobs/%00",
        "/api/jobs/" + "x" * 500,
        "/api/assets/zz",
        "/nowhere",
        "/api/workers/%ff",
        "/static/../x",
    ):
        for method in ("GET", "POST", "DELETE", "PUT"):
            async with guarded.broker.http.request(method, guarded.broker.url + path) as response:
                text = await response.text()
                assert response.status < 500, f"{method} {path}"
                for word in ("Traceback", "/tmp/", "site-packages", "redis", "WRONGTYPE", ".py"):
                    assert word not in text, f"{method} {path}: {word}"


async def test_every_answer_has_the_security_headers(guarded: Guarded) -> None:
    key = await guarded.key("admin")
    answers = {
        "/": 401, "/login": 200, "/stats": 200, "/nowhere": 404, "/api/jobs/x": 404, "/health": 200,
        "/static/emq.css": 200, "/static/none": 404, f"/stats?key={key}": 400,
    }  # fmt: skip
    for path, status in answers.items():
        url, headers = guarded.broker.url + path, {} if status == 401 else bearer(key)
        async with guarded.broker.http.get(url, headers=headers, allow_redirects=False) as response:
            assert response.status == status, path
            policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy, path
            assert "unsafe" not in policy, path
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
            assert response.headers["Server"] == "EMQ", "versions are nobody's business"


async def test_the_fleet_does_not_name_other_tenants_jobs(guarded: Guarded) -> None:
    own, admin = await guarded.key("submit", "read"), await guarded.key("admin", tenant="ops")
    foreign = await guarded.key("submit", "read", tenant="foreign")
    job = (await guarded.ask(foreign, "POST", "/api/jobs", json=submit()))[1]["job_id"]
    worker = guarded.broker.worker("sim-1")
    await worker.register()
    assert await worker.claim() is not None
    for key, named in ((own, False), (foreign, True), (admin, True)):
        for path in ("/api/workers", "/api/workers/sim-1", "/stats", "/workers", "/workers/sim-1", "/"):
            async with guarded.broker.http.get(guarded.broker.url + path, headers=bearer(key)) as response:
                text = await response.text()
                assert response.status == 200
                assert job not in text or named, f"{path} names another tenant's job"
        _, shown = await guarded.ask(key, "GET", "/api/workers/sim-1")
        assert [held["job_id"] for held in shown["jobs"]] == ([job] if named else [])


async def test_figures_are_a_tenants_own(guarded: Guarded) -> None:
    own, admin = await guarded.key("read"), await guarded.key("admin", tenant="ops")
    foreign, worker = await guarded.key("submit", tenant="foreign"), await guarded.key("worker")
    await guarded.ask(foreign, "POST", "/api/jobs", json=submit())
    assert (await guarded.ask(own, "GET", "/stats"))[1]["jobs"]["pending"] == 0
    assert (await guarded.ask(admin, "GET", "/stats"))[1]["jobs"]["pending"] == 1
    assert "foreign" not in json.dumps((await guarded.ask(own, "GET", "/stats"))[1])
    for key in (worker, foreign):
        assert (await guarded.ask(key, "GET", "/stats"))[0] == 403
