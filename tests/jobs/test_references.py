"""Input files that are named inside the graph."""

from __future__ import annotations

from typing import Any

import pytest

from broker.jobs.references import is_source, lift

ASSET = {"asset": "blake3:" + "0" * 64}


@pytest.mark.parametrize(
    "value", [ASSET, {"url": "https://x/y", "filename": "a.png"}, {"base64": "AAAA", "hash": "x", "size": 3}]
)
def test_a_source_is_taken_for_one(value: Any) -> None:
    assert is_source(value)


@pytest.mark.parametrize(
    "value",
    [
        {},
        "a.png",
        ["1", 0],
        {"filename": "x"},
        {"url": "x", "asset": "y"},
        {"url": "x", "width": 5},
        {"__value__": [1]},
    ],
)
def test_other_values_stay_values(value: Any) -> None:
    assert not is_source(value)


def test_sources_go_to_the_inputs_and_leave_the_given_graph_as_it_is() -> None:
    graph: dict[str, Any] = {
        "1": {"class_type": "LoadImage", "inputs": {"image": ASSET, "x": 1}},
        "2": {"class_type": "A", "inputs": {}},
    }
    lifted, inputs = lift(graph, {"2.y": {"url": "https://x/y"}})
    assert inputs == {"1.image": ASSET, "2.y": {"url": "https://x/y"}}
    assert lifted["1"]["inputs"] == {"image": "", "x": 1}
    assert graph["1"]["inputs"]["image"] == ASSET


def test_what_the_payload_names_itself_wins() -> None:
    graph = {"1": {"class_type": "LoadImage", "inputs": {"image": ASSET}}}
    _, inputs = lift(graph, {"1.image": {"url": "https://x/y"}})
    assert inputs == {"1.image": {"url": "https://x/y"}}
