"""Workflow templates: stored with versions, one for all or for a tenant, and bound to parameters at the submit.

A tenant's own template hides a shared one of the same name. A version never changes and its number is never given
again, so what ``name@3`` means is certain for ever.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from blake3 import blake3

from broker.errors import BadMessage, Conflict, EmqError, NotFound, PayloadTooLarge
from broker.jobs import pictures, strict
from broker.jobs.fleet import Fleet
from broker.jobs.templates_graph import Known, bound, declared, places
from broker.jobs.templates_params import NOTHING, Faults, Parameter, check, restored, schema, stored, values
from broker.jobs.ui_format import convert
from broker.jobs.workflow import Graph, normalise
from broker.jobs.workflow import check as check_graph
from broker.protocol import templates as t
from broker.protocol.base import now_ms
from broker.queue.templates import SHARED, TemplateStore, Versions

MAX_VERSIONS = 100
"""Of one template."""
MAX_KEPT = 2000
"""Versions of one owner's templates together."""
MAX_KEPT_BYTES = 64 << 20
RECORDED_BYTES = 8192
"""Of a job's parameters in its record, which every list of jobs reads; the longest are left out beyond it."""
_CACHED = 64
_REFERENCE = re.compile(rf"({t.TEMPLATE_NAME})(?:@([1-9][0-9]{{0,8}}))?")


@dataclass(frozen=True, slots=True)
class Loaded:
    """One version of a template."""

    owner: str
    name: str
    version: int
    graph: Graph
    params: dict[str, Parameter]
    outputs: dict[str, str]

    @property
    def reference(self) -> str:
        """``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Bound:
    """A payload made from a template."""

    payload: dict[str, Any]
    template: str
    params: dict[str, Any]
    """Every parameter's value, drawn seeds among them."""
    seeds: frozenset[str] = frozenset()

    def recorded(self, *, secret: bool = False) -> dict[str, Any]:
        """What the job's record keeps of them: short ones, no content of files; ``secret``: seeds only."""
        kept = {k: _without_content(v) for k, v in self.params.items() if not secret or k in self.seeds}
        sizes = sorted(((strict.size(v), k) for k, v in kept.items()), reverse=True)
        total = sum(size + len(k) for size, k in sizes)
        for size, name in sizes:
            if total <= RECORDED_BYTES:
                break
            del kept[name]
            total -= size + len(name)
        return kept


def _without_content(value: Any) -> Any:
    """A file without the bytes that came with it."""
    return {k: v for k, v in value.items() if k != "base64"} if isinstance(value, dict) else value


def parse_reference(text: str) -> tuple[str, int | None]:
    """A template's name and version (``None``: the latest); raises ``NotFound`` for what cannot be one."""
    match = _REFERENCE.fullmatch(text)
    if not match:
        raise _missing(text)
    return match[1], int(match[2]) if match[2] else None


def _missing(text: str) -> NotFound:
    return NotFound(f"There is no workflow template {text[:128]!r}.")


class Templates:
    """The templates of one pool. Every method raises ``Unavailable`` while Redis is away."""

    def __init__(self, store: TemplateStore, fleet: Fleet, max_payload: int) -> None:
        self._store = store
        self._fleet = fleet
        self._max_payload = max_payload
        self._cache: OrderedDict[tuple[str, str, int], Loaded] = OrderedDict()

    # -- managing -----------------------------------------------------------------------------------------------------

    async def put(self, owner: str, name: str, new: t.PutTemplate) -> tuple[t.TemplateStored, bool]:
        """Store a version, unless the latest is just this one; answers whether it is new.

        Raises ``BadMessage`` with every fault, ``InvalidWorkflow``, ``PayloadTooLarge``, ``Conflict`` at a limit.
        """
        if not re.fullmatch(t.TEMPLATE_NAME, name):
            raise BadMessage("A template's name is a letter or digit, then at most 63 letters, digits, . _ or -.")
        known = (await self._fleet.view()).values.versions
        was_ui: list[bool] = []

        def converted(ui: dict[str, Any]) -> Graph:
            was_ui.append(True)
            return convert(ui, known)

        graph = _clean(check_graph(normalise(new.workflow, convert=converted)["workflow"]))
        params, outputs = _parameters(graph, new, known)
        document = {
            "workflow": graph,
            "params": {key: stored(parameter) for key, parameter in params.items()},
            "outputs": outputs,
        }
        version, fresh = await self._add(owner, name, new.description, document)
        answer = t.TemplateStored.model_validate({
            "message_id": new.message_id,
            "name": name,
            "version": version,
            "shared": owner == SHARED,
            "params": _public(params),
            "outputs": outputs,
            "schema": schema(params),
            "converted": bool(was_ui),
        })  # fmt: skip
        return answer, fresh

    async def _add(self, owner: str, name: str, description: str, document: dict[str, Any]) -> tuple[int, bool]:
        text = strict.dumps(document).encode()
        if len(text) > self._max_payload:
            raise PayloadTooLarge(
                f"The template has {len(text)} bytes; at most {self._max_payload} are accepted.",
                size=len(text),
                limit=self._max_payload,
            )
        kept = await self._store.listing(owner)
        mine = kept.get(name, {})
        digest = blake3(text + b"\n" + description.encode()).hexdigest()[:32]
        if mine and _summary(mine, max(mine)).get("digest") == digest:
            return max(mine), False
        every = [_summary(versions, v) for versions in kept.values() for v in versions]
        size = sum(each.get("bytes", 0) for each in every) + len(text)
        if len(mine) >= MAX_VERSIONS or len(every) >= MAX_KEPT or size > MAX_KEPT_BYTES:
            raise Conflict(
                f"At most {MAX_VERSIONS} versions of a template, {MAX_KEPT} of all and {MAX_KEPT_BYTES >> 20} MiB "
                "are kept: remove some that are not used any more.",
                reason="limit",
            )
        summary = {"description": description, "created_at": now_ms(), "digest": digest, "bytes": len(text)}
        return await self._store.add(owner, name, strict.dumps(summary).encode(), text), True

    async def listing(self, tenant: str) -> list[dict[str, Any]]:
        """A tenant's templates and the shared ones that they do not hide, by name."""
        shared, own = await self._store.listing(SHARED), await self._store.listing(tenant)
        rows = {**{name: (SHARED, v) for name, v in shared.items()}, **{name: (tenant, v) for name, v in own.items()}}
        return [_described(owner, name, versions, max(versions)) for name, (owner, versions) in sorted(rows.items())]

    async def show(self, tenant: str, reference: str) -> dict[str, Any]:
        """One version with its workflow and schema; raises ``NotFound``."""
        found = await self._load(tenant, reference)
        (versions,) = await self._store.versions((found.owner, found.name))
        if found.version not in versions:
            raise _missing(reference)
        return {
            **_described(found.owner, found.name, versions, found.version),
            "params": _public(found.params),
            "outputs": found.outputs,
            "schema": schema(found.params),
            "workflow": found.graph,
        }

    async def remove(self, owner: str, reference: str) -> t.TemplatesRemoved:
        """Remove a version, or all of them; raises ``NotFound``."""
        name, version = parse_reference(reference)
        (numbers,) = await self._store.numbers((owner, name))
        wanted = numbers if version is None else [version]
        removed = await self._store.remove(owner, name, wanted) if wanted else []
        if not removed:
            raise _missing(reference)
        return t.TemplatesRemoved(name=name, removed=removed)

    async def test(self, tenant: str, reference: str, params: dict[str, Any]) -> t.BoundTemplate:
        """What a job with these parameters would run; raises ``NotFound``, ``BadMessage``."""
        found = await self._load(tenant, reference)
        made = self.bind({"template": reference, "params": params}, found)
        payload = made.payload
        return t.BoundTemplate(
            template=made.template, params=made.params, workflow=payload["workflow"], inputs=payload.get("inputs", {})
        )

    # -- at the submit ------------------------------------------------------------------------------------------------

    async def named(self, tenant: str, messages: Iterable[Mapping[str, Any]]) -> dict[str, Loaded | EmqError]:
        """The templates that submits name, by reference; what is wrong with one stands in its place."""
        found: dict[str, Loaded | EmqError] = {}
        for message in messages:
            payload = message.get("payload")
            reference = payload.get("template") if isinstance(payload, dict) else None
            if isinstance(reference, str) and reference not in found:
                try:
                    found[reference] = await self._load(tenant, reference)
                except NotFound as error:
                    found[reference] = error
        return found

    def bind(self, payload: Mapping[str, Any], template: Loaded) -> Bound:
        """A payload's template with its parameters; raises ``BadMessage`` with all faults, ``PayloadTooLarge``."""
        for other in ("workflow", "prompt"):
            if payload.get(other) is not None:
                raise BadMessage(f"payload has a template and a {other}: give one of them.")
        rest = {key: value for key, value in payload.items() if key not in ("template", "params", "workflow", "prompt")}
        given = payload.get("params")
        params = values(template.params, {} if given is None else given)
        self._check_size(template, params)
        graph, files = bound(template.graph, template.params, params)
        inputs = rest.get("inputs")
        if files and (inputs is None or isinstance(inputs, dict)):
            rest["inputs"] = {**(inputs or {}), **files}
        seeds = frozenset(name for name in params if template.params[name].kind == "seed")
        return Bound({"workflow": graph, **rest}, template.reference, params, seeds)

    def _check_size(self, template: Loaded, params: Mapping[str, Any]) -> None:
        """A value may go to many places: what comes out must not be larger than what may come in."""
        size = strict.size(template.graph)
        size += sum(strict.size(value) * len(template.params[name].places) for name, value in params.items())
        if size > self._max_payload:
            raise PayloadTooLarge(
                f"With its parameters the workflow has {size} bytes; at most {self._max_payload} are accepted. "
                "Send input files as assets or URLs.",
                size=size,
                limit=self._max_payload,
            )

    async def _load(self, tenant: str, reference: str) -> Loaded:
        name, version = parse_reference(reference)
        own, shared = await self._store.numbers((tenant, name), (SHARED, name))
        owner, numbers = (tenant, own) if own else (SHARED, shared)
        if not numbers or (version is not None and version not in numbers):
            raise _missing(reference)
        key = (owner, name, numbers[-1] if version is None else version)
        if key not in self._cache:
            document = await self._store.document(*key)
            if document is None:
                raise _missing(reference)
            self._cache[key] = _loaded(key, document)
            if len(self._cache) > _CACHED:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]


def from_picture(data: bytes, limit: int) -> t.PutTemplate:
    """What a picture's metadata says; raises ``BadMessage``, ``BadJson``."""
    found = pictures.payload_of(data, limit)
    workflow = found.get("prompt") or found.get("workflow")
    if not isinstance(workflow, dict):
        raise BadMessage("The picture's workflow is not an object.")
    return t.PutTemplate(workflow=workflow)


def _loaded(key: tuple[str, str, int], document: bytes) -> Loaded:
    content = strict.parse(document)
    params = {name: restored(about) for name, about in content["params"].items()}
    return Loaded(*key, content["workflow"], params, content["outputs"])


def _summary(versions: Versions, version: int) -> dict[str, Any]:
    found: dict[str, Any] = strict.parse(versions[version])
    return found


def _described(owner: str, name: str, versions: Versions, version: int) -> dict[str, Any]:
    summary = _summary(versions, version)
    return {
        "name": name,
        "version": version,
        "versions": list(versions),
        "shared": owner == SHARED,
        "description": summary.get("description", ""),
        "created_at": summary.get("created_at", 0),
    }


def _public(params: Mapping[str, Parameter]) -> dict[str, dict[str, Any]]:
    return {name: parameter.public() for name, parameter in params.items()}


def _clean(graph: Graph) -> Graph:
    """The graph without what programs add to it beside ComfyUI's own fields."""
    found: Graph = {}
    for node_id, node in graph.items():
        meta = node.get("_meta")
        title = meta.get("title") if isinstance(meta, dict) else None
        kept = {"class_type": node["class_type"], "inputs": node["inputs"]}
        found[node_id] = {**kept, "_meta": {"title": title}} if isinstance(title, str) else kept
    return found


def _parameters(graph: Graph, new: t.PutTemplate, known: Known) -> tuple[dict[str, Parameter], dict[str, str]]:
    """The parameters that the graph declares and those that come with it, which count more; raises ``BadMessage``."""
    faults = Faults()
    said = declared(graph, known, faults)
    params = said.params
    for name, spec in new.params.items():
        params[name] = _given(f"params.{name}", spec, graph, known, faults)
    for name, parameter in params.items():
        check(parameter, f"params.{name}", faults)
    _check_places(params, faults)
    faults.check()
    return {name: _settled(parameter) for name, parameter in params.items()}, said.outputs


def _settled(parameter: Parameter) -> Parameter:
    """With its default as it would be bound: 20, not 20.0, for an integer."""
    return parameter if parameter.default is NOTHING else replace(parameter, default=parameter.read(parameter.default))


def _given(path: str, spec: t.ParamSpec, graph: Graph, known: Known, faults: Faults) -> Parameter:
    found = []
    for i, bind in enumerate(spec.bind):
        try:
            found += places(bind, graph, known)
        except ValueError as error:
            faults.add(f"{path}.bind.{i}", str(error))
    return Parameter(
        kind=spec.type,
        places=tuple(dict.fromkeys(found)),
        default=spec.default if "default" in spec.model_fields_set else NOTHING,
        minimum=spec.minimum,
        maximum=spec.maximum,
        choices=tuple(spec.choices or ()),
        description=spec.description,
    )


def _check_places(params: Mapping[str, Parameter], faults: Faults) -> None:
    """An input is set by one parameter, and a node that takes a file can be named in ``payload.inputs``."""
    owners: dict[tuple[str, str], str] = {}
    for name, parameter in params.items():
        for place in parameter.places:
            other = owners.setdefault(place, name)
            if other != name:
                faults.add(f"params.{name}", f"{place[0]}.{place[1]} is bound to {other} as well.")
            if parameter.is_file and "." in place[0]:
                faults.add(f"params.{name}", f"node {place[0]} has a dot in its id, so it cannot be given a file.")
