"""Input files named inside a graph: a node's input that is a source (``{"asset": "blake3:…"}``) instead of a value."""

from __future__ import annotations

from typing import Any

from broker.jobs.workflow import Graph

SOURCES = frozenset({"url", "asset", "base64", "output"})
FIELDS = SOURCES | {"filename", "hash", "size"}


def is_source(value: Any) -> bool:
    """Whether an input's value names a file: exactly one source, and nothing that belongs to no source."""
    return isinstance(value, dict) and len(SOURCES & value.keys()) == 1 and value.keys() <= FIELDS


def lift(graph: Graph, inputs: Any) -> tuple[Graph, Any]:
    """Move sources from the graph to ``payload.inputs``, which wins where both name a file; no argument changes."""
    found = {
        f"{node_id}.{name}": value
        for node_id, node in graph.items()
        for name, value in node["inputs"].items()
        if is_source(value)
    }
    if not found or not (inputs is None or isinstance(inputs, dict)):
        return graph, inputs
    return {node_id: _emptied(node) for node_id, node in graph.items()}, {**found, **(inputs or {})}


def _emptied(node: dict[str, Any]) -> dict[str, Any]:
    """The node with a place-holder for each file; the worker puts the file's name there."""
    kept = {name: "" if is_source(value) else value for name, value in node["inputs"].items()}
    return {**node, "inputs": kept}
