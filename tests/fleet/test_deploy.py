"""The files of ``deploy/`` that cannot run here are checked by the schemas of what they are for."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec import PyCompose

from tests.support.tables import described_settings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.34"


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / name).read_text()))


@pytest.mark.parametrize("file", ["broker.yaml", "broker-hpa.yaml"])
def test_kubernetes_takes_the_manifests(file: str) -> None:
    found = manifests(file)
    assert found
    for manifest in found:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_a_broken_manifest_would_be_found() -> None:
    (hpa,) = manifests("broker-hpa.yaml")
    hpa["spec"]["maxReplicas"] = "many"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(hpa, KUBERNETES, strict=True)


def test_the_pods_are_probed_and_run_without_rights() -> None:
    (deployment,) = [one for one in manifests("broker.yaml") if one["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("liveness", "readiness")}
    assert paths == {"liveness": "/health/live", "readiness": "/health"}
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    (keys,) = [one["data"] for one in manifests("broker.yaml") if one["kind"] == "ConfigMap"]
    assert set(keys) <= set(described_settings("Broker"))


def test_scaling_asks_for_metrics_that_there_are() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    text = "".join(
        (DEPLOY / "kubernetes" / name).read_text() for name in ("broker-hpa.yaml", "worker-scaledobject.yaml")
    )
    named = set(re.findall(r"\bemq_\w+", text))
    assert named
    assert all(f"`{name}`" in page for name in named)
    (scaled,) = manifests("worker-scaledobject.yaml")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"


def test_compose_takes_the_file_and_its_files_exist() -> None:
    text = (DEPLOY / "compose.yml").read_text()
    compose = PyCompose.from_yaml(text)
    compose.validate()
    assert {"redis", "broker-1", "broker-2", "nginx", "redis-exporter"} <= set(compose.service_names())
    mounted = set(re.findall(r"- \./([\w./-]+):", text))
    # The certificate and the users with their passwords are the operator's.
    assert [path for path in mounted - {"tls", "redis-users.acl"} if not (DEPLOY / path).exists()] == []
    for named in re.findall(r"^    (EMQ_\w+|REDIS_\w+):", text, re.MULTILINE):
        assert named in described_settings("Broker")


def test_the_image_runs_as_nobody_special_and_copies_what_there_is() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.search(r"^USER 10001", text, re.MULTILINE)
    sources = [word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()]
    assert sources
    assert [name for name in sources if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_systemd_finds_the_units_well_protected(unit: Path) -> None:
    """An exposure of 3.0 at most, of 10."""
    said = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(unit)], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"exposure level for \S+: ([\d.]+)", said)
    assert found, said
    assert float(found[1]) <= 3.0
    for setting in ("NoNewPrivileges=yes", "ProtectSystem=strict", "MemoryMax="):
        assert setting in unit.read_text()


@pytest.mark.parametrize(("file", "skips"), [("nginx.conf", ""), ("nginx-bypass.conf", "return_bypasses_allow_deny")])
def test_gixy_finds_nothing_in_the_nginx_configurations(file: str, skips: str) -> None:
    """Who may not come in learns from the bypass that the queue is bypassed: nothing else is answered by ``return``."""
    command = [str(ROOT / ".venv/bin/gixy"), "--skips", skips or "none", str(DEPLOY / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Medium: 0" in done.stdout, done.stdout
    assert "High: 0" in done.stdout


def test_the_redis_configuration_watches_slow_calls() -> None:
    text = (DEPLOY / "redis.conf").read_text()
    assert re.search(r"^slowlog-log-slower-than 5000$", text, re.MULTILINE)
    assert re.search(r"^latency-monitor-threshold \d+$", text, re.MULTILINE)
