"""Real brokers and real ComfyUIs. Most tests share one of each; those that break one start their own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from broker.trial.runtime import TrialRuntime, frontend, prepare
from tests.support.comfyui import BrokerProcess, Client, ComfyProcess

LEASE_S = "2"
MakeComfy = Callable[..., ComfyProcess]
MakeBroker = Callable[..., BrokerProcess]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a ComfyUI."""
    for item in items:
        if "tests/worker/" in item.path.as_posix():
            item.add_marker(pytest.mark.comfyui)


@pytest.fixture(scope="session")
def runtime() -> TrialRuntime:
    """The trial ComfyUI, built on the first use."""
    return prepare()


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """The broker that most tests share, with a short lease."""
    folder = tmp_path_factory.mktemp("broker")
    settings = {"EMQ_LEASE_S": LEASE_S, "EMQ_BACKOFF_S": "0.1", "EMQ_INPUT_URLS": "any", "LOG_LEVEL": "DEBUG"}
    process = BrokerProcess(folder / "log", data=folder / "data", settings=settings).start()
    yield process
    process.end()


def _comfy(runtime: TrialRuntime, folder: Path, name: str, settings: dict[str, str]) -> ComfyProcess:
    settings = {"WORKER_ID": name, "MACHINE_ID": "test", "EMQ_TAGS": name, "LOG_LEVEL": "DEBUG", **settings}
    return ComfyProcess(folder / "log", runtime=runtime, base=folder / "base", settings=settings)


@pytest.fixture(scope="session")
def comfy(
    runtime: TrialRuntime, broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyProcess]:
    """The ComfyUI that most tests share, with its real page, its worker on Redis."""
    folder = tmp_path_factory.mktemp("comfy")
    names = {"GPU_COUNT": "3", "COMFYUI_HOST": "gpu-box", "COMFYUI_PORT": "8188", "COMFYUI_WS_PORT": "8189"}
    names["EMQ_JOB_TYPES"] = "comfyui, video"
    process = _comfy(runtime, folder, "shared", {"EMQ_REDIS_URL": broker.redis_url, **names})
    process.options = ("--front-end-root", str(frontend()))
    process.furnish().start().wait_ready()
    yield process
    process.end()


@pytest.fixture
def make_comfy(
    runtime: TrialRuntime, tmp_path_factory: pytest.TempPathFactory, numbers: Iterator[int]
) -> Iterator[MakeComfy]:
    """Makes a ComfyUI of a test's own, not started yet; it ends with the test."""
    made: list[ComfyProcess] = []

    def make(broker: BrokerProcess | None = None, **settings: str) -> ComfyProcess:
        folder = tmp_path_factory.mktemp("comfy")
        address = {"EMQ_REDIS_URL": broker.redis_url} if broker is not None else {}
        made.append(_comfy(runtime, folder, f"own-{next(numbers)}", {**address, **settings}).furnish())
        return made[-1]

    yield make
    for process in made:
        process.kill()


@pytest.fixture
def make_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeBroker]:
    """Makes a running broker of a test's own; it ends with the test."""
    made: list[BrokerProcess] = []

    def make(**settings: str) -> BrokerProcess:
        folder = tmp_path_factory.mktemp("broker")
        settings = {"EMQ_LEASE_S": LEASE_S, "EMQ_BACKOFF_S": "0.1", "LOG_LEVEL": "DEBUG", **settings}
        made.append(BrokerProcess(folder / "log", data=folder / "data", settings=settings).start())
        return made[-1]

    yield make
    for process in made:
        process.end()


@pytest.fixture
async def client(broker: BrokerProcess) -> AsyncIterator[Client]:
    """A client of the shared broker."""
    async with broker.client() as client:
        yield client
