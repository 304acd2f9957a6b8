"""What values the inputs of node classes take: the part of their input types by which ComfyUI refuses a prompt.

The document, ``{"lists": [[choice, …], …], "classes": {name: about}}``, goes to the queue beside the worker's profile,
so that a submit can be told at once what every worker would refuse. ``about`` has ``r`` (required inputs), ``n``
(numbers: ``[INT or FLOAT, min or null, max or null]`` by input), ``c`` (index of the list of choices by input) and
``o`` (1: it ends a graph). What is not in it is not known, and then nothing is said about it. For those who read a
workflow as ComfyUI's page saves it, where values have no names: ``w`` (the inputs that are widgets there, in order;
left out when they depend on values), ``k`` (those of them that another widget follows, saying what becomes of the value
afterwards), ``u`` (how many come before an upload button).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import math
import sys
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

log = logging.getLogger("emq")

MAX_BYTES = 400_000
"""Before compression, which makes about a sixth of it; a ComfyUI without further packs has 105 KB."""
MAX_CHOICES = 50
MAX_CHOICE = 200
UPLOADS = ("image_upload", "video_upload", "audio_upload", "file_upload", "animated_image_upload", "remote")
"""Marks of lists that are the content of a folder or of a server at this moment."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
BUTTONS = ("image_upload", "video_upload", "audio_upload", "file_upload", "animated_image_upload")
"""Marks of inputs beside which the page puts a button."""

About = dict[str, Any]


class Document:
    """Collects classes; equal workers get equal bytes."""

    def __init__(self, combos: bool) -> None:
        self._combos = combos
        self._lists: dict[str, list[Any]] = {}
        self._classes: dict[str, About] = {}

    def add(self, name: str, node: Any, groups: Mapping[str, Any], models: Iterable[str]) -> None:
        """Take up a class, given its ``INPUT_TYPES()``; ``models`` are inputs that name model files."""
        judged = _judged_by_itself(node)
        about: About = {"r": sorted(map(str, _required(groups)))}
        for group in ("required", "optional"):
            for key, spec in (groups.get(group) or {}).items():
                free = judged is None or key in judged or key in models
                self._add_input(about, str(key), spec, free)
        about.update(_widgets(groups))
        if getattr(node, "OUTPUT_NODE", False):
            about["o"] = 1
        self._classes[name] = about

    def _add_input(self, about: About, key: str, spec: Any, free: bool) -> None:
        kind, options = _split(spec)
        if kind in ("INT", "FLOAT"):
            low, high = (None, None) if free else (_number(options.get("min")), _number(options.get("max")))
            about.setdefault("n", {})[key] = [kind, low, high]
        elif not free and not any(options.get(mark) for mark in UPLOADS):
            choices = _choices(kind, options, self._combos)
            if choices is not None:
                text = json.dumps(choices)
                self._lists.setdefault(text, choices)
                about.setdefault("c", {})[key] = text

    def packed(self) -> tuple[str, bytes]:
        """A digest of the document, and the document as compressed JSON.

        When it is too large, the classes that take most room are left out.
        """
        names = sorted(self._classes, key=lambda name: len(json.dumps(self._classes[name])))
        while True:
            text = self._text(sorted(names))
            if len(text) <= MAX_BYTES or not names:
                return hashlib.sha256(text).hexdigest()[:16], zlib.compress(text, 6)
            del names[-max(1, len(names) // 20) :]

    def _text(self, names: list[str]) -> bytes:
        used: dict[str, int] = {}
        classes = {}
        for name in names:
            about = dict(self._classes[name])
            if "c" in about:
                about["c"] = {key: used.setdefault(text, len(used)) for key, text in sorted(about["c"].items())}
            classes[name] = about
        document = {"lists": [self._lists[text] for text in used], "classes": classes}
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def judges_combos() -> bool:
    """Whether this ComfyUI refuses a value that is not among the options of a ``COMBO`` input, not only of a list."""
    function = getattr(sys.modules.get("execution"), "validate_inputs", None)
    code = getattr(function, "__code__", None)
    return code is not None and ("Combo" in code.co_names or "COMBO" in code.co_consts)


def _judged_by_itself(node: Any) -> set[str] | None:
    """Inputs that a class checks itself, so that ComfyUI does not compare them; ``None``: all of them."""
    check = getattr(node, "VALIDATE_INPUTS", None)
    for each in getattr(node, "__mro__", ()):
        if "validate_inputs" in vars(each) and not str(each.__module__).startswith("comfy_api"):
            check = node.validate_inputs
    if check is None:
        return set()
    try:
        found = inspect.getfullargspec(check)
    except TypeError:
        return None
    return None if found.varkw else set(found.args)


def _split(spec: Any) -> tuple[Any, Mapping[str, Any]]:
    if not isinstance(spec, (list, tuple)) or not spec:
        return None, {}
    return spec[0], spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}


def _widgets(groups: Mapping[str, Any]) -> About:
    """The inputs that the page shows as widgets; nothing when it makes them up as values change."""
    names: list[str] = []
    controlled: list[str] = []
    upload: int | None = None
    for group in ("required", "optional"):
        for key, spec in (groups.get(group) or {}).items():
            kind, options = _split(spec)
            if isinstance(kind, str) and kind.startswith("COMFY_"):
                return {}
            if (not isinstance(kind, list) and kind not in WIDGETS) or options.get("forceInput"):
                continue
            names.append(str(key))
            asked = options.get("control_after_generate", kind == "INT" and key in ("seed", "noise_seed"))
            if (asked and kind in ("INT", "COMBO")) or (asked and isinstance(kind, list)):
                controlled.append(str(key))
            if any(options.get(mark) for mark in BUTTONS):
                upload = -1
        if group == "required" and upload is not None:
            upload = len(names)
    found: About = {"w": names}
    if controlled:
        found["k"] = controlled
    if upload is not None:
        found["u"] = len(names) if upload < 0 else upload
    return found


def _required(groups: Mapping[str, Any]) -> Iterable[str]:
    """Required inputs, without those whose names depend on other values."""
    for key, spec in (groups.get("required") or {}).items():
        kind, _ = _split(spec)
        if kind is not None and not (isinstance(kind, str) and kind.startswith("COMFY_")):
            yield key


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _choices(kind: Any, options: Mapping[str, Any], combos: bool) -> list[Any] | None:
    if kind == "COMBO":
        kind = options.get("options") if combos and not options.get("multiselect") else None
    if not isinstance(kind, list) or not 0 < len(kind) <= MAX_CHOICES:
        return None
    plain = all(isinstance(each, (str, int, float)) and len(str(each)) <= MAX_CHOICE for each in kind)
    return list(kind) if plain else None
