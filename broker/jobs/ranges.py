"""Values that no live worker would take: numbers out of range, choices that are not on the list, inputs left out.

Workers tell what values the inputs of their node classes take (``comfyui_emq_node/ranges.py`` describes the document).
A problem is one only when every live worker that has the class would refuse it, and only in nodes that some output
needs, for ComfyUI looks at no others.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from broker.jobs.strict import canonical
from broker.jobs.workflow import Graph, links, needed
from broker.protocol.records import WaitingCode, WaitingFor

MAX_DOCUMENT = 1 << 20
MAX_PROBLEMS = 20
_SHOWN = 200

Kind = Literal[
    "value_smaller_than_min", "value_bigger_than_max", "value_not_in_list", "required_input_missing",
    "invalid_input_type",
]  # fmt: skip
_CODES: dict[Kind, WaitingCode] = {
    "value_smaller_than_min": "value_out_of_range",
    "value_bigger_than_max": "value_out_of_range",
    "value_not_in_list": "value_not_in_list",
    "required_input_missing": "required_input_missing",
    "invalid_input_type": "invalid_input_type",
}


class Missing:
    """In place of a value that was not given."""


@dataclass(frozen=True, slots=True)
class ClassRanges:
    """What one worker's version of a node class takes."""

    required: frozenset[str]
    numbers: Mapping[str, tuple[str, float | None, float | None]]
    choices: Mapping[str, list[Any]]
    is_output: bool
    widgets: tuple[str, ...] | None = None
    """The inputs that ComfyUI's page shows as widgets, in its order; ``None``: not told, or they change."""
    controlled: frozenset[str] = frozenset()
    """Widgets that another one follows, saying what becomes of the value after a run."""
    upload_at: int | None = None
    """How many widgets come before an upload button."""


Ranges = Mapping[str, ClassRanges]


@dataclass(frozen=True, slots=True)
class Problem:
    """One input that would be refused; ``kind`` is ComfyUI's word for it."""

    node_id: str
    class_type: str
    name: str
    value: Any
    kind: Kind
    message: str
    suggestion: str | None = None

    def reason(self) -> WaitingFor:
        """As one of the things that a job waits for."""
        place = f"{self.node_id}.{self.name}"
        text = f"Node {self.node_id[:64]} ({self.class_type[:64]}): {self.message}"
        return WaitingFor(code=_CODES[self.kind], detail=place, suggestion=self.suggestion, message=text)

    def suspect(self) -> list[Any]:
        """What to look at again later: node, class, input and, if it was given, a short form of the value."""
        given = [] if self.value is Missing else [_short(self.value)]
        return [self.node_id, self.class_type, self.name, *given]


def pack(document: Mapping[str, Any]) -> tuple[str, bytes]:
    """A document's digest and its bytes as the queue keeps them, as a worker with Redis makes them."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.sha256(text).hexdigest()[:16], zlib.compress(text, 6)


def parse(data: bytes) -> Ranges:
    """The classes of a document; empty for one that cannot be read (a worker may send anything)."""
    try:
        text = zlib.decompressobj().decompress(data, MAX_DOCUMENT)
        document = json.loads(text)
        lists = document["lists"]
        return {str(name): _class_ranges(about, lists) for name, about in document["classes"].items()}
    except (zlib.error, ValueError, LookupError, TypeError, AttributeError):
        return {}


def _class_ranges(about: Mapping[str, Any], lists: list[list[Any]]) -> ClassRanges:
    numbers = {
        str(name): (str(kind), _bound(low), _bound(high)) for name, (kind, low, high) in about.get("n", {}).items()
    }
    choices = {str(name): list(lists[int(at)]) for name, at in about.get("c", {}).items()}
    told, upload = about.get("w"), about.get("u")
    return ClassRanges(
        frozenset(map(str, about.get("r", ()))),
        numbers,
        choices,
        bool(about.get("o")),
        tuple(map(str, told)) if isinstance(told, list) else None,
        frozenset(map(str, about.get("k", ()))),
        upload if isinstance(upload, int) else None,
    )


def _bound(value: Any) -> float | None:
    return value if isinstance(value, int | float) else None


def judge(known: ClassRanges, node_id: str, class_type: str, name: str, value: Any) -> Problem | None:
    """What is wrong with a value (or its absence) for one version of the class."""

    def problem(kind: Kind, message: str, suggestion: str | None = None) -> Problem:
        return Problem(node_id, class_type, name, value, kind, message, suggestion)

    if value is Missing:
        missing = name in known.required
        return problem("required_input_missing", f"the required input {name} is missing.") if missing else None
    if isinstance(value, dict) and "__value__" in value:
        value = value["__value__"]
    if name in known.numbers:
        kind, low, high = known.numbers[name]
        number = _convert(kind, value)
        if number is None:
            return problem("invalid_input_type", f"{name} is no {kind}: {_short(value)!r}.")
        if low is not None and number < low:
            return problem("value_smaller_than_min", f"{name} is {number}; the least is {low}.")
        if high is not None and number > high:
            return problem("value_bigger_than_max", f"{name} is {number}; the most is {high}.")
    elif name in known.choices and value not in known.choices[name]:
        names = [each for each in known.choices[name] if isinstance(each, str)]
        near = next(iter(get_close_matches(str(value)[:_SHOWN], names, n=1, cutoff=0.6)), None)
        hint = f" Did you mean {near}?" if near else f" It takes {', '.join(map(str, known.choices[name][:10]))} …"
        return problem("value_not_in_list", f"{name} does not take {_short(value)!r}.{hint}", near)
    return None


def _convert(kind: str, value: Any) -> float | None:
    """The number that ComfyUI makes of a value."""
    try:
        return int(value) if kind == "INT" else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _short(value: Any) -> Any:
    if isinstance(value, str):
        return value[:_SHOWN]
    return value if isinstance(value, bool | int | float) or value is None else canonical(value)[:_SHOWN].decode()


def judge_all(
    versions: Collection[ClassRanges], node_id: str, class_type: str, name: str, value: Any
) -> Problem | None:
    """What every one of the live versions of a class refuses."""
    found = None
    for known in versions:
        found = judge(known, node_id, class_type, name, value)
        if found is None:
            return None
    return found


class Known:
    """What the live workers say of a class: all of its versions, or ``None`` when one of them says nothing."""

    def __init__(self, workers: Iterable[tuple[Collection[str], Ranges | None]]) -> None:
        self._workers = list(workers)
        self._versions: dict[str, list[ClassRanges] | None] = {}

    def versions(self, class_type: str) -> list[ClassRanges] | None:
        """The versions of a class; ``None`` when nobody has it or somebody says nothing of it."""
        if class_type not in self._versions:
            self._versions[class_type] = self._look(class_type)
        return self._versions[class_type]

    def _look(self, class_type: str) -> list[ClassRanges] | None:
        told = [ranges and ranges.get(class_type) for classes, ranges in self._workers if class_type in classes]
        distinct = {id(each): each for each in told if each}
        return list(distinct.values()) if told and all(told) else None

    def problems(self, graph: Graph, filled: Collection[str] = ()) -> list[Problem]:
        """The first problems of a graph; ``filled`` are ``node.input`` places that get a file before it runs."""
        outputs = [
            id_ for id_, node in graph.items() if any(v.is_output for v in self.versions(node["class_type"]) or ())
        ]
        found: list[Problem] = []
        for node_id in needed(graph, outputs):
            found += self._node_problems(node_id, graph[node_id], filled)
            if len(found) >= MAX_PROBLEMS:
                break
        return found[:MAX_PROBLEMS]

    def again(self, suspects: Iterable[list[Any]]) -> list[Problem]:
        """Those of the problems that were found earlier (:meth:`Problem.suspect`) which are problems still."""
        found = []
        for node_id, class_type, name, *given in suspects:
            versions = self.versions(class_type)
            problem = versions and judge_all(versions, node_id, class_type, name, given[0] if given else Missing)
            if problem:
                found.append(problem)
        return found

    def _node_problems(self, node_id: str, node: dict[str, Any], filled: Collection[str]) -> Iterator[Problem]:
        class_type, inputs = node["class_type"], node["inputs"]
        versions = self.versions(class_type)
        if not versions:
            return
        linked = {name for name, _ in links(node)}
        names = [*inputs, *(name for name in versions[0].required if name not in inputs)]
        for name in names:
            if name not in linked and f"{node_id}.{name}" not in filled:
                problem = judge_all(versions, node_id, class_type, name, inputs.get(name, Missing))
                if problem:
                    yield problem


def node_errors(problems: Iterable[Problem]) -> dict[str, Any]:
    """Problems in ComfyUI's own form."""
    found: dict[str, Any] = {}
    for each in problems:
        entry = found.setdefault(each.node_id, {"errors": [], "dependent_outputs": [], "class_type": each.class_type})
        extra = {"input_name": each.name}
        if each.value is not Missing:
            extra["received_value"] = each.value
        entry["errors"].append({"type": each.kind, "message": each.message, "details": each.name, "extra_info": extra})
    return found
