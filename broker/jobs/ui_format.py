"""Workflows as ComfyUI's editor saves them, converted to its API format.

Only the editor itself knows everything about its own format, so this converts what it is sure of and refuses the rest.
It needs to know which of a class's inputs are widgets, and in which order, which live workers tell
(``broker/jobs/ranges.py``). What the editor does on the way to a prompt is done here too: muted nodes are left out,
bypassed ones and reroutes are passed through, primitives give their value, subgraphs are unfolded (``10:1`` is node 1
of the subgraph that node 10 stands for).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from broker.errors import InvalidWorkflow
from broker.jobs.ranges import ClassRanges
from broker.jobs.workflow import API_HINT, MAX_NODES, Graph

Known = Callable[[str], "Sequence[ClassRanges] | None"]

MUTED, BYPASSED = 2, 4
VIRTUAL = frozenset({"Reroute", "PrimitiveNode", "Note", "MarkdownNote"})
"""Nodes that only the editor has."""
CONTROLS = frozenset({"fixed", "increment", "decrement", "randomize", "increment-wrap"})
MAX_HOPS = 500
MAX_DEPTH = 16
_SUBGRAPH_IN, _SUBGRAPH_OUT = -10, -20


class _Cannot(Exception):
    """Why a workflow cannot be converted."""


@dataclass(frozen=True, slots=True)
class _Value:
    """A value in place of a link: a primitive's."""

    value: Any


@dataclass(slots=True)
class _Scope:
    """The graph itself, or one use of a subgraph."""

    prefix: str
    nodes: dict[int | str, dict[str, Any]]
    links: dict[int | None, tuple[Any, int, Any, int]]
    """Origin node and slot, target node and slot, by the link's id."""
    slots: list[str] = field(default_factory=list)
    """Names of a subgraph's inputs."""
    instance: dict[str, Any] | None = None
    parent: _Scope | None = None
    inner: dict[int | str, _Scope] = field(default_factory=dict)


def convert(ui: Mapping[str, Any], known: Known) -> Graph:
    """The API-format graph; raises ``InvalidWorkflow`` with what stands in the way."""
    try:
        return _Converter(ui, known).graph()
    except _Cannot as reason:
        text = f"This is a workflow as ComfyUI's editor saves it, and it cannot be converted: {reason} {API_HINT}"
        raise InvalidWorkflow(text, node_errors={}, reason="ui_format") from None


class _Converter:
    def __init__(self, ui: Mapping[str, Any], known: Known) -> None:
        self._known = known
        self._left = MAX_NODES
        self._definitions = {
            d["id"]: d for d in _dicts(_dict(ui.get("definitions")).get("subgraphs")) if isinstance(d.get("id"), str)
        }
        self._uses: dict[str, int] = {}
        self._root = self._scope("", ui, 0)

    def _scope(self, prefix: str, part: Mapping[str, Any], depth: int) -> _Scope:
        if depth > MAX_DEPTH:
            raise _Cannot(f"its subgraphs lie deeper than {MAX_DEPTH} in each other.")
        nodes = {_id(node): node for node in _dicts(part.get("nodes"))}
        self._left -= len(nodes)
        if self._left < 0:
            raise _Cannot(f"it has more than {MAX_NODES} nodes.")
        slots = [str(each.get("name")) for each in _dicts(part.get("inputs"))]
        scope = _Scope(prefix, nodes, dict(_links(part.get("links"))), slots)
        for node_id, node in nodes.items():
            definition = self._definitions.get(_type(node))
            if definition is not None and node.get("mode") not in (MUTED, BYPASSED):
                self._uses[_type(node)] = self._uses.get(_type(node), 0) + 1
                inner = self._scope(f"{prefix}{node_id}:", definition, depth + 1)
                inner.instance, inner.parent = node, scope
                scope.inner[node_id] = inner
        return scope

    def graph(self) -> Graph:
        """Every node that would run."""
        found = list(self._executed(self._root))
        unknown = sorted({_type(node) for _, _, node in found if not self._layouts(_type(node))})
        if unknown:
            names = ", ".join(name[:64] for name in unknown[:20])
            raise _Cannot(f"no live worker tells of the node classes {names}.")
        if not found:
            raise _Cannot("it has no nodes that would run.")
        return {name: self._node(name, scope, node) for name, scope, node in found}

    def _executed(self, scope: _Scope) -> Iterator[tuple[str, _Scope, dict[str, Any]]]:
        for node_id, node in scope.nodes.items():
            if node_id in scope.inner:
                yield from self._executed(scope.inner[node_id])
            elif node.get("mode") not in (MUTED, BYPASSED) and _type(node) not in VIRTUAL:
                yield f"{scope.prefix}{node_id}", scope, node

    def _layouts(self, class_type: str) -> list[ClassRanges]:
        return [version for version in self._known(class_type) or () if version.widgets is not None]

    def _node(self, name: str, scope: _Scope, node: dict[str, Any]) -> dict[str, Any]:
        inputs = self._widgets(name, node)
        for each in _dicts(node.get("inputs")):
            source = self._source(scope, each.get("link"), str(each.get("type")), MAX_HOPS)
            if isinstance(source, _Value):
                inputs[_name(each)] = _literal(source.value)
            elif source is not None:
                inputs[_name(each)] = source
        title = node.get("title")
        title = title if isinstance(title, str) and title else _type(node)
        return {"inputs": inputs, "class_type": _type(node), "_meta": {"title": title}}

    def _widgets(self, name: str, node: dict[str, Any]) -> dict[str, Any]:
        values, sockets = node.get("widgets_values"), _sockets(node)
        layouts = self._layouts(_type(node))
        if isinstance(values, dict):
            return {key: _literal(values[key]) for key in layouts[0].widgets or () if key in values}
        values = values if isinstance(values, list) else []
        for layout in layouts:
            found = _assigned(values, layout, sockets)
            if found is not None:
                return {key: _literal(value) for key, value in found.items()}
        raise _Cannot(f"node {name} has {len(values)} values, which is not what the fleet's {_type(node)[:64]} takes.")

    # -- where a link comes from ------------------------------------------------------------------------------------

    def _source(self, scope: _Scope, link_id: Any, kind: str, hops: int) -> list[Any] | _Value | None:
        """The node and output that an input's link leads to, or a value; ``None``: nothing is left of it."""
        if (link := scope.links.get(_hashable(link_id))) is None:
            return None
        if hops <= 0:
            raise _Cannot("its links go in circles.")
        origin, slot, _, _ = link
        if origin == _SUBGRAPH_IN and scope.parent is not None and scope.instance is not None:
            return self._from_outside(scope, slot, kind, hops - 1)
        node = scope.nodes.get(origin)
        if node is None or node.get("mode") == MUTED:
            return None
        if _type(node) == "PrimitiveNode" and node.get("mode") != BYPASSED:
            values = node.get("widgets_values")
            return _Value(values[0]) if isinstance(values, list) and values else None
        onward = self._onward(scope, node, slot, kind)
        return self._source(*onward, kind, hops - 1) if onward else [f"{scope.prefix}{origin}", slot]

    @staticmethod
    def _onward(scope: _Scope, node: dict[str, Any], slot: int, kind: str) -> tuple[_Scope, Any] | None:
        """Where a node that does not run itself has an output from; ``None``: it runs."""
        inputs = _dicts(node.get("inputs"))
        if node.get("mode") == BYPASSED:
            return scope, _bypass(node, inputs, slot, kind)
        if _type(node) == "Reroute":
            return scope, inputs[0].get("link") if inputs else None
        if inner := scope.inner.get(_id(node)):
            ends = [i for i, (_, _, to, at) in inner.links.items() if to == _SUBGRAPH_OUT and at == slot]
            return inner, ends[0] if ends else None
        return None

    def _from_outside(self, scope: _Scope, slot: int, kind: str, hops: int) -> list[Any] | _Value | None:
        """What the node that stands for a subgraph has at one of its inputs."""
        instance, parent = scope.instance or {}, scope.parent or scope
        name = scope.slots[slot] if 0 <= slot < len(scope.slots) else None
        # By name: the editor leaves inputs out that show a widget and have no link.
        for each in _dicts(instance.get("inputs")):
            if each.get("name") == name and each.get("link") is not None:
                return self._source(parent, each["link"], kind, hops)
        shown, values = _shown(scope), instance.get("widgets_values")
        if name not in shown or not isinstance(values, list) or not values:
            return None
        if len(shown) == len(values):
            return _Value(values[shown.index(name)])
        if self._uses.get(_type(instance), 0) > 1:
            raise _Cannot(f"the subgraph of node {_id(instance)} is used several times, with values of its own.")
        return None  # the editor has written the value into the subgraph's own node


def _shown(scope: _Scope) -> list[str]:
    """The inputs of a subgraph that its node shows as widgets, in the order of that node's values."""
    told = _dict((scope.instance or {}).get("properties")).get("proxyWidgets")
    if isinstance(told, list):
        # Those of nodes inside keep their values there; -1 stands for the subgraph's own inputs.
        pairs = [each for each in told if isinstance(each, list) and len(each) == 2]
        return [str(name) for node_id, name in pairs if str(node_id) == "-1"]
    fed = [
        _hashable(each.get("link"))
        for node in scope.nodes.values()
        for each in _dicts(node.get("inputs"))
        if each.get("widget")
    ]
    links = [scope.links[link] for link in fed if link in scope.links]
    widgets = {slot for origin, slot, _, _ in links if origin == _SUBGRAPH_IN}
    return [name for slot, name in enumerate(scope.slots) if slot in widgets]


def _assigned(values: Sequence[Any], layout: ClassRanges, sockets: set[str]) -> dict[str, Any] | None:
    """Values by the names of widgets, or ``None`` when they cannot be this class's."""
    found: dict[str, Any] = {}
    left = list(values)
    for at, name in enumerate(layout.widgets or ()):
        if at == layout.upload_at:
            _skip_button(left, len(layout.widgets or ()) - at)
        if name in sockets:
            continue
        if not left:
            return None if name in layout.required else found
        found[name] = left.pop(0)
        if not _fits(found[name], name, layout):
            return None
        if name in layout.controlled and left and left[0] in (*CONTROLS, None):
            left.pop(0)
    extra = layout.upload_at is not None or not any(value not in (None, "") for value in left)
    return found if extra else None


def _skip_button(left: list[Any], widgets: int) -> None:
    """The button that uploads a file has a value of its own, after those of the required inputs."""
    if len(left) > widgets:
        left.pop(0)


def _fits(value: Any, name: str, layout: ClassRanges) -> bool:
    """Whether a number is where a number belongs: else an entry is missing or too many."""
    return name not in layout.numbers or (isinstance(value, int | float) and not isinstance(value, bool))


def _bypass(node: dict[str, Any], inputs: list[dict[str, Any]], slot: int, kind: str) -> Any:
    """The link of the input that a bypassed node passes on: of the same type, the same place first."""
    outputs = _dicts(node.get("outputs"))
    kind = str(outputs[slot].get("type")) if slot < len(outputs) else kind
    for each in [*inputs[slot : slot + 1], *inputs]:
        if str(each.get("type")) == kind:
            return each.get("link")
    return None


def _sockets(node: dict[str, Any]) -> set[str]:
    """Inputs that this node shows as sockets only, whatever the class says."""
    return {_name(each) for each in _dicts(node.get("inputs")) if not each.get("widget") and "link" in each}


def _links(links: Any) -> Iterator[tuple[int, tuple[Any, int, Any, int]]]:
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict):
            names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
            link = [link.get(name) for name in names]  # noqa: PLW2901
        if not isinstance(link, list) or len(link) < 5 or not all(_is_id(part) for part in link[:5]):
            raise _Cannot("one of its links cannot be read.")
        if not isinstance(link[2], int) or not isinstance(link[4], int) or not isinstance(link[0], int):
            raise _Cannot("one of its links cannot be read.")
        yield link[0], (link[1], link[2], link[3], link[4])


def _hashable(link_id: Any) -> int | None:
    return link_id if isinstance(link_id, int) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _id(node: Mapping[str, Any]) -> int | str:
    found = node.get("id")
    if not isinstance(found, int | str) or isinstance(found, bool) or not 0 < len(str(found)) <= 64:
        raise _Cannot("one of its nodes has no id.")
    return found


def _type(node: Mapping[str, Any]) -> str:
    found = node.get("type")
    if not isinstance(found, str) or not found:
        raise _Cannot(f"node {str(node.get('id'))[:64]} has no type.")
    return found


def _name(each: Mapping[str, Any]) -> str:
    widget = each.get("widget")
    found = widget.get("name") if isinstance(widget, dict) else each.get("name")
    if not isinstance(found, str):
        raise _Cannot("one of its inputs has no name.")
    return found


def _literal(value: Any) -> Any:
    """A list would be read as a link."""
    return {"__value__": value} if isinstance(value, list) else value


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
