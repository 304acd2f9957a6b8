"""Real brokers and real ComfyUIs. Most tests share one of each; those that break one start their own."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from broker.trial.runtime import TrialRuntime, frontend, prepare
from tests.api.conftest import own_valkey
from tests.support.collector import Collector, collecting
from tests.support.comfyui import BrokerProcess, Client, ComfyProcess

__all__ = ["own_valkey"]

LEASE_S = "10"
"""So long that none lapses while Redis or the machine stands still: most tests say that no job was lost."""
BOTH_WAYS = {"test_main_path", "test_cancel", "test_failures", "test_inputs", "test_outputs"}
"""What every run tries over Redis and over the gateway, on shared ComfyUIs; EMQ_TEST_GATEWAY=1: the rest too."""
NAMES = {"GPU_COUNT": "3", "COMFYUI_HOST": "gpu-box", "COMFYUI_PORT": "8188", "COMFYUI_WS_PORT": "8189"}
"""What only labels the shared workers."""
MakeComfy = Callable[..., ComfyProcess]
MakeBroker = Callable[..., BrokerProcess]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a ComfyUI."""
    for item in items:
        if "tests/worker/" in item.path.as_posix():
            item.add_marker(pytest.mark.comfyui)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The way that a test's workers use to the queue."""
    own = any(mark.args[0] == "way" for mark in metafunc.definition.iter_markers("parametrize"))
    if "way" in metafunc.fixturenames and not own:
        shared = metafunc.module.__name__.rpartition(".")[2] in BOTH_WAYS and "make_comfy" not in metafunc.fixturenames
        both = shared or os.environ.get("EMQ_TEST_GATEWAY")
        metafunc.parametrize("way", ("redis", "gateway") if both else ("redis",))


def _address(broker: BrokerProcess, way: str) -> dict[str, str]:
    return {"EMQ_BROKER_URL": broker.url} if way == "gateway" else {"EMQ_REDIS_URL": broker.redis_url}


@pytest.fixture(scope="session")
def runtime() -> TrialRuntime:
    """The trial ComfyUI, built on the first use."""
    return prepare()


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    return itertools.count(1)


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Where the shared broker sends traces."""
    with collecting() as found:
        yield found


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[BrokerProcess]:
    """The broker that most tests share."""
    folder = tmp_path_factory.mktemp("broker")
    settings = {"EMQ_LEASE_S": LEASE_S, "EMQ_BACKOFF_S": "0.1", "EMQ_INPUT_URLS": "any", "LOG_LEVEL": "DEBUG"}
    settings |= {"EMQ_TRACES": "1", **collector.settings}
    process = BrokerProcess(folder / "log", data=folder / "data", settings=settings).start()
    yield process
    process.end()


def _comfy(runtime: TrialRuntime, folder: Path, name: str, settings: dict[str, str]) -> ComfyProcess:
    settings = {"WORKER_ID": name, "MACHINE_ID": "test", "EMQ_TAGS": name, "LOG_LEVEL": "DEBUG", **settings}
    return ComfyProcess(folder / "log", runtime=runtime, base=folder / "base", settings=settings)


@pytest.fixture(scope="session")
def comfys(
    runtime: TrialRuntime, broker: BrokerProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], ComfyProcess]]:
    """The ComfyUIs that most tests share, with their real page: one for each way, started when it is asked for."""
    started: dict[str, ComfyProcess] = {}

    def get(way: str) -> ComfyProcess:
        if way not in started:
            folder = tmp_path_factory.mktemp("comfy")
            settings = {**_address(broker, way), **NAMES, "EMQ_JOB_TYPES": "comfyui, video"}
            process = started[way] = _comfy(runtime, folder, f"shared-{way}", settings)
            process.options = ("--front-end-root", str(frontend()))
            process.furnish().start().wait_ready()
        return started[way]

    yield get
    for process in started.values():
        process.end()


@pytest.fixture
def comfy(comfys: Callable[[str], ComfyProcess], way: str) -> ComfyProcess:
    """The shared ComfyUI whose worker uses this way."""
    return comfys(way)


@pytest.fixture
def make_comfy(
    runtime: TrialRuntime, tmp_path_factory: pytest.TempPathFactory, numbers: Iterator[int], way: str
) -> Iterator[MakeComfy]:
    """Makes a ComfyUI of a test's own, not started yet; it ends with the test."""
    made: list[ComfyProcess] = []

    def make(broker: BrokerProcess | None = None, **settings: str) -> ComfyProcess:
        folder = tmp_path_factory.mktemp("comfy")
        address = _address(broker, way) if broker is not None else {}
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
