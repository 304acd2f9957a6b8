"""From ComfyUI's words to the queue's codes."""

from __future__ import annotations

from typing import Any

from comfyui_emq_node import errors
from comfyui_emq_node.relay import Ending


def node_errors(kind: str, name: str, value: Any, class_type: str = "Loader") -> dict[str, Any]:
    extra = {"input_name": name, "received_value": value}
    return {
        "4": {"class_type": class_type, "errors": [{"type": kind, "message": "m", "details": "d", "extra_info": extra}]}
    }


def test_a_missing_model_goes_elsewhere() -> None:
    failure = errors.not_valid({}, node_errors("value_not_in_list", "ckpt_name", "a\\b.safetensors"), {})
    assert (failure.hand_back, failure.missing) == (True, ["m:a/b.safetensors"])
    odd = errors.not_valid({}, node_errors("value_not_in_list", "thing", "odd"), {"Loader": {"thing": "things"}})
    assert (odd.hand_back, odd.missing) == (True, ["m:odd"])


def test_a_wrong_choice_does_not() -> None:
    failure = errors.not_valid({}, node_errors("value_not_in_list", "sampler_name", "eulerr"), {})
    assert (failure.code, failure.hand_back, failure.retry) == ("validation_failed", False, False)
    both = {
        **node_errors("value_not_in_list", "ckpt_name", "a.safetensors"),
        "5": node_errors("value_smaller_than_min", "width", 0)["4"],
    }
    assert not errors.not_valid({}, both, {}).hand_back


def test_a_class_that_is_not_here_goes_elsewhere() -> None:
    graph = {"1": {"class_type": "Known"}, "2": {"class_type": "Other"}}
    missing = errors.missing_classes(graph, lambda name: name == "Known")
    assert errors.lacks_classes(missing).missing == ["n:Other"]


def ending(*messages: tuple[str, dict[str, Any]]) -> Ending:
    return Ending({"status": {"status_str": "error", "messages": [list(message) for message in messages]}})


def test_errors_of_nodes_have_their_code() -> None:
    def failed(kind: str, text: str) -> str:
        return errors.not_finished(
            ending(("execution_error", {"exception_type": kind, "exception_message": text}))
        ).code

    assert failed("ValueError", "boom") == "node_error"
    assert failed("torch.OutOfMemoryError", "x") == "out_of_memory"
    assert failed("RuntimeError", "it ran out of memory on your GPU") == "out_of_memory"
    assert failed("OSError", "[Errno 28] No space left on device") == "worker_disk_full"


def test_a_person_s_interrupt_is_final() -> None:
    failure = errors.not_finished(ending(("execution_interrupted", {"node_id": "5", "node_type": "K"})))
    assert (failure.code, failure.retry, failure.node_id) == ("interrupted", False, "5")
    assert errors.not_finished(Ending(None)).code == "interrupted"


def test_long_texts_are_cut() -> None:
    data = {"exception_type": "E", "exception_message": "x" * 10_000, "traceback": ["y" * 10_000] * 50}
    failure = errors.not_finished(ending(("execution_error", data)))
    assert len(failure.message) < 2100
    assert len(failure.details["traceback"]) <= 8
