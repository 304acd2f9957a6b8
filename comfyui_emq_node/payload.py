"""A job's payload: the workflow in it, what goes along to ComfyUI, and the model files it names."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from .inventory import MODEL_ENDINGS, slashed

MAX_PAYLOAD = 64 << 20
MARK_INPUT = "emq_prompt"

FILE_INPUTS = frozenset({"image", "mask", "video", "audio", "file", "latent", "model_file", "filename_prefix", "path"})
"""Inputs by which ComfyUI's nodes name files."""
STRAY = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\~]|^[A-Za-z]:|\x00|\[(output|temp)\]\s*$")
"""What leads out of the input folder, or to what other jobs have made."""

ModelInputs = Mapping[str, Mapping[str, str]]
"""Which inputs of which classes name a file of which folder."""


class BadPayload(Exception):
    """The payload is no workflow."""


def read_payload(data: bytes) -> dict[str, Any]:
    """The payload's JSON, unpacked where it is zlib's."""
    try:
        if not data.startswith(b"{"):
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, MAX_PAYLOAD)
        payload = json.loads(data)
    except (ValueError, RecursionError, zlib.error) as error:
        raise BadPayload(f"The payload cannot be read: {error}") from error
    if not isinstance(payload, dict):
        raise BadPayload("The payload is not a JSON object.")
    return payload


def graph_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The API-format graph: ``workflow``, ``prompt``, or the payload itself."""
    for name in ("workflow", "prompt"):
        graph = payload.get(name)
        if isinstance(graph, dict) and "class_type" not in graph:
            break
    else:
        graph = dict(payload)
    if not graph or not all(isinstance(node, dict) for node in graph.values()):
        raise BadPayload("The payload has no workflow in ComfyUI's API format.")
    return graph


def mark_outputs(graph: Mapping[str, Any], is_output: Callable[[str], bool], mark: str) -> None:
    """Make output nodes differ from those of every other prompt: an input that no node has is a part of ComfyUI's cache
    key, and otherwise goes nowhere."""
    for node in graph.values():
        inputs = node.get("inputs")
        if isinstance(inputs, dict) and is_output(str(node.get("class_type"))):
            inputs[MARK_INPUT] = mark


def extra_of(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What goes along to ComfyUI, as its page sends it: the page's own workflow for the pictures' metadata."""
    extra = payload.get("extra_data")
    return dict(extra) if isinstance(extra, dict) and "class_type" not in extra else {}


def model_files(graph: Mapping[str, Any], model_inputs: ModelInputs) -> list[str]:
    """The model files that a graph names."""
    found: dict[str, None] = {}
    for node in graph.values():
        known = model_inputs.get(str(node.get("class_type")), {})
        for name, value in (node.get("inputs") or {}).items():
            if isinstance(value, str) and (name in known or value.lower().endswith(MODEL_ENDINGS)):
                found[slashed(value)] = None
    return list(found)


def stray_name(graph: Mapping[str, Any]) -> tuple[str, str] | None:
    """The first node and input that names a file outside of where a job's files are; None when there is none."""
    for node_id, node in graph.items():
        for name, value in (node.get("inputs") or {}).items():
            if name in FILE_INPUTS and isinstance(value, str) and STRAY.search(value):
                return str(node_id), str(name)
    return None
