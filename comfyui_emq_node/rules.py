"""What a job's tenant may use, looked at once more where the workflow runs; the broker has refused it at the submit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any


def broken_rule(text: str, graph: Mapping[str, Any], models: Iterable[str]) -> str | None:
    """What a workflow names against the rules (JSON; empty: none), in a sentence; None when all is allowed.

    Rules that cannot be read allow nothing.
    """
    if not text:
        return None
    try:
        rules = json.loads(text)
        allow, deny, files = rules.get("allow"), rules.get("deny") or (), rules.get("models")
        for node_id, node in graph.items():
            name = str(node.get("class_type"))
            if (allow is not None and not _matches(name, allow)) or _matches(name, deny):
                return f"Node {node_id}: the job's tenant may not use the node class {name}."
        for name in models if files is not None else ():
            if not _matches(name, files):
                return f"The job's tenant may not use the model file {name}."
    except (ValueError, TypeError, AttributeError):
        return "The rules of the job's tenant cannot be read."
    return None


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(
        fnmatchcase(name, pattern.replace("[", "[[]").replace("?", "[?]")) if "*" in pattern else name == pattern
        for pattern in patterns
    )
