"""Workflows as ComfyUI's editor saves them, made into API format or refused."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidWorkflow
from broker.jobs.ranges import ClassRanges
from broker.jobs.ui_format import convert
from broker.jobs.workflow import check, normalise


def about(*widgets: str, controlled: str = "", upload: int | None = None, **numbers: str) -> ClassRanges:
    limits = {name: (kind, None, None) for name, kind in numbers.items()}
    return ClassRanges(
        frozenset(widgets), limits, {}, False, widgets, frozenset({controlled} if controlled else ()), upload
    )


CLASSES = {
    "KSampler": about("seed", "steps", "cfg", "sampler_name", controlled="seed", seed="INT", steps="INT", cfg="FLOAT"),
    "CLIPTextEncode": about("text"),
    "Loader": about("ckpt_name"),
    "LoadImage": about("image", upload=1),
    "LoadMask": about("image", "channel", upload=2),
    "Save": about("prefix"),
    "Blur": about("radius", radius="INT"),
    "Silent": ClassRanges(frozenset(), {}, {}, False),
}


def known(class_type: str) -> list[ClassRanges] | None:
    return [CLASSES[class_type]] if class_type in CLASSES else None


def ui(node_id: int, kind: str, values: Any = (), inputs: Any = (), outputs: Any = (), **more: Any) -> dict[str, Any]:
    """A node; ``inputs``: ``(name, type, link)``, with a fourth entry those of widgets."""
    slots = [
        {"name": n, "type": t, "link": link, **({"widget": {"name": n}} if w else {})} for n, t, link, *w in inputs
    ]
    return {
        "id": node_id, "type": kind, "mode": 0, "widgets_values": list(values) if isinstance(values, tuple) else values,
        "inputs": slots, "outputs": [{"name": t, "type": t} for t in outputs], **more,
    }  # fmt: skip


def workflow(*nodes: dict[str, Any], links: list[Any], **more: Any) -> dict[str, Any]:
    return {"version": 0.4, "nodes": list(nodes), "links": links, **more}


def inputs_of(graph: dict[str, Any]) -> dict[str, Any]:
    return {node_id: node["inputs"] for node_id, node in graph.items()}


SIMPLE = workflow(
    ui(4, "Loader", ("a.safetensors",), outputs=("MODEL", "CLIP")),
    ui(6, "CLIPTextEncode", ("a cat",), [("clip", "CLIP", 1)], ("CONDITIONING",), title="$prompt"),
    ui(
        3,
        "KSampler",
        (7, "randomize", 20, 7, "euler"),
        [("model", "MODEL", 2), ("positive", "CONDITIONING", 3)],
        ("L",),
    ),
    ui(9, "Save", ("x",), [("images", "L", 4)]),
    ui(10, "Note", ("remember the milk",)),
    links=[[1, 4, 1, 6, 0, "CLIP"], [2, 4, 0, 3, 0, "MODEL"], [3, 6, 0, 3, 1, "CONDITIONING"], [4, 3, 0, 9, 0, "L"]],
)


def test_values_get_their_names() -> None:
    graph = convert(SIMPLE, known)
    assert inputs_of(graph) == {
        "4": {"ckpt_name": "a.safetensors"},
        "6": {"text": "a cat", "clip": ["4", 1]},
        "3": {"seed": 7, "steps": 20, "cfg": 7, "sampler_name": "euler", "model": ["4", 0], "positive": ["6", 0]},
        "9": {"prefix": "x", "images": ["3", 0]},
    }
    assert graph["6"] == {"class_type": "CLIPTextEncode", "inputs": graph["6"]["inputs"], "_meta": {"title": "$prompt"}}
    assert check(graph)


def test_links_may_be_objects_and_values_may_have_names() -> None:
    other = copy.deepcopy(SIMPLE)
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    other["links"] = [dict(zip(names, link, strict=True)) for link in SIMPLE["links"]]
    other["nodes"][2]["widgets_values"] = {"seed": 7, "steps": 20, "cfg": 7, "sampler_name": "euler", "junk": 1}
    assert convert(other, known) == convert(SIMPLE, known)


def test_what_only_the_editor_has_is_passed_through() -> None:
    graph = convert(
        workflow(
            ui(1, "LoadImage", ("cat.png", "image"), outputs=("IMAGE", "MASK")),
            ui(2, "Reroute", (), [("", "*", 1)], ("IMAGE",)),
            ui(3, "Blur", (4,), [("image", "IMAGE", 2), ("radius", "INT", 3, 1)], ("IMAGE",)),
            ui(4, "PrimitiveNode", (16, "fixed"), outputs=("INT",)),
            ui(5, "Save", ("x",), [("images", "IMAGE", 4)]),
            ui(6, "LoadMask", ("m.png", "alpha", "image")),
            links=[[1, 1, 0, 2, 0, "*"], [2, 2, 0, 3, 0, "I"], [3, 4, 0, 3, 1, "INT"], [4, 3, 0, 5, 0, "I"]],
        ),
        known,
    )
    assert inputs_of(graph) == {
        "1": {"image": "cat.png"},
        "3": {"image": ["1", 0], "radius": 16},
        "5": {"prefix": "x", "images": ["3", 0]},
        "6": {"image": "m.png", "channel": "alpha"},
    }


def chain(mode: int) -> dict[str, Any]:
    return convert(
        workflow(
            ui(1, "LoadImage", ("cat.png", "image"), outputs=("IMAGE", "MASK")),
            ui(2, "Blur", (4,), [("mask", "MASK", 9), ("image", "IMAGE", 1)], ("IMAGE",), mode=mode),
            ui(3, "Save", ("x",), [("images", "IMAGE", 2)]),
            links=[[1, 1, 0, 2, 1, "I"], [2, 2, 0, 3, 0, "I"], [9, 1, 1, 2, 0, "M"]],
        ),
        known,
    )


def test_a_bypassed_node_passes_on_what_has_its_type_and_a_muted_one_nothing() -> None:
    assert inputs_of(chain(4)) == {"1": {"image": "cat.png"}, "3": {"prefix": "x", "images": ["1", 0]}}
    assert inputs_of(chain(2)) == {"1": {"image": "cat.png"}, "3": {"prefix": "x"}}
    assert inputs_of(chain(0))["3"] == {"prefix": "x", "images": ["2", 0]}


SUB = {
    "id": "b2f0-sub",
    "name": "Blur twice",
    "inputNode": {"id": -10},
    "outputNode": {"id": -20},
    "inputs": [{"name": "image", "type": "IMAGE"}, {"name": "radius", "type": "INT"}],
    "outputs": [{"name": "IMAGE", "type": "IMAGE"}],
    "nodes": [
        ui(1, "Blur", (4,), [("image", "IMAGE", 1), ("radius", "INT", 2, 1)], ("IMAGE",)),
        ui(2, "Blur", (5,), [("image", "IMAGE", 3)], ("IMAGE",)),
    ],
    "links": [
        {"id": 1, "origin_id": -10, "origin_slot": 0, "target_id": 1, "target_slot": 0, "type": "IMAGE"},
        {"id": 2, "origin_id": -10, "origin_slot": 1, "target_id": 1, "target_slot": 1, "type": "INT"},
        {"id": 3, "origin_id": 1, "origin_slot": 0, "target_id": 2, "target_slot": 0, "type": "IMAGE"},
        {"id": 4, "origin_id": 2, "origin_slot": 0, "target_id": -20, "target_slot": 0, "type": "IMAGE"},
    ],
}


def with_subgraph(*uses: dict[str, Any], links: list[Any], **more: Any) -> dict[str, Any]:
    start = ui(1, "LoadImage", ("cat.png", "image"), outputs=("IMAGE",))
    return workflow(start, *uses, links=links, definitions={"subgraphs": [SUB]}, **more)


def use(node_id: int, link: int, values: Any = (), **more: Any) -> dict[str, Any]:
    return ui(node_id, "b2f0-sub", values, [("image", "IMAGE", link), ("radius", "INT", None, 1)], ("IMAGE",), **more)


def test_subgraphs_are_unfolded() -> None:
    save = ui(20, "Save", ("x",), [("images", "IMAGE", 9)])
    links = [[8, 1, 0, 10, 0, "I"], [9, 10, 0, 20, 0, "I"]]
    expected = {
        "1": {"image": "cat.png"},
        "10:1": {"radius": 4, "image": ["1", 0]},
        "10:2": {"radius": 5, "image": ["10:1", 0]},
        "20": {"prefix": "x", "images": ["10:2", 0]},
    }
    assert inputs_of(convert(with_subgraph(use(10, 8), save, links=links), known)) == expected
    shown = convert(with_subgraph(use(10, 8, (3,)), save, links=links), known)
    assert shown["10:1"]["inputs"] == {"radius": 3, "image": ["1", 0]}
    bypassed = convert(with_subgraph(use(10, 8, mode=4), save, links=links), known)
    assert inputs_of(bypassed)["20"] == {"prefix": "x", "images": ["1", 0]}
    twice = with_subgraph(use(10, 8, (3,)), use(11, 9, (6,)), links=[*links, [9, 10, 0, 11, 0, "I"]])
    found = inputs_of(convert(twice, known))
    assert (found["10:1"]["radius"], found["11:1"]) == (3, {"radius": 6, "image": ["10:2", 0]})
    inside = {"properties": {"proxyWidgets": [["1", "radius"]]}}
    found = inputs_of(convert(with_subgraph(use(10, 8, (), **inside), use(11, 9, (), **inside), links=links), known))
    assert (found["10:1"]["radius"], found["11:1"]["radius"]) == (4, 4), "the value lies in the subgraph's own node"
    first = {"properties": {"proxyWidgets": [["1", "x"], ["-1", "radius"]]}}
    found = inputs_of(convert(with_subgraph(use(10, 8, (3,), **first), use(11, 9, (6,), **first), links=links), known))
    assert (found["10:1"]["radius"], found["11:1"]["radius"]) == (3, 6)
    unclear = {"properties": {"proxyWidgets": [["-1", "radius"], ["-1", "other"]]}}
    with pytest.raises(InvalidWorkflow, match="several times"):
        convert(with_subgraph(use(10, 8, (3,), **unclear), use(11, 9, (6,), **unclear), links=links), known)


def test_lists_are_no_links() -> None:
    graph = convert(workflow(ui(1, "CLIPTextEncode", (["4", 0],)), links=[]), known)
    assert graph["1"]["inputs"] == {"text": {"__value__": ["4", 0]}}


def bomb() -> dict[str, Any]:
    """Each subgraph has ten of the next."""
    nodes = [[ui(i, f"s{depth + 1}") for i in range(10)] for depth in range(10)]
    subgraphs = [{"id": f"s{depth}", "nodes": nodes[depth], "links": []} for depth in range(10)]
    return workflow(ui(1, "s0"), links=[], definitions={"subgraphs": subgraphs})


SELF = {"id": "self", "nodes": [ui(1, "self")], "links": []}
CIRCLE = workflow(
    ui(1, "Reroute", (), [("", "*", 1)], ("*",)),
    ui(2, "Reroute", (), [("", "*", 2)], ("*",)),
    ui(3, "Save", ("x",), [("images", "IMAGE", 3)]),
    links=[[1, 2, 0, 1, 0, "*"], [2, 1, 0, 2, 0, "*"], [3, 1, 0, 3, 0, "*"]],
)
REFUSED: dict[str, tuple[Any, str]] = {
    "unknown class": (workflow(ui(1, "GetNode"), ui(2, "Odd"), ui(3, "Save", ("x",)), links=[]), "GetNode, Odd"),
    "a class of which nobody says what it shows": (workflow(ui(1, "Silent"), links=[]), "Silent"),
    "too few values": (workflow(ui(3, "KSampler", (7, "randomize", 20)), links=[]), "3 values"),
    "too many values": (workflow(ui(3, "Save", ("x", "y")), links=[]), "2 values"),
    "a text for a number": (workflow(ui(3, "KSampler", ("x", "fixed", 20, 7, "euler")), links=[]), "node 3"),
    "nothing to run": (workflow(ui(1, "Note"), links=[]), "no nodes"),
    "a circle": (CIRCLE, "circles"),
    "a subgraph in itself": (workflow(ui(1, "self"), links=[], definitions={"subgraphs": [SELF]}), "deeper"),
    "a bomb": (bomb(), "more than 5000"),
    "links that are none": (workflow(ui(1, "Save", ("x",)), links=[["a"]]), "links"),
    "a node without an id": (workflow({"type": "Save"}, links=[]), "no id"),
    "a node without a type": (workflow({"id": 1}, links=[]), "no type"),
}


@pytest.mark.parametrize(("given_ui", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_certain_is_refused(given_ui: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidWorkflow, match=words) as caught:
        convert(given_ui, known)
    assert caught.value.details["reason"] == "ui_format"
    assert "Export (API)" in caught.value.message


def test_a_submit_keeps_the_editor_s_form_for_the_pictures() -> None:
    for payload in (SIMPLE, {"workflow": SIMPLE}, {"prompt": SIMPLE}):
        made = normalise(payload, convert=lambda found: convert(found, known))
        assert made["extra_data"]["extra_pnginfo"]["workflow"] == SIMPLE
        assert set(made["workflow"]) == {"3", "4", "6", "9"}


parts = st.recursive(
    st.none() | st.booleans() | st.integers(-20, 20) | st.sampled_from(["Save", "s", "Reroute", "PrimitiveNode", "x"]),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["id", "type", "mode", "inputs", "outputs", "link", "widgets_values", "name", "widget"]),
            inner, max_size=6,
        )
    ),
    max_leaves=25,
)  # fmt: skip
strange_nodes = st.lists(
    st.fixed_dictionaries(
        {"id": st.integers(1, 4), "type": st.sampled_from(["Save", "s", "Reroute", "PrimitiveNode", "Blur"])},
        optional={"mode": st.sampled_from([0, 2, 4]), "inputs": parts, "outputs": parts, "widgets_values": parts},
    ),
    max_size=4,
)


@given(strange_nodes, parts, parts)
def test_whatever_comes_is_converted_or_refused(nodes: list[Any], links: Any, inner: Any) -> None:
    with contextlib.suppress(InvalidWorkflow):
        graph = convert(
            {"nodes": nodes, "links": links, "definitions": {"subgraphs": [{"id": "s", "nodes": inner}]}}, known
        )
        assert graph
