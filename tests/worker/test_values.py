"""A real ComfyUI tells what values it takes, and refuses just those that the broker says it would."""

from __future__ import annotations

from typing import Any

import pytest

from broker.trial.workflows import plain_image, text_to_image
from tests.support.comfyui import Client, ComfyProcess


@pytest.mark.parametrize(
    ("inputs", "code", "kind"),
    [
        ({"steps": 0}, "value_out_of_range", "value_smaller_than_min"),
        ({"cfg": 100.5}, "value_out_of_range", "value_bigger_than_max"),
        ({"seed": "a seed"}, "invalid_input_type", "invalid_input_type"),
        ({"sampler_name": "eulr"}, "value_not_in_list", "value_not_in_list"),
        ({"denoise": None}, "required_input_missing", "required_input_missing"),
    ],
)
async def test_what_the_broker_foretells_comfyui_says(
    client: Client, comfy: ComfyProcess, inputs: dict[str, Any], code: str, kind: str
) -> None:
    await client.until_counted_with(comfy)
    graph, node_id = text_to_image(seed=1, steps=1, size=64), "3"
    given = {**graph[node_id]["inputs"], **inputs}
    graph[node_id]["inputs"] = {name: value for name, value in given.items() if value is not None}
    name = next(iter(inputs))
    status, told = await client.json("POST", "/api/jobs", {"payload": {"workflow": graph}, "dry_run": True})
    assert status == 200
    assert [(reason["code"], reason["detail"]) for reason in told["waiting_for"]] == [(code, f"{node_id}.{name}")]
    status, refused = await client.json("POST", "/api/jobs", {"payload": {"workflow": graph}, "strict": True})
    assert (status, refused["code"]) == (400, "invalid_workflow")
    assert refused["details"]["node_errors"][node_id]["errors"][0]["type"] == kind
    record = await client.run(graph, worker=comfy)
    assert (record["status"], record["error"]["code"]) == ("failed", "validation_failed")
    assert kind in str(record["error"])


async def test_good_values_are_good_at_both(client: Client, comfy: ComfyProcess) -> None:
    await client.until_counted_with(comfy)
    for graph in (plain_image(1, 16), text_to_image(seed=2, steps=1, size=64)):
        status, told = await client.json("POST", "/api/jobs", {"payload": {"workflow": graph}, "dry_run": True})
        assert (status, told["waiting_for"]) == (200, [])
