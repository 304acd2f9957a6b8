"""What a graph needs, and why nobody has it."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from broker.errors import EmqError
from broker.jobs.fleet import Fleet, FleetView, parse_profile
from broker.jobs.requirements import Requirement, complete
from broker.jobs.waiting import explain, from_atoms
from broker.queue.queue import Queue
from tests.support.jobs import profile as profile_of

NOTHING: dict[str, Any] = {"models": [], "node_classes": [], "min_vram_mb": 0, "tags": []}
SD: dict[str, Any] = {
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd\\v15.safetensors"}},
    "5": {"class_type": "LoraLoader", "inputs": {"model": ["4", 0], "lora_name": "style.safetensors"}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat named model.pt", "clip": ["4", 1]}},
    "7": {"class_type": "VAELoader", "inputs": {"vae_name": "taesd"}},
}
MODEL_INPUTS = {
    "CheckpointLoaderSimple": {"ckpt_name": "checkpoints"},
    "LoraLoader": {"lora_name": "loras"},
    "VAELoader": {"vae_name": "vae"},
}


def fleet(*profiles: dict[str, Any]) -> FleetView:
    return FleetView([parse_profile(str(n), json.dumps(p)) for n, p in enumerate(profiles)])


def worker(**more: Any) -> dict[str, Any]:
    return {
        "job_types": ["comfyui"],
        "node_classes": [node["class_type"] for node in SD.values()],
        "models": {"checkpoints": ["sd\\v15.safetensors"], "loras": ["style.safetensors"], "vae": []},
        "model_inputs": MODEL_INPUTS,
        "tags": [],
        "vram_mb": 8000,
        **more,
    }


def need(graph: Any = SD, view: FleetView | None = None, **given: Any) -> Requirement:
    return complete("comfyui", {**NOTHING, **given}, graph, view or FleetView())


def test_with_a_known_fleet_files_have_folders() -> None:
    made = need(view=fleet(worker()))
    assert made.atoms == (
        "m:checkpoints/sd/v15.safetensors", "m:loras/style.safetensors", "n:CLIPTextEncode",
        "n:CheckpointLoaderSimple", "n:LoraLoader", "n:VAELoader", "t:comfyui",
    )  # fmt: skip
    assert made.kind == ("sd/v15.safetensors",), "the checkpoint is what takes time to load"
    assert made.public()["models"] == ["sd/v15.safetensors", "style.safetensors"]
    assert explain(made, fleet(worker())) == []


def test_without_one_any_value_that_ends_like_a_model_names_one() -> None:
    made = need()
    assert [a for a in made.atoms if a.startswith("m:")] == [
        "m:a cat named model.pt", "m:sd/v15.safetensors", "m:style.safetensors",
    ]  # fmt: skip
    assert made.kind == ("sd/v15.safetensors",)


def test_a_worker_without_model_inputs_leaves_it_to_the_names() -> None:
    assert "m:style.safetensors" in need(view=fleet(worker(model_inputs=None))).atoms


def test_given_requirements_are_added_once() -> None:
    view = fleet(worker())
    made = need(view=view, models=["sd/v15.safetensors", "big.safetensors"], tags=["eu"], node_classes=["KSampler"])
    assert "m:sd/v15.safetensors" not in made.atoms, "the graph names it with its folder already"
    assert {"m:big.safetensors", "g:eu", "n:KSampler"} <= set(made.atoms)
    assert made.kind == ("big.safetensors", "sd/v15.safetensors")


def test_the_class_is_the_same_for_the_same_needs_and_another_for_others() -> None:
    shuffled = dict(reversed(list(SD.items())))
    assert need().class_id == need(shuffled).class_id
    assert len(need().class_id) == 16
    assert len({need().class_id, need(min_vram_mb=1).class_id, need(tags=["x"]).class_id}) == 3


def test_reasons() -> None:
    assert [r.code for r in explain(need(), FleetView())] == ["no_worker"]
    view = fleet(worker())
    missing = need(view=view, models=["stile.safetensors"], tags=["us"], node_classes=["KSamplr"], min_vram_mb=9000)
    assert {(r.code, r.detail) for r in explain(missing, view)} == {
        ("no_worker_has_model", "stile.safetensors"), ("no_worker_has_node_class", "KSamplr"),
        ("no_worker_has_tag", "us"), ("not_enough_vram", "9000"),
    }  # fmt: skip
    near = next(r for r in explain(missing, view) if r.code == "no_worker_has_model")
    assert near.suggestion == "style.safetensors"
    other = complete("video", NOTHING, None, view)
    assert [r.code for r in explain(other, view)] == ["no_worker_has_job_type"]


def test_when_nobody_has_all_of_it() -> None:
    view = fleet(worker(tags=["eu"], vram_mb=8000), worker(tags=["us"], vram_mb=24_000))
    both = need(view=view, tags=["eu", "us"])
    [reason] = explain(both, view)
    assert reason.code == "no_single_worker"
    assert explain(need(view=view, tags=["us"]), view) == []
    [reason] = explain(need(view=view, tags=["eu"], min_vram_mb=20_000), view)
    assert (reason.code, reason.detail) == ("no_single_worker", "20000 MB of VRAM")


def test_the_queue_s_own_words() -> None:
    made = need(view=fleet(worker()))
    codes = [r.code for r in from_atoms(["*", "+", "v:9", "m:loras/style.safetensors", "n:X"], made, FleetView())]
    assert codes == [
        "no_worker", "no_single_worker", "not_enough_vram", "no_worker_has_model", "no_worker_has_node_class",
    ]  # fmt: skip


def test_what_a_worker_turned_out_not_to_have_is_believed() -> None:
    view = FleetView([parse_profile("p", json.dumps(worker()), frozenset({"n:VAELoader"}))])
    assert [(r.code, r.detail) for r in explain(need(view=view), view)] == [("no_worker_has_node_class", "VAELoader")]


async def test_a_profile_that_is_none_stops_nobody(queue: Queue, caplog: pytest.LogCaptureFixture) -> None:
    """A worker with Redis writes its profile itself; what cannot be read can do nothing, and the others go on."""
    texts = (
        '"text"',
        "[1]",
        '{"models":{"a":5}}',
        '{"model_inputs":3,"models":{"b":"x"}}',
        profile_of(nodes=("KSampler",)),
    )
    for number, text in enumerate(texts):
        with suppress(EmqError):  # some the function refuses itself
            await queue.worker_call(
                "register",
                {"worker": f"w{number}", "instance": f"i{number}", "profile": text, "info": "{}", "slots": 1},
            )
    view = await Fleet(queue).view()
    assert any("n:KSampler" in each.atoms for each in view.profiles)
    assert "cannot be read" in caplog.text
