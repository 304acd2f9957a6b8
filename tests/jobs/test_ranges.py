"""Values that no live worker takes: what workers tell of their classes, and what is made of it."""

from __future__ import annotations

import importlib.util
import json
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from broker.jobs.fleet import FleetView, parse_profile
from broker.jobs.ranges import Problem, node_errors, pack, parse

WORKER = Path(__file__).parents[2] / "comfyui_emq_node" / "ranges.py"


@pytest.fixture(scope="module")
def worker_side() -> ModuleType:
    """The worker's half, which must run without the broker's."""
    spec = importlib.util.spec_from_file_location("worker_ranges", WORKER)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Sampler:
    """A node class as packs write them."""

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "steps": ("INT", {"default": 20, "min": 1, "max": 100}),
                "seed": ("INT", {"min": 0, "max": 2**64 - 1}),
                "cfg": ("FLOAT", {"min": 0.5}),
                "sampler": (["euler", "heun", 3],),
                "file": (["a.safetensors"],),
                "many": ([str(i) for i in range(60)],),
                "upload": (["cat.png"], {"image_upload": True}),
                "combo": ("COMBO", {"options": ["x", "y"]}),
                "grows": ("COMFY_AUTOGROW_V3", {}),
            },
            "optional": {"scale": ("FLOAT", {"max": 2.0})},
        }


class Save:
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"images": ("IMAGE",)}}


class Itself(Sampler):
    @classmethod
    def VALIDATE_INPUTS(cls, steps: int) -> bool:
        return steps > 0


class Everything(Sampler):
    @classmethod
    def VALIDATE_INPUTS(cls, **kwargs: Any) -> bool:
        return True


CLASSES: dict[str, Any] = {"Sampler": Sampler, "Save": Save, "Itself": Itself, "Everything": Everything}
GOOD = {
    "model": ["9", 0], "steps": 20, "seed": 2**64 - 1, "cfg": 7, "sampler": "euler", "file": "b.safetensors",
    "many": "x", "upload": "dog.png", "combo": "z",
}  # fmt: skip


def packed(module: ModuleType, *names: str, combos: bool = False) -> tuple[str, bytes]:
    document = module.Document(combos)
    for name in names or CLASSES:
        document.add(name, CLASSES[name], CLASSES[name].INPUT_TYPES(), ["file"])
    digest, data = document.packed()
    return str(digest), bytes(data)


def view(*documents: bytes | None, names: tuple[str, ...] = tuple(CLASSES)) -> FleetView:
    text = json.dumps({"node_classes": list(names)})
    return FleetView([parse_profile(str(n), text, ranges=parse(d) if d else None) for n, d in enumerate(documents)])


def problems(fleet: FleetView, kind: str = "Sampler", filled: tuple[str, ...] = (), **inputs: Any) -> list[Problem]:
    graph = {
        "3": {"class_type": kind, "inputs": {k: v for k, v in {**GOOD, **inputs}.items() if v != "left out"}},
        "9": {"class_type": "Unknown", "inputs": {}},
        "s": {"class_type": "Save", "inputs": {"images": ["3", 0]}},
        "beside": {"class_type": "Sampler", "inputs": {}},
    }
    return fleet.values.problems(graph, filled)


@pytest.mark.parametrize(
    ("inputs", "kind", "suggestion"),
    [
        ({"steps": 0}, "value_smaller_than_min", None),
        ({"steps": 101}, "value_bigger_than_max", None),
        ({"steps": "0"}, "value_smaller_than_min", None),
        ({"steps": "many"}, "invalid_input_type", None),
        ({"steps": None}, "invalid_input_type", None),
        ({"steps": {"__value__": 0}}, "value_smaller_than_min", None),
        ({"seed": -1}, "value_smaller_than_min", None),
        ({"seed": 2**64}, "value_bigger_than_max", None),
        ({"cfg": 0.1}, "value_smaller_than_min", None),
        ({"scale": 2.5}, "value_bigger_than_max", None),
        ({"sampler": "eulr"}, "value_not_in_list", "euler"),
        ({"steps": "left out"}, "required_input_missing", None),
        ({"model": "left out"}, "required_input_missing", None),
    ],
)
def test_what_comfyui_would_refuse(
    worker_side: ModuleType, inputs: dict[str, Any], kind: str, suggestion: str | None
) -> None:
    (problem,) = problems(view(packed(worker_side)[1]), **inputs)
    name = next(iter(inputs))
    assert (problem.node_id, problem.name, problem.kind, problem.suggestion) == ("3", name, kind, suggestion)
    reason = problem.reason()
    assert reason.detail == f"3.{name}"
    assert name in (reason.message or "")
    errors = node_errors([problem])["3"]
    assert errors["class_type"] == "Sampler"
    assert errors["errors"][0]["type"] == kind
    assert errors["errors"][0]["extra_info"]["input_name"] == name


@pytest.mark.parametrize(
    "inputs", [{}, {"steps": "20"}, {"steps": 20.7}, {"steps": True}, {"sampler": 3}, {"steps": ["9", 0]}, {"extra": 1}]
)
def test_what_comfyui_would_take(worker_side: ModuleType, inputs: dict[str, Any]) -> None:
    assert problems(view(packed(worker_side)[1]), **inputs) == []


def test_files_that_come_later_and_classes_that_judge_by_themselves_are_left_alone(worker_side: ModuleType) -> None:
    fleet = view(packed(worker_side)[1])
    assert problems(fleet, sampler="emq.png", filled=("3.sampler",)) == []
    assert problems(fleet, steps="left out", filled=("3.steps",)) == []
    assert problems(fleet, "Itself", steps=0) == []
    assert [p.kind for p in problems(fleet, "Itself", cfg=0)] == ["value_smaller_than_min"]
    assert problems(fleet, "Everything", steps=0, sampler="no") == []
    assert [p.kind for p in problems(fleet, "Everything", steps="x")] == ["invalid_input_type"]


def test_options_of_combos_count_where_comfyui_compares_them(worker_side: ModuleType) -> None:
    assert problems(view(packed(worker_side, combos=False)[1])) == []
    found = problems(view(packed(worker_side, combos=True)[1]))
    assert [(p.name, p.kind) for p in found] == [("combo", "value_not_in_list")]


def test_one_worker_that_would_take_it_or_does_not_say_is_enough(worker_side: ModuleType) -> None:
    strict, silent = packed(worker_side)[1], packed(worker_side, "Save")[1]
    _, wide = pack({"lists": [], "classes": {"Sampler": {"n": {"steps": ["INT", 0, None]}}, "Save": {"o": 1}}})
    assert len(problems(view(strict, strict), steps=0)) == 1
    assert problems(view(strict, wide), steps=0) == []
    assert problems(view(strict, silent), steps=0) == []
    assert problems(view(strict, None), steps=0) == []
    assert problems(view(), steps=0) == []


def test_what_was_found_is_looked_at_again_with_the_fleet_as_it_is(worker_side: ModuleType) -> None:
    strict = view(packed(worker_side)[1])
    suspects = json.loads(
        json.dumps([p.suspect() for p in problems(strict, steps=0, sampler="x" * 999, cfg="left out")])
    )
    assert len(suspects) == 3
    assert [p.name for p in strict.values.again(suspects)] == ["steps", "sampler", "cfg"]
    _, wide = pack({"lists": [], "classes": {"Sampler": {"n": {"steps": ["INT", 0, None]}}}})
    assert view(wide).values.again(suspects) == []


def test_equal_workers_tell_equal_bytes_and_a_gateway_repeats_them(worker_side: ModuleType) -> None:
    digest, data = packed(worker_side, "Save", "Sampler")
    assert packed(worker_side, "Sampler", "Save") == (digest, data)
    assert pack(json.loads(zlib.decompress(data))) == (digest, data)


def test_a_document_has_a_limit(worker_side: ModuleType) -> None:
    document = worker_side.Document(False)
    for number in range(3000):
        document.add(f"Class{number}", Sampler, Sampler.INPUT_TYPES(), ())
    big = {"required": {f"input number {i}": ("INT", {"min": i}) for i in range(500)}}
    document.add("Big", Sampler, big, ())
    _, data = document.packed()
    assert len(zlib.decompress(data)) <= worker_side.MAX_BYTES
    kept = parse(bytes(data))
    assert "Big" not in kept
    assert len(kept) > 500


@pytest.mark.parametrize(
    "data",
    [b"", b"junk", zlib.compress(b"[]"), zlib.compress(b'{"lists":[],"classes":{"A":{"c":{"x":4}}}}'),
     zlib.compress(b'{"lists":1,"classes":{"A":{"n":{"x":[1]}}}}'), zlib.compress(b"0" * 10**8)],
)  # fmt: skip
def test_a_document_that_cannot_be_read_says_nothing(data: bytes) -> None:
    assert parse(data) == {}
    assert problems(view(data), steps=0) == []
