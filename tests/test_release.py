"""What is released: one version everywhere, and a wheel that holds all that a broker serves."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from broker.version import emq_version
from comfyui_emq_node.version import VERSION
from tests.support.commands import serving_in

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    """The wheel, built as for a release."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = folder.glob("*.whl")
    assert file.name.startswith(f"emq-{VERSION}-")
    with zipfile.ZipFile(file) as archive:
        yield archive


def test_everything_has_the_one_version() -> None:
    """What a release names beside ``comfyui_emq_node/version.py``, which all code reads."""
    assert emq_version() == VERSION
    newest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == VERSION
    images = re.findall(r"image: emq-broker:(\S+)", (ROOT / "deploy/kubernetes/broker.yaml").read_text())
    assert set(images) == {VERSION}
    assert "version" in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dynamic"]


def test_the_wheel_has_every_file_of_a_broker(wheel: zipfile.ZipFile) -> None:
    packed = set(wheel.namelist())
    places = {"broker": "broker", "comfyui_emq_node": "comfyui_emq_node"}
    places |= {"templates": "broker/_templates", "static": "broker/_static"}
    kept = subprocess.run(["git", "ls-files", *places], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    files = kept.split() or [str(path.relative_to(ROOT)) for name in places for path in (ROOT / name).rglob("*.*")]
    wanted = {places[name.split("/")[0]] + name[name.index("/") :] for name in files if "__pycache__" not in name}
    assert len(wanted) > 300
    assert wanted <= packed
    assert not [name for name in packed if name.startswith("tests") or name.endswith((".pyc", "emq.json"))]


async def test_a_broker_runs_from_the_wheel(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    """Its pages, scripts and the queue's functions come out of the wheel, not out of the checkout."""
    wheel.extractall(tmp_path)
    with (tmp_path / "broker/_static/emq.css").open("a") as style:
        style.write("/* of the wheel */")
    options = ("--data", str(tmp_path / "data"))
    async with (
        serving_in(tmp_path, *options, PYTHONPATH=str(tmp_path)) as broker,
        aiohttp.ClientSession(broker.url) as http,
    ):
        async with http.get("/health") as answer:
            assert (answer.status, (await answer.json())["version"]) == (200, VERSION)
        for path in ("/", "/jobs", "/help", "/static/htmx.min.js", "/openapi.json"):
            async with http.get(path) as answer:
                assert (answer.status, len(await answer.read()) > 100) == (200, True), path
        async with http.get("/static/emq.css") as answer:
            assert (await answer.text()).endswith("/* of the wheel */")
        assert (await broker.end())[0] == 0
