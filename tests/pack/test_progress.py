"""Progress over a whole workflow, from ComfyUI's events."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from comfyui_emq_node.relay import MAX_STEPS, Durations, Progress, needed_nodes

GRAPH: dict[str, Any] = {
    "4": {"class_type": "Loader", "inputs": {}},
    "3": {"class_type": "Sampler", "inputs": {"model": ["4", 0], "steps": 20}},
    "9": {"class_type": "Save", "inputs": {"images": ["3", 0]}},
    "7": {"class_type": "Unused", "inputs": {}},
}


def fresh() -> Progress:
    nodes = needed_nodes(GRAPH, lambda name: name == "Save")
    return Progress(GRAPH, nodes, Durations())


def test_only_what_leads_to_an_output_counts() -> None:
    assert set(needed_nodes(GRAPH, lambda name: name == "Save")) == {"3", "4", "9"}
    assert set(needed_nodes(GRAPH, lambda name: False)) == set(GRAPH)


def test_a_sampler_weighs_more_than_a_loader() -> None:
    progress = fresh()
    progress.event("execution_start", {})
    progress.event("executing", {"node": "4"})
    progress.event("executing", {"node": "3"})
    loaded = progress.snapshot()
    assert (loaded["nodes_done"], loaded["nodes_total"]) == (1, 3)
    assert loaded["progress"] < 10
    progress.event("progress", {"node": "3", "value": 10, "max": 20})
    half = progress.snapshot()
    assert half["node"] == {"id": "3", "class_type": "Sampler", "value": 10, "max": 20}
    assert 40 < half["progress"] < 60
    progress.event("executing", {"node": "9"})
    assert progress.snapshot()["progress"] > 90


def test_a_trace_has_the_nodes_that_ran_with_the_longest_kept() -> None:
    progress = fresh()
    progress.event("execution_start", {})
    progress.event("execution_cached", {"nodes": ["4"]})
    for node in ("3", "9"):
        progress.event("executing", {"node": node})
    sampler, save = progress.ran(time.monotonic() + 5)
    assert [each[:2] for each in (sampler, save)] == [("3", "Sampler"), ("9", "Save")], "the last one still runs"
    assert sampler[2] <= sampler[3] == save[2] < save[3] - 4
    for _ in range(2 * MAX_STEPS):
        progress.event("executing", {"node": "3"})
        progress.event("executing", {"node": "9"})
    ran = progress.ran(time.monotonic() + 5)
    assert len(ran) == MAX_STEPS
    assert ran == sorted(ran, key=lambda each: each[2])
    assert ran[-1][0] == "9"


def test_cached_nodes_are_done() -> None:
    progress = fresh()
    progress.event("execution_cached", {"nodes": ["4", "3", "7"]})
    assert progress.snapshot()["nodes_done"] == 2


def test_nodes_that_a_node_unfolds_into_count_as_it() -> None:
    progress = fresh()
    progress.event("executing", {"node": "3.0.0.1", "display_node": "3"})
    progress.event("progress", {"node": "3.0.0.1", "value": 1, "max": 2})
    snapshot = progress.snapshot()
    assert (snapshot["node"]["id"], snapshot["nodes_total"]) == ("3", 3)


EVENTS = st.one_of(
    st.tuples(st.just("executing"), st.fixed_dictionaries({"node": st.sampled_from([*GRAPH, "3.1", "other", None])})),
    st.tuples(
        st.just("progress"),
        st.fixed_dictionaries(
            {"node": st.sampled_from([*GRAPH]), "value": st.integers(-5, 50), "max": st.integers(0, 30)}
        ),
    ),
    st.tuples(st.just("executed"), st.fixed_dictionaries({"node": st.sampled_from([*GRAPH, "other"])})),
    st.tuples(st.just("execution_cached"), st.fixed_dictionaries({"nodes": st.lists(st.sampled_from([*GRAPH]))})),
)


@given(st.lists(EVENTS, max_size=40))
def test_it_never_falls_and_stays_below_the_end(events: list[tuple[str, dict[str, Any]]]) -> None:
    progress, last = fresh(), 0.0
    for name, data in events:
        progress.event(name, data)
        now = progress.snapshot()["progress"]
        assert last <= now < 100
        last = now
