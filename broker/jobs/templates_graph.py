"""Parameters and a graph: where a bind leads, and what a graph declares by itself.

A graph declares parameters by nodes titled ``$name`` or ``$name.input`` (several, separated by blanks, for several
inputs of one node), and by the node pack's own input nodes, whose ``name`` is the parameter's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from broker.jobs.ranges import ClassRanges
from broker.jobs.templates_params import NOTHING, Faults, Parameter, Place
from broker.jobs.workflow import Graph, links
from broker.protocol.templates import MAX_PARAMS, MEDIA

Known = Callable[[str], "list[ClassRanges] | None"]
"""What the live workers say of a node class."""

_MARK = re.compile(r"\$([A-Za-z][A-Za-z0-9_-]{0,63})(?:\.(\S{1,128}))?")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_MAIN = ("text", "value", "seed", "noise_seed", "image", "audio", "video", "file", "string", "prompt")
"""Inputs that a title without an input's name means when there are several."""
_FILES = {
    "LoadImage": ("image", "image"), "LoadImageMask": ("image", "image"), "LoadAudio": ("audio", "audio"),
    "LoadVideo": ("file", "video"), "EMQImageInput": ("image", "image"),
}  # fmt: skip
"""Core classes that load a file: by which input, and of which type it is."""
_SEEDS = ("seed", "noise_seed")
_UNBOUND = 1e9
"""The number node's limits as they are before somebody sets them."""


@dataclass(slots=True)
class Declared:
    """What a graph says of itself."""

    params: dict[str, Parameter] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    """Node ids by the names of the pack's output nodes."""


def title_of(node: Mapping[str, Any]) -> str:
    """A node's title in the editor; empty: none."""
    meta = node.get("_meta")
    title = meta.get("title") if isinstance(meta, dict) else None
    return title if isinstance(title, str) else ""


def places(bind: str, graph: Graph, known: Known) -> list[Place]:
    """Where ``node.input`` leads, the node named by its id, its title or its class; raises ``ValueError``."""
    tried: list[str] = []
    for at in [m.start() for m in re.finditer(r"\.", bind)][:20]:
        who, name = bind[:at], bind[at + 1 :]
        if not who or not name:
            continue
        nodes = _named(who, graph)
        good = [node_id for node_id in nodes if _takes(graph[node_id], name, known)]
        if good and len(good) == len(nodes):
            return [(node_id, name) for node_id in good]
        tried += [_refusal(node_id, graph[node_id], name) for node_id in nodes if node_id not in good]
    if tried:
        raise ValueError(tried[0])
    raise ValueError(f"{bind[:100]!r} leads nowhere: the form is node.input, the node by its id, title or class.")


def _named(who: str, graph: Graph) -> list[str]:
    if who in graph:
        return [who]
    titled = [node_id for node_id, node in graph.items() if title_of(node) == who]
    return titled or [node_id for node_id, node in graph.items() if node["class_type"] == who]


def _takes(node: dict[str, Any], name: str, known: Known) -> bool:
    if name in node["inputs"]:
        return name not in {linked for linked, _ in links(node)}
    return any(name in (version.widgets or ()) for version in known(node["class_type"]) or ())


def _refusal(node_id: str, node: dict[str, Any], name: str) -> str:
    where = f"node {node_id[:64]} ({node['class_type'][:64]})"
    if name in node["inputs"]:
        return f"{where}: its input {name[:64]} comes from another node, so a value cannot be put there."
    own = _free_inputs(node)
    near = get_close_matches(name, own, n=1, cutoff=0.6)
    hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(own[:20]) or 'none with a value'}."
    return f"{where} has no input {name[:64]}; {hint}"


def _free_inputs(node: dict[str, Any]) -> list[str]:
    linked = {name for name, _ in links(node)}
    return [name for name in node["inputs"] if name not in linked]


def declared(graph: Graph, known: Known, faults: Faults) -> Declared:
    """The parameters and outputs that a graph declares; what is wrong with them goes to ``faults``."""
    found = Declared()
    for node_id, node in graph.items():
        if node["class_type"] == "EMQOutput":
            _declare_output(found, node_id, node, faults)
            continue
        for name, parameter in _of_node(node_id, node, known, faults):
            _declare(found.params, name, parameter, node_id, faults)
        if len(found.params) > MAX_PARAMS:
            faults.add("workflow", f"it declares more than {MAX_PARAMS} parameters.")
            break
    return found


def _declare(params: dict[str, Parameter], name: str, parameter: Parameter, node_id: str, faults: Faults) -> None:
    """Add a parameter, or the further places of one that is there already."""
    before = params.setdefault(name, parameter)
    if before is parameter:
        return
    joined = replace(before, places=parameter.places)
    if joined == parameter:
        params[name] = replace(before, places=before.places + parameter.places)
    else:
        faults.add(f"workflow.{node_id}", f"the parameter {name} is declared twice, and differently.")


def _of_node(node_id: str, node: dict[str, Any], known: Known, faults: Faults) -> Iterator[tuple[str, Parameter]]:
    class_type, title = node["class_type"], title_of(node).strip()
    try:
        if class_type in _NODES:
            yield _input_node(node_id, node)
        elif title.startswith("$"):
            for word in re.split(r"[\s,]+", title):
                yield _titled(word, node_id, node, known)
    except ValueError as error:
        faults.add(f"workflow.{node_id}", str(error))


# -- titles ---------------------------------------------------------------------------------------------------------


def _titled(word: str, node_id: str, node: dict[str, Any], known: Known) -> tuple[str, Parameter]:
    mark = _MARK.fullmatch(word)
    if not mark:
        raise ValueError(f"the title {word[:100]!r} names no parameter: the form is $name or $name.input.")
    name, wanted = mark[1], mark[2] or _meant(node, mark[1])
    if not _takes(node, wanted, known):
        raise ValueError(_refusal(node_id, node, wanted))
    value = node["inputs"].get(wanted, NOTHING)
    parameter = typed(node["class_type"], wanted, value, known)
    default = NOTHING if parameter.is_file else value
    return name, replace(parameter, places=((node_id, wanted),), default=default)


def _meant(node: dict[str, Any], name: str) -> str:
    free = _free_inputs(node)
    if name in free:
        return name
    if len(free) == 1:
        return free[0]
    main = [each for each in free if each in _MAIN]
    if len(main) == 1:
        return main[0]
    listed = ", ".join(free[:20]) or "none with a value"
    raise ValueError(f"the title ${name} does not say which input it means ({listed}): write ${name}.input.")


def typed(class_type: str, name: str, value: Any, known: Known) -> Parameter:
    """A parameter's type and limits as the input has them: from the live workers, else from its value."""
    input_name, kind = _FILES.get(class_type, ("", ""))
    if name == input_name:
        return Parameter(kind, ())
    versions = known(class_type) or []
    if versions and all(v == versions[0] for v in versions):
        about = versions[0]
        if name in about.numbers:
            number, low, high = about.numbers[name]
            return Parameter("number" if number == "FLOAT" else _whole(name), (), minimum=low, maximum=high)
        if name in about.choices and value in about.choices[name]:
            return Parameter("choice", (), choices=tuple(about.choices[name]))
    kinds = {bool: "boolean", int: _whole(name), float: "number", str: "string"}
    if type(value) not in kinds:
        raise ValueError(f"the input {name[:64]} has a value that no parameter can have.")
    return Parameter(kinds[type(value)], ())


def _whole(name: str) -> str:
    return "seed" if name in _SEEDS else "integer"


# -- the pack's own nodes -------------------------------------------------------------------------------------------


def _input_node(node_id: str, node: dict[str, Any]) -> tuple[str, Parameter]:
    class_type, inputs = node["class_type"], node["inputs"]
    name = inputs.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name.strip()):
        raise ValueError("its name must be a letter, then at most 63 letters, digits, _ or -.")
    described = inputs.get("description")
    bound, make = _NODES[class_type]
    if bound in {linked for linked, _ in links(node)}:
        raise ValueError(f"its {bound} comes from another node.")
    parameter = make(inputs)
    about = described[:2000] if isinstance(described, str) else ""
    return name.strip(), replace(parameter, places=((node_id, bound),), description=about)


def _text(inputs: Mapping[str, Any]) -> Parameter:
    return Parameter("string", (), default=inputs.get("value", ""))


def _number(inputs: Mapping[str, Any]) -> Parameter:
    whole, value = inputs.get("whole") is True, inputs.get("value", 0)
    low, high = (_limit(inputs.get(name), whole) for name in ("minimum", "maximum"))
    return Parameter("integer" if whole else "number", (), default=value, minimum=low, maximum=high)


def _limit(value: Any, whole: bool) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) >= _UNBOUND:
        return None
    return int(value) if whole and float(value).is_integer() else value


def _seed(inputs: Mapping[str, Any]) -> Parameter:
    return Parameter("seed", (), default=inputs.get("value", -1))


def _choice(inputs: Mapping[str, Any]) -> Parameter:
    text = inputs.get("choices")
    lines = [line.strip() for line in text.splitlines()] if isinstance(text, str) else []
    choices = tuple(dict.fromkeys(line for line in lines if line))
    return Parameter("choice", (), choices=choices[:1000], default=inputs.get("value", NOTHING))


def _image(_: Mapping[str, Any]) -> Parameter:
    return Parameter("image", ())


_NODES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Parameter]]] = {
    "EMQTextInput": ("value", _text),
    "EMQNumberInput": ("value", _number),
    "EMQSeedInput": ("value", _seed),
    "EMQChoiceInput": ("value", _choice),
    "EMQImageInput": ("image", _image),
}


def _declare_output(found: Declared, node_id: str, node: dict[str, Any], faults: Faults) -> None:
    name = node["inputs"].get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name.strip()):
        faults.add(f"workflow.{node_id}", "its name must be a letter, then at most 63 letters, digits, _ or -.")
    elif name.strip() in found.outputs:
        faults.add(f"workflow.{node_id}", f"the output {name.strip()} is declared twice.")
    else:
        found.outputs[name.strip()] = node_id


# -- binding --------------------------------------------------------------------------------------------------------


def bound(graph: Graph, params: Mapping[str, Parameter], values: Mapping[str, Any]) -> tuple[Graph, dict[str, Any]]:
    """The graph with its values set, and the files of ``payload.inputs``. The given graph stays as it was."""
    made, files = dict(graph), {}
    for name, value in values.items():
        for node_id, place in params[name].places:
            if params[name].kind in MEDIA:
                files[f"{node_id}.{place}"] = value
            else:
                node = made[node_id]
                made[node_id] = {**node, "inputs": {**node["inputs"], place: value}}
    return made, files
