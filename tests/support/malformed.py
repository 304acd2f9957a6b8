"""What no message looks like: texts that are refused as they stand, and JSON of any form."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


BAD_TEXTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "bad_json"),
    "no json": (b"hello", "bad_json"),
    "half": (b'{"type":', "bad_json"),
    "two values": (b"{} {}", "bad_json"),
    "single quotes": (b"{'type':'submit_job'}", "bad_json"),
    "trailing comma": (b'{"type":"request_stats",}', "bad_json"),
    "nan": (b'{"type":"request_stats","x":NaN}', "bad_json"),
    "infinity": (b'{"type":"request_stats","x":-Infinity}', "bad_json"),
    "overflow": (b'{"type":"request_stats","x":1e999}', "bad_json"),
    "huge integer": (b'{"type":"request_stats","x":' + b"9" * 5000 + b"}", "bad_json"),
    "integer over 64 bits": (b'{"type":"request_stats","x":36893488147419103232}', "bad_json"),
    "duplicate key": (b'{"type":"request_stats","type":"submit_job"}', "bad_json"),
    "deep": (json.dumps({"type": "request_stats", "x": nested(40)}).encode(), "bad_json"),
    "very deep": (b'{"type":"request_stats","x":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "bad_json"),
    "very deep, open": (b"[" * 100_000, "bad_json"),
    "lone surrogate": (b'{"type":"request_stats","x":"\\ud800"}', "bad_json"),
    "nul": (b'{"type":"request_stats","x":"\\u0000"}', "bad_json"),
    "nul key": (b'{"type":"request_stats","\\u0000":1}', "bad_json"),
    "raw control": (b'{"type":"request_stats","x":"\x01"}', "bad_json"),
    "not utf-8": (b'{"type":"request_stats","x":"\xff\xfe"}', "bad_json"),
    "overlong utf-8": (b'{"type":"request_stats","x":"\xc0\x80"}', "bad_json"),
    "bom": (b'\xef\xbb\xbf{"type":"request_stats"}', "bad_json"),
    "list": (b"[1]", "bad_message"),
    "number": (b"5", "bad_message"),
    "text": (b'"submit_job"', "bad_message"),
    "null": (b"null", "bad_message"),
}
"""By what is wrong: the text, and the code that it is refused with."""

MESSAGE_KEYS = [
    "payload", "workflow", "prompt", "inputs", "class_type", "requirements", "models", "metadata", "priority",
    "job_id", "jobs", "group", "scope", "id", "depends_on", "strict", "message_id", "1", "extra_data",
]  # fmt: skip
any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MESSAGE_KEYS) | st.text(max_size=4), inner)
    ),
    max_leaves=12,
)
"""Any JSON, with keys that messages have, too."""
