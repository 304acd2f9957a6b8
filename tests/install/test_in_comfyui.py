"""The worker dropped into a real ComfyUI in each of the three ways: it registers and runs a job."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from broker.trial.runtime import TrialRuntime
from broker.trial.workflows import plain_image
from comfyui_emq_node.version import VERSION
from tests.install.conftest import ROOT, Install, quiet_environment
from tests.support.comfyui import BrokerProcess, ComfyProcess

PACK = "comfyui_emq_node"
Way = Callable[[Install, Path, BrokerProcess], None]

pytestmark = pytest.mark.comfyui


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("broker")
    process = BrokerProcess(folder / "broker.log", data=folder / "data").start()
    yield process
    process.end()


@pytest.fixture(autouse=True)
def _no_settings_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the worker knows comes from what install.py wrote."""
    for name in ("EMQ_REDIS_URL", "EMQ_BROKER_URL", "REDIS_HOST", "EMQ_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def copied(install: Install, comfyui: Path, broker: BrokerProcess) -> None:
    done = install(comfyui, "--redis-url", broker.redis_url)
    assert done.returncode == 0, done.stderr


def copied_for_the_gateway(install: Install, comfyui: Path, broker: BrokerProcess) -> None:
    done = install(comfyui, "--broker-url", broker.url)
    assert done.returncode == 0, done.stderr


def project(folder: Path) -> Path:
    """The whole project as a clone of it has it."""
    kept = ("broker", PACK, "docs", "tests", "templates", "static", "deploy", "bench")
    for name in kept:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "emq.json"))
    for file in ("__init__.py", "install.py", "requirements.txt", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / file, folder)
    return folder


def linked(install: Install, comfyui: Path, broker: BrokerProcess) -> None:
    # From a copy of the project: settings go beside the files that the link points at.
    clone = project(comfyui.parent / "emq")
    done = install(comfyui, "--link", "--redis-url", broker.redis_url, script=clone / "install.py")
    assert done.returncode == 0, done.stderr
    assert (comfyui / "custom_nodes" / PACK).resolve() == clone / PACK


def cloned(install: Install, comfyui: Path, broker: BrokerProcess) -> None:
    clone = project(comfyui / "custom_nodes" / "emq")
    python = comfyui / "venv" / "bin" / "python"
    manager = {**quiet_environment(), "COMFYUI_PATH": str(comfyui)}
    done = install(script=Path("install.py"), python=python, cwd=clone, env=manager)
    assert done.returncode == 0, done.stderr
    done = install("--redis-url", broker.redis_url, script=clone / "install.py")
    assert done.returncode == 0, done.stderr


@asynccontextmanager
async def running(runtime: TrialRuntime, comfyui: Path, name: str) -> AsyncIterator[ComfyProcess]:
    """This ComfyUI, its worker serving the queue under this name."""
    process = ComfyProcess(
        comfyui / "log", runtime=runtime, base=comfyui, settings={"WORKER_ID": name, "EMQ_TAGS": name}
    )
    process.start()
    try:
        await asyncio.to_thread(process.wait_ready)
        yield process
    finally:
        await asyncio.to_thread(process.end)


def add_script(packs: Path, folder: str) -> str:
    """Put a script into the pack's ``web`` folder; gives the path under which ComfyUI's page must load it."""
    web = packs / folder / PACK / "web" if folder != PACK else packs / PACK / "web"
    web.mkdir(exist_ok=True)
    (web / "probe.js").write_text("// nothing\n")
    return f"/extensions/{folder}/probe.js"


@pytest.mark.parametrize("way", [copied, copied_for_the_gateway, linked, cloned])
async def test_it_registers_and_runs_a_job(
    way: Way, comfyui: Path, install: Install, runtime: TrialRuntime, broker: BrokerProcess
) -> None:
    name = way.__name__
    way(install, comfyui, broker)
    checked = install(comfyui, "--check")
    assert checked.returncode == 0, checked.stdout
    assert "answers at" in checked.stdout
    script = add_script(comfyui / "custom_nodes", "emq" if way is cloned else PACK)
    async with running(runtime, comfyui, name) as process, broker.client() as client:
        worker = await client.worker(name)
        assert worker is not None
        assert worker["via"] == ("gateway" if way is copied_for_the_gateway else "redis")
        record = await client.run(plain_image(), requirements={"tags": [name]})
        assert (record["status"], record["worker_id"]) == ("completed", name), process.said()[-3000:]
        (output,) = record["result"]["outputs"]
        assert (await client.fetch(output)).startswith(b"\x89PNG")
        async with aiohttp.ClientSession(process.url) as http, http.get("/extensions") as answer:
            assert script in await answer.json()


async def test_a_comfyui_without_the_worker_again_starts_as_before(
    comfyui: Path, install: Install, runtime: TrialRuntime, broker: BrokerProcess
) -> None:
    copied(install, comfyui, broker)
    assert install(comfyui, "--uninstall").returncode == 0
    process = ComfyProcess(comfyui / "log", runtime=runtime, base=comfyui).start()
    try:
        await asyncio.to_thread(process.wait_for, "To see the GUI go to")
        assert PACK not in process.said()
    finally:
        await asyncio.to_thread(process.end)


def test_a_broker_that_is_away_fails_the_check(comfyui: Path, install: Install, tmp_path: Path) -> None:

    process = BrokerProcess(tmp_path / "log", data=tmp_path / "data").start()
    try:
        assert install(comfyui, "--broker-url", process.url).returncode == 0
        healthy = install(comfyui, "--check")
        assert healthy.returncode == 0, healthy.stdout
        assert f"EMQ broker {VERSION} answers at {process.url}" in healthy.stdout
    finally:
        process.end()
    gone = install(comfyui, "--check")
    assert gone.returncode == 1
    assert f"fail {process.url} does not answer" in gone.stdout
