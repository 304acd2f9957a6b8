"""The graph of a submit: found in its payload and checked as far as a broker can.

A class that no worker knows is no error here: a worker that has it may come. Problems are told in ComfyUI's own
``node_errors`` form: ``{node: {"errors": [{type, message, details, extra_info}], "dependent_outputs", "class_type"}}``.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from broker.errors import InvalidWorkflow

Graph = dict[str, dict[str, Any]]

MAX_NODES = 5000
MAX_INPUTS = 64
MAX_REPORTED = 50
API_HINT = "In ComfyUI use File > Export (API), or Save (API Format) in older versions."


def looks_like_ui(value: Any) -> bool:
    """Whether this is a workflow as ComfyUI's editor saves it: it has node and link lists, not classes by id."""
    return isinstance(value, dict) and isinstance(value.get("nodes"), list) and ("links" in value or "version" in value)


def _is_bare_graph(payload: dict[str, Any]) -> bool:
    return any(isinstance(node, dict) and "class_type" in node for node in payload.values())


def normalise(
    payload: dict[str, Any], *, graph_required: bool = True, convert: Callable[[dict[str, Any]], Graph] | None = None
) -> dict[str, Any]:
    """Bring the three ways of naming a graph to one: ``{"workflow": graph, …the other fields}``.

    A graph in the editor's format is given to ``convert``; without one it is refused. Raises ``InvalidWorkflow`` when
    there is none. With ``graph_required=False`` (another job type) such a payload passes as it is.
    """
    named = [name for name in ("workflow", "prompt") if _is_named_graph(payload.get(name))]
    if looks_like_ui(payload):
        named, payload = ["workflow"], {"workflow": payload}
    if named:
        name = next((n for n in named if not looks_like_ui(payload[n])), named[0])
        rest = {key: value for key, value in payload.items() if key not in ("workflow", "prompt")}
        if looks_like_ui(payload[name]):
            if convert is None:
                _refuse_ui()
            else:
                _keep_ui(rest, payload[name])
                return {"workflow": convert(payload[name]), **rest}
        if name == "prompt" and looks_like_ui(payload.get("workflow")):
            _keep_ui(rest, payload["workflow"])
        return {"workflow": payload[name], **rest}
    if _is_bare_graph(payload):
        return {"workflow": payload}
    if graph_required:
        raise InvalidWorkflow(
            "The payload has no workflow: give an API-format graph as payload.workflow. " + API_HINT, node_errors={}
        )
    return payload


def _is_named_graph(value: Any) -> bool:
    """Not a node of a bare graph that happens to have the id ``workflow``."""
    return isinstance(value, dict) and not isinstance(value.get("class_type"), str)


def _keep_ui(rest: dict[str, Any], ui: dict[str, Any]) -> None:
    """A picture's metadata has both forms: pass the editor's one along, so that saved pictures reopen there."""
    extra = rest.get("extra_data")
    if extra is None:
        rest["extra_data"] = {"extra_pnginfo": {"workflow": ui}}
    elif isinstance(extra, dict) and "extra_pnginfo" not in extra:
        rest["extra_data"] = {**extra, "extra_pnginfo": {"workflow": ui}}


def _refuse_ui() -> NoReturn:
    raise InvalidWorkflow(
        "This is a workflow as ComfyUI's editor saves it; EMQ takes the API format. " + API_HINT,
        node_errors={},
        reason="ui_format",
    )


def links(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """A node's ``(input, source node)`` links: values that are ``["node", slot]``."""
    for name, value in node["inputs"].items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and type(value[1]) is int:
            yield name, value[0]


def needed(graph: Graph, outputs: Iterable[str]) -> list[str]:
    """The nodes that some of the ``outputs`` are made from, themselves included, in the graph's order."""
    found, ahead = set(), list(outputs)
    while ahead:
        node_id = ahead.pop()
        if node_id not in found:
            found.add(node_id)
            ahead += [source for _, source in links(graph[node_id])]
    return [node_id for node_id in graph if node_id in found]


class _Findings:
    """Problems by node, in ComfyUI's form."""

    def __init__(self) -> None:
        self.node_errors: dict[str, dict[str, Any]] = {}

    def add(self, node_id: str, node: Any, kind: str, message: str, details: str = "", **extra: Any) -> None:
        class_type = node.get("class_type") if isinstance(node, dict) else None
        entry = self.node_errors.setdefault(node_id, {"errors": [], "dependent_outputs": [], "class_type": class_type})
        entry["errors"].append({"type": kind, "message": message, "details": details, "extra_info": extra})


def check(graph: Any) -> Graph:
    """The graph, if a ComfyUI could read it; else ``InvalidWorkflow``."""
    if not isinstance(graph, dict):
        raise InvalidWorkflow("The workflow is not an object of nodes. " + API_HINT, node_errors={})
    if not graph:
        raise InvalidWorkflow("The workflow is empty: it has no nodes.", node_errors={}, reason="prompt_no_outputs")
    if len(graph) > MAX_NODES:
        raise InvalidWorkflow(f"The workflow has {len(graph)} nodes; at most {MAX_NODES} are accepted.", node_errors={})
    found = _Findings()
    for node_id, node in graph.items():
        if len(found.node_errors) >= MAX_REPORTED:
            break
        _check_node(node_id, node, graph, found)
    if not found.node_errors:
        _check_cycles(graph, found)
    if found.node_errors:
        raise InvalidWorkflow(_summary(found.node_errors), node_errors=found.node_errors)
    return graph


def _summary(node_errors: dict[str, dict[str, Any]]) -> str:
    node_id, entry = next(iter(node_errors.items()))
    error = entry["errors"][0]
    more = f" ({len(node_errors) - 1} more nodes have problems.)" if len(node_errors) > 1 else ""
    return f"Node {node_id[:64]}: {error['message']} {error['details']}".rstrip() + more


def _check_node(node_id: str, node: Any, graph: dict[str, Any], found: _Findings) -> None:
    if not node_id or len(node_id) > 128 or not node_id.isprintable():
        found.add(node_id[:128], node, "invalid_prompt", "The node's id must be 1 to 128 printable characters.")
    if not isinstance(node, dict):
        found.add(node_id, node, "invalid_prompt", "A node must be an object with class_type and inputs.")
        return
    class_type = node.get("class_type")
    if class_type is None:
        found.add(node_id, node, "missing_node_type", "The node has no class_type.", f"Node ID '#{node_id}'")
    elif not isinstance(class_type, str) or not 0 < len(class_type) <= 512 or not class_type.isprintable():
        found.add(node_id, {}, "invalid_prompt", "class_type must be the name of a node class.")
    inputs = node.get("inputs")
    if not isinstance(inputs, dict):
        found.add(node_id, node, "invalid_prompt", "The node has no inputs object.", "Give {} when it takes none.")
    elif len(inputs) > MAX_INPUTS:
        found.add(node_id, node, "invalid_prompt", f"The node has {len(inputs)} inputs; at most {MAX_INPUTS}.")
    else:
        _check_links(node_id, node, graph, found)


def _check_links(node_id: str, node: dict[str, Any], graph: dict[str, Any], found: _Findings) -> None:
    for name, source in links(node):
        if source not in graph:
            found.add(
                node_id, node, "exception_during_validation", f"Input '{name}' is linked to node {source[:64]!r},",
                "which is not in the workflow.", input_name=name, linked_node=[source, 0],
            )  # fmt: skip


def _check_cycles(graph: Graph, found: _Findings) -> None:
    """Find one cycle, without recursion: peel off nodes all of whose sources are done."""
    sources = {node_id: {source for _, source in links(node)} for node_id, node in graph.items()}
    users: dict[str, list[str]] = {}
    for node_id, its in sources.items():
        for source in its:
            users.setdefault(source, []).append(node_id)
    ready = [node_id for node_id, its in sources.items() if not its]
    left = {node_id: len(its) for node_id, its in sources.items()}
    while ready:
        done = ready.pop()
        del left[done]
        for user in users.get(done, ()):
            left[user] -= 1
            if left[user] == 0:
                ready.append(user)
    if left:
        node_id = next(iter(left))
        found.add(node_id, graph[node_id], "dependency_cycle", "The node's inputs depend on its own output.")


def check_inputs(inputs: dict[str, dict[str, Any]], graph: Graph) -> None:
    """Every key of ``payload.inputs`` must be ``node_id.input_name`` of the graph; base64 must decode."""
    found = _Findings()
    for key, source in inputs.items():
        node_id = target(key, graph)
        if node_id is None:
            found.add(key.split(".")[0][:128], {}, "invalid_prompt", f"inputs names {key[:160]!r},",
                      "but no such node is in the workflow (the form is node_id.input_name).")  # fmt: skip
        elif source.get("base64") is not None and not _is_base64(source["base64"]):
            found.add(node_id, graph[node_id], "invalid_input_type", f"inputs[{key[:160]!r}].base64 is not base64.")
    if found.node_errors:
        raise InvalidWorkflow(_summary(found.node_errors), node_errors=found.node_errors)


def target(key: str, graph: Graph) -> str | None:
    """The node that ``node_id.input_name`` means, or ``None``; node ids have no dots, inputs may."""
    node_id, dot, name = key.partition(".")
    return node_id if dot and name and node_id in graph else None


def _is_base64(text: str) -> bool:
    """Whether a worker can decode it; browsers put a ``data:`` URL's head before it."""
    head, mark, content = text.partition(";base64,")
    try:
        base64.b64decode((content if mark and head.startswith("data:") else text).encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return False
    return True
