"""What a tenant's workflows may name: node classes, model files, and no file outside of its own."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from broker.errors import InvalidWorkflow
from broker.jobs.workflow import MAX_REPORTED, Graph

FILE_INPUTS = frozenset({"image", "mask", "video", "audio", "file", "latent", "model_file", "filename_prefix", "path"})
"""Inputs by which ComfyUI's nodes name files; the worker looks at the same ones."""
_MODEL = re.compile(r"\.(safetensors|ckpt|pt|pth|bin|gguf|sft)$", re.IGNORECASE)
_STRAY = re.compile(r"(^|[/\\])\.\.([/\\]|$)|^[/\\~]|^[A-Za-z]:[/\\]")
_ANOTHERS = re.compile(r"\[(output|temp)\]\s*$")


@dataclass(frozen=True, slots=True)
class Rules:
    """Names as ComfyUI has them; ``*`` stands for any part. ``None`` allows all."""

    node_allow: tuple[str, ...] | None = None
    node_deny: tuple[str, ...] = ()
    model_allow: tuple[str, ...] | None = None

    @classmethod
    def read(cls, node_allow: str, node_deny: str, model_allow: str) -> Rules:
        """From comma-separated settings; an empty one allows all, or denies nothing."""
        return cls(_names(node_allow) or None, _names(node_deny), _names(model_allow) or None)

    def text(self) -> str:
        """The rules for the worker, which looks at every node again; empty when there are none."""
        lists = {"allow": self.node_allow, "deny": self.node_deny, "models": self.model_allow}
        given = {name: names for name, names in lists.items() if names or (names is not None and name != "deny")}
        return json.dumps(given, ensure_ascii=False, separators=(",", ":")) if given else ""

    def check(self, graph: Graph) -> None:
        """Raise ``InvalidWorkflow`` naming every node that breaks a rule."""
        found: dict[str, dict[str, Any]] = {}
        for node_id, node in graph.items():
            errors = self._errors(node)
            if errors:
                entry = {"errors": errors, "dependent_outputs": [], "class_type": node["class_type"]}
                found[node_id] = entry
                if len(found) >= MAX_REPORTED:
                    break
        if found:
            node_id, entry = next(iter(found.items()))
            first = entry["errors"][0]
            raise InvalidWorkflow(
                f"Node {node_id[:64]}: {first['message']} {first['details']}".rstrip(),
                node_errors=found,
                reason="not_allowed",
            )

    def allows_class(self, name: str) -> bool:
        """Whether a node class may be used."""
        allowed = self.node_allow is None or _matches(name, self.node_allow)
        return allowed and not _matches(name, self.node_deny)

    def _errors(self, node: dict[str, Any]) -> list[dict[str, Any]]:
        errors = []
        if not self.allows_class(node["class_type"]):
            errors.append(
                _error("node_not_allowed", "Your tenant may not use this node class.", node["class_type"][:200])
            )
        for name, value in node["inputs"].items():
            if isinstance(value, str):
                errors += self._value_errors(name, value)
        return errors

    def _value_errors(self, name: str, value: str) -> list[dict[str, Any]]:
        is_model = len(value) <= 512 and _MODEL.search(value) is not None
        if (name in FILE_INPUTS or is_model) and _STRAY.search(value):
            return [_error("path_not_allowed", "A file's name leads out of its folder:", f"input {name[:100]}", name)]
        if name in FILE_INPUTS and _ANOTHERS.search(value):
            text = "This names a file that another job has made; give it in payload.inputs:"
            return [_error("path_not_allowed", text, f"input {name[:100]}", name)]
        if is_model and self.model_allow is not None and not _matches(value.replace("\\", "/"), self.model_allow):
            return [_error("model_not_allowed", "Your tenant may not use this model file.", value[:200], name)]
        return []


def _error(kind: str, message: str, details: str, name: str = "") -> dict[str, Any]:
    extra = {"input_name": name} if name else {}
    return {"type": kind, "message": message, "details": details, "extra_info": extra}


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether one of the patterns is the name; only ``*`` is special in them."""
    return any(fnmatchcase(name, _literal(pattern)) if "*" in pattern else name == pattern for pattern in patterns)


def _literal(pattern: str) -> str:
    return pattern.replace("[", "[[]").replace("?", "[?]")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
