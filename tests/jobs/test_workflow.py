"""Graphs: found in a payload, checked, told in ComfyUI's form."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidWorkflow
from broker.jobs.workflow import check, check_inputs, looks_like_ui, normalise, target

GRAPH: dict[str, Any] = {
    "1": {"class_type": "A", "inputs": {}},
    "2": {"class_type": "B", "inputs": {"a": ["1", 0], "size": [512, 512], "names": ["x", "y"]}},
}
UI: dict[str, Any] = {"nodes": [], "links": [], "version": 0.4}


def test_the_three_forms_become_one() -> None:
    assert normalise(GRAPH) == normalise({"workflow": GRAPH}) == normalise({"prompt": GRAPH}) == {"workflow": GRAPH}
    assert normalise({"prompt": GRAPH, "extra_data": {"a": 1}}) == {"workflow": GRAPH, "extra_data": {"a": 1}}


def test_a_bare_graph_may_have_a_node_called_workflow() -> None:
    graph = {"workflow": {"class_type": "A", "inputs": {}}, "prompt": {"class_type": "B", "inputs": {}}}
    assert normalise(graph) == {"workflow": graph}


def test_a_picture_s_metadata_has_both_forms() -> None:
    """The API form runs; the editor's goes along, so that saved pictures reopen."""
    made = normalise({"prompt": GRAPH, "workflow": UI})
    assert made["workflow"] == GRAPH
    assert made["extra_data"] == {"extra_pnginfo": {"workflow": UI}}
    kept = normalise({"prompt": GRAPH, "workflow": UI, "extra_data": {"x": 1}})
    assert kept["extra_data"] == {"x": 1, "extra_pnginfo": {"workflow": UI}}


@pytest.mark.parametrize("payload", [UI, {"workflow": UI}, {"prompt": UI}])
def test_the_editor_s_form_is_refused_saying_what_to_do(payload: dict[str, Any]) -> None:
    assert looks_like_ui(UI)
    with pytest.raises(InvalidWorkflow, match=r"Export \(API\)"):
        normalise(payload)


def test_other_job_types_may_have_other_payloads() -> None:
    assert normalise({"anything": 1}, graph_required=False) == {"anything": 1}


def test_problems_are_told_by_node() -> None:
    with pytest.raises(InvalidWorkflow) as caught:
        check({"1": {"inputs": {}}, "2": {"class_type": "B", "inputs": {"a": ["9", 0]}}, "3": 5})
    errors = caught.value.details["node_errors"]
    assert set(errors) == {"1", "2", "3"}
    assert errors["1"]["errors"][0]["type"] == "missing_node_type"
    assert errors["2"]["class_type"] == "B"
    assert errors["2"]["errors"][0]["extra_info"] == {"input_name": "a", "linked_node": ["9", 0]}
    assert "Node 1" in caught.value.message


def test_a_long_chain_is_no_cycle_and_needs_no_recursion() -> None:
    chain = {str(n): {"class_type": "A", "inputs": {"a": [str(n + 1), 0]} if n < 4999 else {}} for n in range(5000)}
    assert check(chain) is chain
    chain["4999"]["inputs"] = {"a": ["0", 0]}
    with pytest.raises(InvalidWorkflow, match="own output"):
        check(chain)


def test_input_keys_name_a_node_and_an_input() -> None:
    assert target("2.image", GRAPH) == "2"
    assert target("2.images.image0", GRAPH) == "2"
    for wrong in ("9.image", "2", "2.", ".image", ""):
        assert target(wrong, GRAPH) is None


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("aGVsbG8=", True), ("data:image/png;base64,aGVsbG8=", True), ("data:,hello", False), ("aGVsbG8", False),
     ("x;base64,aGVsbG8=", False), ("data:image/png;base64,§", False)],
)  # fmt: skip
def test_content_in_the_message_is_base64_as_browsers_give_it_too(text: str, is_one: bool) -> None:
    with contextlib.nullcontext() if is_one else pytest.raises(InvalidWorkflow, match="base64"):
        check_inputs({"1.image": {"base64": text}}, GRAPH)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["1", "class_type", "inputs"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["1", "2", "class_type", "inputs", "nodes", "links", "workflow"]), inner, max_size=4
        )
    ),
    max_leaves=15,
)


@given(st.dictionaries(st.sampled_from(["workflow", "prompt", "1", "class_type", "inputs"]), values, max_size=4))
def test_whatever_comes_is_a_graph_or_refused(payload: dict[str, Any]) -> None:
    with contextlib.suppress(InvalidWorkflow):
        graph = check(normalise(payload)["workflow"])
        assert all(isinstance(node["class_type"], str) for node in graph.values())
