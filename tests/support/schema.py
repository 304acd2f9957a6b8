"""The published schema, ``docs/schema.json``, as clients check messages by it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jsonschema

SCHEMA = Path(__file__).resolve().parents[2] / "docs" / "schema.json"


@functools.cache
def validator(family: str, kind: str) -> jsonschema.Draft202012Validator:
    """Checks messages of one type."""
    document = json.loads(SCHEMA.read_text())
    for name in document["$defs"][family]["oneOf"]:
        definition = document["$defs"][name["$ref"].rsplit("/", 1)[1]]
        if definition["properties"]["type"].get("const") == kind:
            return jsonschema.Draft202012Validator({"$ref": name["$ref"], "$defs": document["$defs"]})
    raise AssertionError(f"{family} has no {kind}")
