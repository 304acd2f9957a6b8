"""The search language of the jobs page."""

from __future__ import annotations

from typing import Any

import pytest

from broker.jobs.search import read

NOW = 1_800_000_000_000


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("", {}),
        ("status:failed", {"status": ["failed"]}),
        ("status:failed,cancelled worker:gpu-3", {"status": ["failed", "cancelled"], "worker": "gpu-3"}),
        ("STATUS:running", {"status": ["claimed", "processing"]}),
        ("status:waiting", {"status": ["blocked", "pending", "scheduled"]}),
        ("model:a.safetensors error:out_of_memory", {"model": "a.safetensors", "error": "out_of_memory"}),
        ('group:"my album"', {"group": "my album"}),
        ("age:<1h", {"age_s": 3600.0}),
        ("age:90s", {"age_s": 90.0}),
        ("age:>2d", {"until": NOW - 2 * 86_400_000}),
        ("dead:yes", {"dead": True}),
        ("order:17 shop:eu", {"metadata": {"order": "17", "shop": "eu"}}),
    ],
)
def test_a_search_is_read(text: str, asked: dict[str, Any]) -> None:
    search = read(text, NOW)
    assert search.problem == ""
    assert search.wanted.model_dump(exclude_defaults=True, mode="json") == asked


@pytest.mark.parametrize(("text", "job_id", "tenant"), [("abc123", "abc123", ""), ("id:abc tenant:k8", "abc", "k8")])
def test_jobs_and_tenants_are_named(text: str, job_id: str, tenant: str) -> None:
    search = read(text, NOW)
    assert (search.job_id, search.tenant) == (job_id, tenant)


@pytest.mark.parametrize(
    "text", ["status:nothing", "age:soon", "age:<99999999h", "worker:", "status:", "x:" + "y" * 400]
)
def test_what_means_nothing_is_said(text: str) -> None:
    assert read(text, NOW).problem


def test_a_star_stands_for_anything() -> None:
    search = read("model:FLUX* worker:gpu-*", NOW)
    job = {"models": ["vae", "flux1-dev"], "worker_id": "gpu-7", "error": None, "group": None}
    assert search.fits
    assert search.fits(job)
    assert not search.fits({**job, "models": []})
    assert not search.fits({**job, "worker_id": None})
