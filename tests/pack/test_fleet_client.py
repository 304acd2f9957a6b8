"""What ComfyUI's page sends to the fleet, at a broker that wants keys."""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.trial.workflows import plain_image
from comfyui_emq_node.fleet_client import FleetClient, Unanswered
from comfyui_emq_node.settings import Settings
from tests.support.comfyui import ROOT, BrokerProcess, node
from tests.support.servers import free_port


class Local:
    """A ComfyUI with one file in its input folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def input_file(self, name: str) -> str | None:
        return str(self.folder / name) if name == "mine.png" else None

    def file_kind(self, class_type: str, name: str) -> str | None:
        return "image" if (class_type, name) == ("LoadImage", "image") else None


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[BrokerProcess, str]]:
    """A broker that honours keys, and the key of a tenant who may submit and read."""
    folder = tmp_path_factory.mktemp("keyed")
    process = BrokerProcess(folder / "log", data=folder / "data").start()
    command = [sys.executable, "-m", "broker", "keys", "create", "--tenant", "page", "--scopes", "submit,read"]
    done = subprocess.run([*command, "--data", str(process.data)], cwd=ROOT, capture_output=True, text=True, check=True)
    until = time.monotonic() + 30
    while not wants_a_key(process):
        assert time.monotonic() < until, process.said()
        time.sleep(0.02)
    yield process, done.stdout.split()[-1]
    process.end()


def wants_a_key(broker: BrokerProcess) -> bool:
    """Whether the broker has heard of the key."""
    try:
        with urllib.request.urlopen(f"{broker.url}/stats"):
            return False
    except urllib.error.HTTPError as error:
        with error:
            return error.code == 401


def client(broker: BrokerProcess, key: str | None, folder: Path) -> FleetClient:
    settings = Settings(broker_url=broker.url, submit_key=key, worker_id="here")
    return FleetClient(settings, Local(folder), lambda: None)


async def test_a_graph_goes_with_its_files_and_the_key(keyed: tuple[BrokerProcess, str], tmp_path: Path) -> None:
    broker, key = keyed
    keyless = client(broker, None, tmp_path)
    with pytest.raises(Unanswered, match="EMQ_SUBMIT_KEY"):
        await keyless.submit(plain_image(1), None)
    await keyless.close()
    (tmp_path / "mine.png").write_bytes(b"a picture")
    graph = {
        "1": node("LoadImage", image="mine.png"),
        "2": node("LoadImage", image="not here.png"),
        "3": node("PreviewImage", images=["1", 0]),
    }
    page = client(broker, key, tmp_path)
    try:
        for _ in range(2):  # the second time the broker has the file
            told = await page.submit(graph, {"nodes": []})
            record = await page.job(told["job_id"])
            assert (record["status"], record["metadata"]) == ("pending", {"source": "comfyui", "worker_id": "here"})
        assert (await page.depth() or {})["queued"] == 2
        await page.cancel(told["job_id"])
        assert (await page.job(told["job_id"]))["status"] == "cancelled"
        for job_id in ("0" * 32, "../stats", "x?y", "", "é"):
            with pytest.raises(Unanswered, match=r"no such job|There is no job") as caught:
                await page.job(job_id)
            assert caught.value.status == 404
    finally:
        await page.close()


async def test_a_broker_that_died_a_moment_ago_is_passed_over(keyed: tuple[BrokerProcess, str], tmp_path: Path) -> None:
    """Its address lives on in Redis for a while, in front of those that told theirs later."""
    broker, key = keyed
    told = (f"http://127.0.0.1:{free_port()}", broker.url)
    worker: Any = SimpleNamespace(membership=SimpleNamespace(brokers=lambda pool: told))
    page = FleetClient(Settings(submit_key=key, worker_id="here"), Local(tmp_path), lambda: worker)
    try:
        told_job = await page.submit(plain_image(2), None)
        assert "queued" in (await page.depth() or {})
        await page.cancel(told_job["job_id"])  # the other test counts what waits
    finally:
        await page.close()
