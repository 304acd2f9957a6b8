"""Public records of workers."""

from __future__ import annotations

import json

from broker.jobs.figures import public_worker
from broker.queue.queue import Answer


def worker(**pairs: object) -> Answer:
    return Answer("w", {name: json.dumps(value).encode() for name, value in pairs.items()})


def test_a_gpu_keeps_its_name_beside_what_heartbeats_say_of_it() -> None:
    info = {"gpus": [{"name": "RTX 4090", "vram_mb": 24564}, {"name": "RTX 3060", "vram_mb": 12288}]}
    record = public_worker(worker(info=info, gpus=[{"vram_free_mb": 20000, "utilisation": 3}]))
    assert record["gpus"] == [
        {"name": "RTX 4090", "vram_mb": 24564, "vram_free_mb": 20000, "utilisation": 3},
        {"name": "RTX 3060", "vram_mb": 12288},
    ]


def test_gpus_that_are_no_list_are_none() -> None:
    assert public_worker(worker(info={"gpus": "many"}, gpus={"a": 1}))["gpus"] == []
