"""``python -m broker demo``: everything on one machine, and nothing left of it afterwards."""

from __future__ import annotations

import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.trial.picture import paper_cut
from broker.trial.runtime import TrialRuntime, prepare
from tests.support.waiting import wait_until

DEMO = [sys.executable, "-m", "broker", "demo"]
SECONDS = 480

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(SECONDS + 30)]


@pytest.fixture(scope="session")
def runtime() -> TrialRuntime:
    return prepare()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A place for pictures; the demo's temporary folder goes in ``temp`` beside them and must be gone afterwards."""
    # pytest's own folders are too long for the path of a Unix socket.
    with tempfile.TemporaryDirectory(prefix="emq-t-") as name:
        folder = Path(name)
        (folder / "temp").mkdir()
        yield folder
        assert not list((folder / "temp").iterdir())
        # The worker's side process follows its ComfyUI, a moment later.
        until = time.monotonic() + 20
        while left := [line for line in processes() if name in line]:
            assert time.monotonic() < until, left
            time.sleep(0.1)


def processes() -> list[str]:
    done = subprocess.run(["ps", "-ewwo", "pid,args"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(folder / "temp"), "PYTHONUNBUFFERED": "1", **more}


def size_of(png: Path) -> tuple[int, int]:
    head = png.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", head[16:])
    return width, height


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The demo without ``--once``; what it says goes to the file ``said``."""
    command = [*DEMO, "--output", str(folder / "pictures")]
    with (folder / "said").open("w") as said:
        return subprocess.Popen(command, env=environment(folder), stdout=said, stderr=said)


def once(folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [*DEMO, "--once", "--output", str(folder / "pictures")]
    return subprocess.run(
        command, env=environment(folder, **more), capture_output=True, text=True, timeout=SECONDS, check=False
    )


def test_once_makes_a_picture_and_ends(folder: Path, runtime: TrialRuntime) -> None:
    done = once(folder, REDIS_HOST="192.0.2.1", EMQ_BROKER_URL="http://192.0.2.1:1")
    assert done.returncode == 0, done.stdout + done.stderr
    (picture,) = (folder / "pictures").iterdir()
    assert size_of(picture) == (512, 512)
    assert f"saved     {picture}" in done.stdout
    assert re.search(r"page +http://127\.0\.0\.1:\d+/", done.stdout)
    shown = [int(percent) for percent in re.findall(r"^ *(\d+) %", done.stdout, re.MULTILINE)]
    assert shown == sorted(shown)
    assert shown[-1] == 100
    # Five of its progress events a second are shown: which nodes they name is up to the machine.
    named = set(re.findall(r"^ *\d+ %  (\w+)", done.stdout, re.MULTILINE))
    assert named & {node["class_type"] for node in paper_cut(seed=1).values()}


def test_a_persons_own_comfyui_is_used_and_left_as_it_is(folder: Path, runtime: TrialRuntime) -> None:
    comfyui = folder / "ComfyUI"
    shutil.copytree(runtime.comfyui, comfyui, ignore=shutil.ignore_patterns("__pycache__"))
    (comfyui / "venv").symlink_to(runtime.root / "venv")
    for name in ("custom_nodes", "user", "input", "models/checkpoints"):
        (comfyui / name).mkdir(parents=True, exist_ok=True)

    def files() -> set[Path]:
        found = (path for path in comfyui.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        return {path for path in found if comfyui / "user" not in path.parents}

    before = files()
    ready = runtime.environment()
    done = once(
        folder,
        COMFYUI=str(comfyui),
        COMFYUI_ARGS=f"--front-end-root {runtime.root / 'web'} --database-url sqlite:///:memory:",
        PYTHONPATH=ready["PYTHONPATH"],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"ready in ComfyUI in {comfyui}" in done.stdout
    assert len(list((folder / "pictures").iterdir())) == 1
    assert files() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_runs_on_until_it_is_told_to_end(folder: Path, runtime: TrialRuntime, number: signal.Signals) -> None:
    demo = start(folder)
    try:
        # One signal comes while ComfyUI starts, the other when everything is done.
        word = "broker  " if number is signal.SIGTERM else "Ctrl-C ends everything"
        await wait_until(lambda: word in (folder / "said").read_text(), SECONDS, f"the demo says {word!r}")
        demo.send_signal(number)
        assert demo.wait(60) == 0, (folder / "said").read_text()
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()
    assert (folder / "said").read_text().endswith("Ended.\n")


def test_a_wrong_comfyui_is_named(folder: Path) -> None:
    done = once(folder, COMFYUI=str(folder / "absent"))
    assert done.returncode == 1
    assert str(folder / "absent") in done.stdout + done.stderr
    assert "main.py" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_comfyui_without_the_workers_packages_is_told_how_to_get_them(folder: Path, runtime: TrialRuntime) -> None:
    comfyui = folder / "ComfyUI"
    (comfyui / "comfy").mkdir(parents=True)
    (comfyui / "main.py").touch()
    # Torch alone is there; a worker's packages are not.
    packages = next((runtime.root / "venv").glob("lib/python*/site-packages"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", comfyui / "venv"], check=True)
    shared = folder / "shared"
    shared.mkdir()
    for found in packages.iterdir():
        if not found.name.startswith(("redis", "blake3")):
            (shared / found.name).symlink_to(found)
    (next((comfyui / "venv").glob("lib/python*/site-packages")) / "shared.pth").write_text(f"{shared}\n")
    done = once(folder, COMFYUI=str(comfyui))
    assert done.returncode == 1
    assert "redis and blake3" in done.stdout + done.stderr
    assert f"python install.py {comfyui}" in done.stdout + done.stderr


def test_the_sample_is_made_of_nodes_that_are_all_used() -> None:
    graph = paper_cut(0)
    links = {value[0] for node in graph.values() for value in node["inputs"].values() if isinstance(value, list)}
    unused = set(graph) - links
    assert [graph[name]["class_type"] for name in unused] == ["SaveImage"]
    assert links <= set(graph)
