"""``install.py``: what it puts where, what it says, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from broker.trial.runtime import TrialRuntime
from tests.install.conftest import ROOT, Install, copy_pack

PACK = "comfyui_emq_node"
NOBODY = 65534

pytestmark = pytest.mark.comfyui


def pack_in(comfyui: Path) -> Path:
    return comfyui / "custom_nodes" / PACK


def files_of(folder: Path) -> set[str]:
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts and path.name != "emq.json"}


def test_it_copies_the_whole_pack_and_says_so(comfyui: Path, install: Install) -> None:
    done = install(comfyui)
    assert done.returncode == 0, done.stderr
    assert not pack_in(comfyui).is_symlink()
    assert files_of(pack_in(comfyui)) == files_of(ROOT / PACK)
    assert str(pack_in(comfyui)) in done.stdout
    assert str(comfyui / "venv/bin/python") in done.stdout
    assert sorted(path.name for path in (comfyui / "custom_nodes").iterdir() if path.is_dir()) == [PACK]


def test_it_links_the_pack(comfyui: Path, install: Install) -> None:
    done = install(comfyui, "--link")
    assert done.returncode == 0, done.stderr
    assert pack_in(comfyui).is_symlink()
    assert pack_in(comfyui).resolve() == ROOT / PACK


def test_it_installs_the_packages_with_comfyuis_own_python(comfyui: Path, bare_venv: Path, install: Install) -> None:
    (comfyui / "venv").unlink()
    (comfyui / ".venv").symlink_to(bare_venv)
    import_both = [str(bare_venv / "bin/python"), "-c", "import redis, blake3; print(redis.__file__)"]
    assert subprocess.run(import_both, capture_output=True, check=False).returncode != 0
    done = install(comfyui)
    assert done.returncode == 0, done.stderr
    where = subprocess.run(import_both, capture_output=True, text=True, check=True).stdout
    assert where.startswith(str(bare_venv))
    assert "redis " in done.stdout
    assert "blake3 " in done.stdout


def test_a_given_python_wins(comfyui: Path, runtime: TrialRuntime, install: Install) -> None:
    (comfyui / "venv").unlink()
    (comfyui / ".venv").mkdir()
    done = install(comfyui, "--python", runtime.python)
    assert done.returncode == 0, done.stderr
    assert str(runtime.python) in done.stdout


def test_it_writes_settings_that_only_the_owner_can_read(comfyui: Path, install: Install) -> None:
    done = install(comfyui, "--broker-url", "http://127.0.0.1:8000", "--api-key", "secret-key")
    assert done.returncode == 0, done.stderr
    file = pack_in(comfyui) / "emq.json"
    assert json.loads(file.read_text()) == {"EMQ_BROKER_URL": "http://127.0.0.1:8000", "EMQ_API_KEY": "secret-key"}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "secret-key" not in done.stdout


def test_an_update_replaces_the_files_and_keeps_the_settings(comfyui: Path, install: Install) -> None:
    assert install(comfyui, "--broker-url", "http://127.0.0.1:8000", "--api-key", "secret-key").returncode == 0
    (pack_in(comfyui) / "left_over.py").write_text("")
    (pack_in(comfyui) / "requirements.txt").write_text("redis==0.1\n")
    done = install(comfyui)
    assert done.returncode == 0, done.stderr
    assert "updated" in done.stdout
    assert files_of(pack_in(comfyui)) == files_of(ROOT / PACK)
    assert json.loads((pack_in(comfyui) / "emq.json").read_text())["EMQ_API_KEY"] == "secret-key"


def test_a_new_address_replaces_the_other_kind(comfyui: Path, install: Install) -> None:
    assert install(comfyui, "--broker-url", "http://127.0.0.1:8000", "--api-key", "secret-key").returncode == 0
    assert install(comfyui, "--redis-url", "redis://127.0.0.1:6379/0").returncode == 0
    assert json.loads((pack_in(comfyui) / "emq.json").read_text()) == {"EMQ_REDIS_URL": "redis://127.0.0.1:6379/0"}


def test_uninstall_removes_what_install_did(comfyui: Path, install: Install) -> None:
    before = sorted((comfyui / "custom_nodes").iterdir())
    assert install(comfyui).returncode == 0
    done = install(comfyui, "--uninstall")
    assert done.returncode == 0, done.stderr
    assert sorted((comfyui / "custom_nodes").iterdir()) == before
    again = install(comfyui, "--uninstall")
    assert again.returncode == 0
    assert "no EMQ worker" in again.stdout


def test_uninstall_removes_the_link_and_not_what_it_points_at(comfyui: Path, install: Install) -> None:
    assert install(comfyui, "--link").returncode == 0
    assert install(comfyui, "--uninstall").returncode == 0
    assert not os.path.lexists(pack_in(comfyui))
    assert (ROOT / PACK / "__init__.py").is_file()


@pytest.mark.parametrize("deed", [[], ["--check"], ["--uninstall"]])
def test_a_folder_that_is_no_comfyui_is_refused(tmp_path: Path, install: Install, deed: list[str]) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        done = install(folder, *deed)
        assert done.returncode == 1
        assert str(folder) in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_another_pack_of_that_name_is_left_alone(comfyui: Path, install: Install) -> None:
    pack_in(comfyui).mkdir()
    (pack_in(comfyui) / "mine.py").write_text("x = 1\n")
    for deed in ([], ["--uninstall"]):
        done = install(comfyui, *deed)
        assert done.returncode == 1
        assert "not an EMQ worker" in done.stderr
    assert (pack_in(comfyui) / "mine.py").read_text() == "x = 1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_a_folder_without_permission_is_refused_before_anything_is_done(
    tmp_path: Path, runtime: TrialRuntime, install: Install
) -> None:
    folder = Path("/tmp") / f"emq-test-{os.getpid()}"
    try:
        copy_pack(folder / "project" / PACK)
        shutil.copy(ROOT / "install.py", folder / "project")
        for name in ("comfy", "custom_nodes"):
            (folder / "ComfyUI" / name).mkdir(parents=True)
        (folder / "ComfyUI/main.py").touch()
        done = install(
            folder / "ComfyUI", script=folder / "project/install.py", python="/usr/bin/python3", user=NOBODY, cwd="/"
        )
        assert done.returncode == 1
        assert "No permission" in done.stderr
        assert not list((folder / "ComfyUI/custom_nodes").iterdir())
    finally:
        shutil.rmtree(folder)


def test_a_python_that_runs_no_comfyui_is_refused(comfyui: Path, install: Install) -> None:
    cases = {sys.executable: "no torch", "/bin/false": "does not work as a Python", "/absent/python": "does not work"}
    for python, reason in cases.items():
        done = install(comfyui, "--python", python)
        assert done.returncode == 1
        assert reason in done.stderr
        assert "--python" in done.stderr or "does not work" in done.stderr
    assert not os.path.lexists(pack_in(comfyui))


def test_without_a_python_it_asks_for_one(comfyui: Path, install: Install) -> None:
    (comfyui / "venv").unlink()
    done = install(comfyui)
    assert done.returncode == 1
    assert "--python" in done.stderr
    assert not os.path.lexists(pack_in(comfyui))


def test_broken_settings_stop_it_before_anything_is_done(comfyui: Path, install: Install) -> None:
    assert install(comfyui, "--redis-url", "redis://127.0.0.1/0").returncode == 0
    (pack_in(comfyui) / "emq.json").write_text("{")
    done = install(comfyui, "--broker-url", "http://127.0.0.1:8000")
    assert done.returncode == 1
    assert "emq.json" in done.stderr
    assert (pack_in(comfyui) / "emq.json").read_text() == "{"


def test_settings_behind_a_link_stay_and_are_named(comfyui: Path, install: Install) -> None:
    script = comfyui.parent / "emq/install.py"
    copy_pack(script.parent / PACK)
    shutil.copy(ROOT / "install.py", script)
    assert install(comfyui, "--link", "--broker-url", "http://127.0.0.1:8000", script=script).returncode == 0
    done = install(comfyui, "--uninstall", script=script)
    assert done.returncode == 0, done.stderr
    assert f"settings stay in {script.parent / PACK / 'emq.json'}" in done.stdout
    assert (script.parent / PACK / "emq.json").is_file()


def test_a_clone_in_custom_nodes_writes_its_own_settings(comfyui: Path, install: Install) -> None:
    clone = comfyui / "custom_nodes/emq"
    copy_pack(clone / PACK)
    shutil.copy(ROOT / "install.py", clone)
    done = install("--broker-url", "http://127.0.0.1:8000", script=clone / "install.py")
    assert done.returncode == 0, done.stderr
    assert f"in place   {clone / PACK}" in done.stdout
    assert json.loads((clone / PACK / "emq.json").read_text()) == {"EMQ_BROKER_URL": "http://127.0.0.1:8000"}
    assert [path.name for path in (comfyui / "custom_nodes").iterdir() if path.is_dir()] == ["emq"]


def test_a_clone_in_custom_nodes_is_not_doubled(comfyui: Path, install: Install) -> None:
    copy_pack(comfyui / "custom_nodes/emq" / PACK)
    done = install(comfyui)
    assert done.returncode == 1
    assert str(comfyui / "custom_nodes/emq") in done.stderr
    assert not os.path.lexists(pack_in(comfyui))


def test_comfyui_managers_call_installs_the_packages(comfyui: Path, bare_venv: Path, install: Install) -> None:
    clone = comfyui / "custom_nodes/emq"
    copy_pack(clone / PACK)
    shutil.copy(ROOT / "install.py", clone)
    python = bare_venv / "bin/python"
    done = install(script=Path("install.py"), python=python, cwd=clone)
    assert done.returncode == 0, done.stderr
    assert str(python) in done.stdout
    subprocess.run([python, "-c", "import redis, blake3"], check=True)


def test_both_requirements_files_agree() -> None:
    def lines(file: Path) -> list[str]:
        return [line for line in file.read_text().splitlines() if line and not line.startswith("#")]

    assert lines(ROOT / "requirements.txt") == lines(ROOT / PACK / "requirements.txt")
    assert {line.split(">")[0] for line in lines(ROOT / "requirements.txt")} == {"redis", "blake3"}


def test_it_needs_a_folder(tmp_path: Path, install: Install) -> None:
    done = install(cwd=tmp_path)
    assert done.returncode == 2
    assert "usage" in done.stderr
    assert "COMFYUI_DIR" in done.stderr
