"""The worker's settings, from the environment and from emq.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from comfyui_emq_node.settings import Settings, SettingsError


def load(tmp_path: Path, file: dict[str, str] | None = None, **environment: str) -> Settings:
    path = tmp_path / "emq.json"
    if file is not None:
        path.write_text(json.dumps(file))
    return Settings.load(environment, path)


def test_nothing_set_means_a_broker_of_this_machine(tmp_path: Path) -> None:
    settings = load(tmp_path, XDG_DATA_HOME=str(tmp_path))
    assert (settings.redis_url, settings.broker_url, settings.by_gateway) == (None, None, False)
    assert settings.local_redis_url() is None
    (tmp_path / "emq").mkdir()
    (tmp_path / "emq" / "valkey.json").write_text('{"url": "redis://127.0.0.1:1/0"}')
    assert settings.local_redis_url() == "redis://127.0.0.1:1/0"
    assert (settings.pools, settings.job_types, settings.tags) == (("default",), ("comfyui",), ())


def test_the_names_of_the_older_deployment_work(tmp_path: Path) -> None:
    settings = load(
        tmp_path, REDIS_HOST="r", REDIS_PORT="7", REDIS_DB="2", REDIS_PASSWORD="p@ss", WORKER_ID="w", MACHINE_ID="m",
        GPU_COUNT="4", COMFYUI_HOST="h", COMFYUI_PORT="1", COMFYUI_WS_PORT="2", LOG_LEVEL="debug",
    )  # fmt: skip
    assert settings.redis_url == "redis://:p%40ss@r:7/2"
    assert (settings.worker_id, settings.machine_id, settings.gpu_count) == ("w", "m", 4)
    assert settings.labels == {"comfyui_host": "h", "comfyui_port": "1", "comfyui_ws_port": "2"}
    assert settings.log_level == "DEBUG"


def test_the_file_s_address_wins_and_the_environment_s_rest(tmp_path: Path) -> None:
    file = {"EMQ_BROKER_URL": "wss://far/", "EMQ_API_KEY": "k", "WORKER_ID": "file"}
    settings = load(tmp_path, file, EMQ_REDIS_URL="redis://near", WORKER_ID="env", EMQ_TAGS="a, b,a")
    assert (settings.broker_url, settings.redis_url, settings.by_gateway) == ("https://far", None, True)
    assert (settings.api_key, settings.worker_id, settings.tags) == ("k", "env", ("a", "b"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EMQ_REDIS_URL", "localhost:6379"),
        ("EMQ_BROKER_URL", "far:8000"),
        ("REDIS_PORT", "many"),
        ("GPU_COUNT", "two"),
        ("GPU_COUNT", "-1"),
        ("REDIS_DB", "1e3"),
        ("EMQ_DRAIN_S", "-1"),
        ("EMQ_POOLS", "a b"),
        ("WORKER_ID", "my worker"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_is_named(tmp_path: Path, name: str, value: str) -> None:
    environment = {"REDIS_HOST": "r", name: value}
    with pytest.raises(SettingsError, match=name):
        Settings.load(environment, tmp_path / "emq.json")


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "emq.json").write_text("{")
    with pytest.raises(SettingsError, match=r"emq\.json"):
        Settings.load({}, tmp_path / "emq.json")


def test_secrets_do_not_show(tmp_path: Path) -> None:
    assert "sesame" not in repr(load(tmp_path, EMQ_API_KEY="sesame"))
