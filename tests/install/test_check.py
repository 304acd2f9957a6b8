"""``install.py --check``: a line for each thing the worker needs, and an exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from broker.queue.connection import Connection
from tests.install.conftest import ROOT, Install, copy_pack, quiet_environment
from tests.support.servers import free_port

PACK = "comfyui_emq_node"

pytestmark = pytest.mark.comfyui


@pytest.fixture
async def queue_url(valkey_url: str) -> str:
    """A Redis on which a broker has been started once."""
    connection = Connection(valkey_url)
    await connection.load("emq:{default}:")
    await connection.close()
    return valkey_url


def findings(done: subprocess.CompletedProcess[str]) -> list[tuple[str, str]]:
    return [(line[:4].strip(), line[5:]) for line in done.stdout.splitlines()]


def levels(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [level for level, _ in findings(done)]


def test_a_working_worker_is_ok_with_a_warning_about_the_old_comfyui(
    comfyui: Path, install: Install, queue_url: str
) -> None:
    assert install(comfyui, "--redis-url", queue_url).returncode == 0
    done = install(comfyui, "--check")
    assert done.returncode == 0, done.stdout
    assert levels(done) == ["warn", "ok", "ok", "ok", "ok", "ok"]
    assert "0.3.75" in done.stdout
    assert "0.28" in done.stdout
    assert findings(done)[-1][1].startswith("Valkey ")
    assert queue_url in findings(done)[-1][1]


def test_a_recent_comfyui_is_ok(comfyui: Path, install: Install) -> None:
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.28.0"\n')
    assert install(comfyui).returncode == 0
    assert findings(install(comfyui, "--check"))[0] == ("ok", "ComfyUI 0.28.0")


def test_without_an_address_it_says_where_the_worker_looks(comfyui: Path, install: Install) -> None:
    assert install(comfyui).returncode == 0
    done = install(comfyui, "--check")
    assert done.returncode == 0
    assert findings(done)[-1][0] == "warn"
    assert "data folder" in findings(done)[-1][1]


def test_a_broker_on_this_machine_is_found_by_its_data_folder(
    comfyui: Path, install: Install, tmp_path: Path, queue_url: str
) -> None:
    assert install(comfyui).returncode == 0
    (tmp_path / "valkey.json").write_text(json.dumps({"url": queue_url}))
    done = install(comfyui, "--check", env={**quiet_environment(), "EMQ_DATA": str(tmp_path)})
    assert done.returncode == 0
    assert findings(done)[-1][0] == "ok"
    assert queue_url in findings(done)[-1][1]


def test_no_worker_fails(comfyui: Path, install: Install) -> None:
    done = install(comfyui, "--check")
    assert done.returncode == 1
    assert ("fail", f"no worker in {comfyui / 'custom_nodes'}: run install.py {comfyui}") in findings(done)


def test_missing_packages_fail(comfyui: Path, bare_venv: Path, install: Install) -> None:
    copy_pack(comfyui / "custom_nodes" / PACK)
    (comfyui / "venv").unlink()
    (comfyui / "venv").symlink_to(bare_venv)
    done = install(comfyui, "--check")
    assert done.returncode == 1
    failed = [text for level, text in findings(done) if level == "fail"]
    assert ["redis" in failed[0], "blake3" in failed[1]] == [True, True]


def test_a_silent_redis_fails_and_its_password_is_not_shown(comfyui: Path, install: Install) -> None:
    port = free_port()
    assert install(comfyui, "--redis-url", f"redis://:hidden@127.0.0.1:{port}/0").returncode == 0
    done = install(comfyui, "--check")
    assert done.returncode == 1
    assert findings(done)[-1][0] == "fail"
    assert f"127.0.0.1:{port}" in findings(done)[-1][1]
    assert "hidden" not in done.stdout + done.stderr


def test_two_workers_fail(comfyui: Path, install: Install) -> None:
    assert install(comfyui).returncode == 0
    copy_pack(comfyui / "custom_nodes/emq" / PACK)
    done = install(comfyui, "--check")
    assert done.returncode == 1
    assert "two workers" in done.stdout


def test_a_clone_in_custom_nodes_checks_itself_without_a_path(comfyui: Path, install: Install) -> None:
    clone = comfyui / "custom_nodes/emq"
    copy_pack(clone / PACK)
    shutil.copy(ROOT / "install.py", clone)
    done = install("--check", script=clone / "install.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("ok", f"worker in {clone / PACK}") in findings(done)
