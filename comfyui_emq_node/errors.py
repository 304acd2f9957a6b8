"""What went wrong, from ComfyUI's words to the queue's codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from .inventory import MODEL_ENDINGS, slashed
from .queue import Failure
from .relay import Ending

TRACEBACK_LINES = 8
MAX_TEXT = 2000
OOM_HINT = "ran out of memory on your GPU"
DISK_HINT = "No space left on device"


def cut(value: Any) -> str:
    """A text of bounded length: errors of nodes may quote whole prompts."""
    text = str(value)
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def missing_classes(graph: Mapping[str, Any], has_class: Callable[[str], bool]) -> list[str]:
    """Node classes of the graph that this ComfyUI does not have."""
    classes = {str(node.get("class_type")) for node in graph.values() if node.get("class_type")}
    return sorted(name for name in classes if not has_class(name))


def lacks_classes(missing: list[str]) -> Failure:
    """Another ComfyUI may have these classes."""
    return Failure(
        "validation_failed",
        f"This ComfyUI has no node class {', '.join(missing)}.",
        hand_back=True,
        missing=[f"n:{name}" for name in missing],
    )


def not_allowed(why: str) -> Failure:
    """The job's tenant may not use this, on any worker."""
    return Failure("validation_failed", why, retry=False)


def stray_file(node_id: str, name: str) -> Failure:
    """A graph may name files of the input folder only, and others' not at all."""
    return Failure(
        "validation_failed",
        f"Node {node_id}: {name} names a file outside of ComfyUI's input folder, or what another job has made. "
        "Give input files in payload.inputs.",
        node_id=node_id,
        retry=False,
    )


def not_valid(
    body: Mapping[str, Any], node_errors: Mapping[str, Any], model_inputs: Mapping[str, Mapping[str, str]]
) -> Failure:
    """ComfyUI refuses the prompt, or would run only a part of it."""
    files = _missing_files(node_errors, model_inputs)
    first: tuple[str | None, Any] = next(iter(node_errors.items()), (None, {}))
    error = body.get("error")
    error = error if isinstance(error, Mapping) else {}
    if files is not None:
        text = f"This ComfyUI has no model file {', '.join(files)}."
    else:
        text = _reason(first[1]) or str(error.get("message") or "ComfyUI does not accept this prompt.")
    return Failure(
        "validation_failed",
        cut(text),
        node_id=first[0],
        node_type=first[1].get("class_type") if isinstance(first[1], Mapping) else None,
        details={"error": _shortened(error), "node_errors": _shortened(node_errors)},
        hand_back=files is not None,
        missing=[f"m:{name}" for name in files or ()],
        retry=False,
    )


def _missing_files(node_errors: Mapping[str, Any], model_inputs: Mapping[str, Mapping[str, str]]) -> list[str] | None:
    """The model files that are all that is wrong; None when something else is wrong, or nothing."""
    found: dict[str, None] = {}
    for node in node_errors.values():
        for error in node.get("errors") or ():
            extra = error.get("extra_info") or {}
            value, name = extra.get("received_value"), extra.get("input_name")
            known = name in model_inputs.get(str(node.get("class_type")), {})
            if error.get("type") != "value_not_in_list" or not isinstance(value, str):
                return None
            if not known and not value.lower().endswith(MODEL_ENDINGS):
                return None
            found[slashed(value)] = None
    return list(found) or None


def _reason(node: Any) -> str:
    errors = node.get("errors") if isinstance(node, Mapping) else None
    first = errors[0] if errors else {}
    parts = (str(first.get("message") or ""), str(first.get("details") or ""))
    return ": ".join(part for part in parts if part)


def _shortened(value: Any, depth: int = 0) -> Any:
    """A copy with long texts and lists cut; ComfyUI puts whole lists of files into its errors."""
    if isinstance(value, Mapping):
        return {str(key): _shortened(each, depth + 1) for key, each in list(value.items())[:100]} if depth < 8 else {}
    if isinstance(value, list | tuple):
        return [_shortened(each, depth + 1) for each in value[:20]] if depth < 8 else []
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return cut(value)


def not_finished(ending: Ending) -> Failure:
    """ComfyUI ran the prompt and did not come to its end."""
    if ending.entry is None:
        return Failure("interrupted", "The prompt was removed from ComfyUI's queue by a person.", retry=False)
    error = ending.message("execution_error")
    if error is not None:
        return _node_failed(error)
    interrupt = ending.message("execution_interrupted")
    if interrupt is not None:
        return Failure(
            "interrupted",
            "The prompt was interrupted by a person at ComfyUI's own page.",
            node_id=_text(interrupt.get("node_id")),
            node_type=_text(interrupt.get("node_type")),
            retry=False,
        )
    return Failure("node_error", "ComfyUI ended the prompt without a result and without a reason.")


def _node_failed(error: Mapping[str, Any]) -> Failure:
    kind, text = str(error.get("exception_type") or "Exception"), cut(error.get("exception_message") or "").strip()
    memory = kind.endswith("OutOfMemoryError") or OOM_HINT in text
    code = "out_of_memory" if memory else "worker_disk_full" if DISK_HINT in text else "node_error"
    traceback = [cut(line) for line in list(error.get("traceback") or ())[-TRACEBACK_LINES:]]
    return Failure(
        code,
        f"{kind}: {text}" if text else kind,
        node_id=_text(error.get("node_id")),
        node_type=_text(error.get("node_type")),
        details={"exception_type": kind, "traceback": traceback},
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def timed_out(seconds: float) -> Failure:
    """The job's own time limit."""
    return Failure("timeout", f"The job ran longer than its timeout_s of {seconds:g} s.")


def stalled(seconds: float, node: Mapping[str, Any] | None) -> Failure:
    """Nothing was heard for too long."""
    place = node or {}
    return Failure(
        "stalled",
        f"ComfyUI sent no event for {seconds:g} s.",
        node_id=_text(place.get("id")),
        node_type=_text(place.get("class_type")),
    )


def thread_died(node: Mapping[str, Any] | None) -> Failure:
    """ComfyUI's prompt thread ended in the middle of the job, as a node that calls ``sys.exit`` makes it."""
    place = node or {}
    return Failure(
        "stalled",
        "ComfyUI's prompt thread ended while this job ran; that ComfyUI runs nothing until it is restarted.",
        node_id=_text(place.get("id")),
        node_type=_text(place.get("class_type")),
    )


CANCELLED = Failure("interrupted", "The job was cancelled.", retry=False)
"""Only for a job whose cancelling the queue has asked for: it makes a cancelled job of it."""
