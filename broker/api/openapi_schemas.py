"""What requests of the HTTP interface look like in ``/openapi.json``: their bodies, paths and queries."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from broker.api.streams import PREVIEW_PX
from broker.protocol.access import TENANT, USER
from broker.protocol.base import CONTROL_FREE, JobStatus
from broker.protocol.messages import YEAR_S
from broker.protocol.templates import TEMPLATE_NAME

REF = "#/components/schemas/{model}"
Schema = dict[str, Any]

_STATES = rf"\s*({'|'.join(JobStatus)})?\s*"
_TEXT: Schema = {"type": "string", "maxLength": 128, "pattern": CONTROL_FREE}
_TIME: Schema = {"type": "integer", "minimum": 0, "maximum": 2**53}
_TRUTH: Schema = {"type": "string", "enum": ["true", "false", "1", "0"]}
QUERY: dict[str, Schema] = {
    "status": {"type": "string", "pattern": f"^{_STATES}(,{_STATES})*$"},
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
    "cursor": {"type": "string", "pattern": "^[0-9]{0,16}$"},
    "worker": _TEXT,
    "error": _TEXT,
    "model": {**_TEXT, "maxLength": 512},
    "group": _TEXT,
    "since": _TIME,
    "until": _TIME,
    "age_s": {"type": "number", "exclusiveMinimum": 0, "maximum": YEAR_S},
    "dead": _TRUTH,
    "tenant": {"type": "string", "maxLength": 128},
    "metadata[name]": {"type": "string", "maxLength": 256},
    "after": {"type": "string"},
    "previews": {"type": "string"},
    "px": {"type": "integer", "minimum": PREVIEW_PX[0], "maximum": PREVIEW_PX[1]},
    "shared": _TRUTH,
    "before": {"type": "string", "pattern": "^([0-9]{1,20}-[0-9]{1,20})?$"},
    "filename": {"type": "string"},
}
PATH: dict[str, Schema] = {
    "hash": {"type": "string", "pattern": "^(blake3:)?[0-9a-fA-F]{64}$"},
    "template": {"type": "string", "pattern": f"^{TEMPLATE_NAME}(@[1-9][0-9]{{0,8}})?$"},
    "tenant": {"type": "string", "pattern": TENANT},
    "user": {"type": "string", "pattern": USER},
}
_NAME = {**_TEXT, "minLength": 1}


def path_schema(name: str) -> Schema:
    """What a part of an address may be."""
    return PATH.get(name, _NAME)


def body_schemas(bodies: dict[type[BaseModel], set[str]]) -> dict[str, Schema]:
    """Components for bodies; each with the names that its address gives, which the body need not repeat."""
    models = sorted(bodies, key=lambda model: model.__name__)
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    schemas: dict[str, Schema] = {name: _null_is_absent(schema) for name, schema in found["$defs"].items()}
    for model, names in bodies.items():
        schemas[model.__name__] = _without(schemas[model.__name__], names)
    return schemas


def _null_is_absent(schema: Schema) -> Schema:
    """``null`` means that an optional field was left out."""
    required = schema.get("required", ())
    fields = {
        name: field if name in required else _nullable(field) for name, field in schema.get("properties", {}).items()
    }
    return {**schema, "properties": fields} if fields else schema


def _nullable(field: Schema) -> Schema:
    kept: Schema = {name: field[name] for name in ("title", "description", "default") if name in field}
    kinds = [one for one in field.get("anyOf", ()) if one != {"type": "null"}] or [
        {name: value for name, value in field.items() if name not in kept}
    ]
    return field if kinds == [{}] else {**kept, "anyOf": [*kinds, {"type": "null"}]}


def _without(schema: Schema, names: set[str]) -> Schema:
    """What the address says is not looked at in the body."""
    fields = {name: field for name, field in schema["properties"].items() if name not in names}
    required = [name for name in schema.get("required", ()) if name not in names]
    return {**{k: v for k, v in schema.items() if k != "required"}, "properties": fields} | (
        {"required": required} if required else {}
    )
