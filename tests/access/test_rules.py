"""What a tenant's workflows may name, at the submit and once more at the worker."""

from __future__ import annotations

import json
from typing import Any

import pytest

from broker.errors import InvalidWorkflow
from broker.jobs.rules import Rules
from comfyui_emq_node.rules import broken_rule
from tests.access.conftest import Guarded
from tests.api.conftest import GRAPH, submit
from tests.support.access import submit_with, with_limits
from tests.support.commands import emq_says
from tests.support.servers import RedisServer

CORE = Rules(
    node_allow=("EmptyImage", "SaveImage", "Load*"), node_deny=("LoadSecret",), model_allow=("sd/*", "a[1].pt")
)


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.mark.parametrize(
    "bad",
    [
        node("Exec"), node("emptyimage"), node("\N{CYRILLIC CAPITAL LETTER IE}mptyImage"),
        node("EmptyImage "), node("Save*"), node("LoadSecret"),
        node("SaveImageX"), node("Image"), node("LoadX", ckpt_name="flux.safetensors"), node("LoadX", x="a1.pt"),
        node("LoadX", x="SD/x.ckpt"), node("LoadX", x="x.ckpt"),
    ],
    ids=str,
)  # fmt: skip
def test_a_name_that_is_not_allowed_is_refused_wherever_it_stands(bad: dict[str, Any]) -> None:
    graph = {"1": node("EmptyImage"), "2": node("LoadX", ckpt_name="sd/x.safetensors"), "3": bad}
    with pytest.raises(InvalidWorkflow) as refused:
        CORE.check(graph)
    assert list(refused.value.details["node_errors"]) == ["3"]
    models = [value for each in graph.values() for value in each["inputs"].values()]
    assert broken_rule(CORE.text(), graph, models) is not None, "the worker's own look"


def test_what_is_allowed_goes() -> None:
    graph = {"1": node("EmptyImage"), "2": node("LoadAnything", ckpt_name="sd\\x.safetensors", lora="a[1].pt")}
    CORE.check(graph)
    assert broken_rule(CORE.text(), graph, ["sd/x.safetensors", "a[1].pt"]) is None
    assert Rules().text() == ""
    Rules().check({"1": node("Anything", text="../../ is a text", image="a/b.png", filename_prefix="x/y")})
    assert broken_rule("", graph, ["any"]) is None
    for unreadable in ("{", "[]", '{"allow":5}', "null"):
        assert broken_rule(unreadable, graph, []) is not None, "what cannot be read allows nothing"


@pytest.mark.parametrize(
    "inputs",
    [
        {"image": "../x.png"}, {"image": "a/../../x.png"}, {"image": "..\\x.png"}, {"image": "/etc/passwd"},
        {"image": "C:\\x.png"}, {"image": "\\\\host\\x.png"}, {"image": "~/x.png"}, {"image": "x.png [output]"},
        {"image": "x.png [temp] "}, {"filename_prefix": "../x"}, {"filename_prefix": "/tmp/x"}, {"latent": ".."},
        {"ckpt_name": "../x.safetensors"}, {"anything": "/models/x.ckpt"}, {"vae_name": "a/../x.pt"},
    ],
    ids=str,
)  # fmt: skip
def test_no_file_outside_of_its_folder_is_named(inputs: dict[str, Any]) -> None:
    with pytest.raises(InvalidWorkflow) as refused:
        Rules().check({"1": node("EmptyImage"), "2": node("Node", **inputs)})
    (error,) = refused.value.details["node_errors"]["2"]["errors"]
    assert error["type"] == "path_not_allowed"
    assert error["extra_info"]["input_name"] in inputs


async def test_a_tenants_rules_hold_at_every_broker_and_reach_the_worker(guarded: Guarded) -> None:
    own, other = await guarded.key("submit", "read"), await guarded.key("submit", tenant="foreign")
    brokers = await with_limits(guarded, node_allow=["EmptyImage"], node_deny=[])
    for broker in brokers:
        status, body = await submit_with(broker, own)
        assert (status, body["code"], body["details"]["reason"]) == (400, "invalid_workflow", "not_allowed")
        assert list(body["details"]["node_errors"]) == ["2"]
        assert (await submit_with(broker, own, dry_run=True))[0] == 400
    assert (await submit_with(brokers[0], other))[0] == 201, "another tenant's are its own"
    async with guarded.client(own) as client:
        reply = await client.ask({"type": "submit_jobs", "jobs": [submit(), submit()]})
        assert [result["code"] for result in reply["results"]] == ["invalid_workflow"] * 2
    await with_limits(guarded, node_allow=["EmptyImage", "Save*"])
    assert (await submit_with(brokers[1], own))[0] == 201
    worker = brokers[0].worker("sim-1")
    await worker.register()
    rules: dict[str, str] = {}
    for _ in range(2):
        answer = await brokers[0].queue.worker_call(
            "claim", {"worker": "sim-1", "instance": worker.instance, "token": f"{len(rules):032d}"}
        )
        rules[answer.text("tenant")] = answer.text("rules")
        await brokers[0].queue.worker_call(
            "release", {"job": answer.text("job_id"), "token": answer.text("lease"), "reason": "test"}
        )
        await brokers[0].queue.cancel(answer.text("job_id"))
    assert rules == {"foreign": "", "own": json.dumps({"allow": ["EmptyImage", "Save*"]}, separators=(",", ":"))}


async def test_a_template_is_no_way_round_the_rules(guarded: Guarded) -> None:
    own = await guarded.key("submit", "read")
    auth = {"Authorization": f"Bearer {own}"}
    params = {"prefix": {"bind": ["2.filename_prefix"]}}
    status, _ = await guarded.broker.json(
        "PUT", "/api/templates/x", json={"workflow": GRAPH, "params": params}, headers=auth
    )
    assert status == 201
    job = {"payload": {"template": "x", "params": {"prefix": "../../x"}}}
    status, body = await guarded.broker.json("POST", "/api/jobs", json=job, headers=auth)
    assert (status, body["details"]["node_errors"]["2"]["errors"][0]["type"]) == (400, "path_not_allowed")
    brokers = await with_limits(guarded, node_allow=["EmptyImage"])
    job = {"payload": {"template": "x", "params": {"prefix": "x"}}}
    status, body = await brokers[0].json("POST", "/api/jobs", json=job, headers=auth)
    assert (status, body["details"]["reason"]) == (400, "not_allowed")


async def test_rules_of_the_settings_hold_for_everybody(guarded: Guarded, own_valkey: RedisServer) -> None:
    broker = await guarded.another(node_deny="Save*,Exec", model_allow="sd15.safetensors")
    key = await guarded.key("submit", "read")
    assert (await submit_with(broker, key))[0] == 400
    graph = {**GRAPH, "2": node("LoadX", ckpt_name="flux.safetensors")}
    status, body = await broker.json(
        "POST", "/api/jobs", json=submit(graph), headers={"Authorization": f"Bearer {key}"}
    )
    assert (status, body["details"]["node_errors"]["2"]["errors"][0]["type"]) == (400, "model_not_allowed")
    where = ("--redis", own_valkey.url)
    out = await emq_says("tenants", "set", "own", "--node-deny", "", "--node-allow", "EmptyImage,SaveImage", *where)
    assert "node_allow EmptyImage, SaveImage" in out

    async def allowed() -> bool:
        return (await submit_with(broker, key))[0] == 201

    from tests.support.waiting import wait_until

    await wait_until(allowed, 5, "the tenant's own rules hold")
