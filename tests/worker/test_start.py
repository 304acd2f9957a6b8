"""How the worker starts, and how it does not."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import aiohttp

from broker.trial.workflows import plain_image
from tests.support.comfyui import PACK, Client, ComfyProcess, fails
from tests.support.processes import listening, side_process
from tests.support.waiting import wait_until
from tests.worker.conftest import MakeBroker, MakeComfy

READY = "To see the GUI go to"


def lines(comfy: ComfyProcess, word: str) -> list[str]:
    return [line for line in comfy.said().splitlines() if word in line]


def import_s(comfy: ComfyProcess) -> float:
    """What ComfyUI says that importing the pack took at its latest start."""
    took = [line for line in lines(comfy, PACK.name) if "seconds" in line][-1]
    return float(took.split(" seconds")[0].strip())


def starts_lightly(comfy: ComfyProcess) -> bool:
    """Start it; whether the pack's import took 0.2 s of that, or on a slow machine no more than the same share."""
    began = time.monotonic()
    comfy.start().wait_for(READY)
    return import_s(comfy) <= max(0.2, 0.03 * (time.monotonic() - began))


async def test_it_finds_a_broker_of_this_machine_whenever_that_starts(
    make_broker: MakeBroker, make_comfy: MakeComfy, tmp_path: Path
) -> None:
    """Without settings it looks into the default data folder, also when the broker comes later; meanwhile one line."""
    comfy = make_comfy(XDG_DATA_HOME=str(tmp_path), LOG_LEVEL="INFO", EMQ_PAGE="off").start()
    comfy.wait_for("the queue cannot be reached")
    async with aiohttp.ClientSession(comfy.url) as session, session.get("/emq/status") as answer:
        assert answer.status == 404  # what is off at the page is not there
    assert len(lines(comfy, "the queue cannot be reached")) == 1
    broker = make_broker()
    os.symlink(broker.data, tmp_path / "emq")
    await asyncio.to_thread(comfy.wait_ready)
    async with broker.client() as client:
        assert (await client.run(plain_image(1)))["status"] == "completed"
    assert len(lines(comfy, "the queue cannot be reached")) == 1
    assert not lines(comfy, "attempt 1 starts") or "INFO" not in comfy.said()


async def test_the_worker_opens_nothing(client: Client, comfy: ComfyProcess) -> None:
    """After a job, with its side process: ComfyUI's own port is the only one at which anybody here is answered."""
    assert (await client.run(plain_image(1)))["status"] == "completed"
    assert comfy.child is not None
    assert side_process(comfy.child.pid) is not None
    assert listening(comfy.child.pid) == {comfy.port}


def test_missing_packages_are_one_line(make_comfy: MakeComfy, tmp_path: Path) -> None:
    """ComfyUI starts as if the pack were not there; the line says what to do."""
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name in ('redis', 'blake3') else real(name, *a)\n"
    )
    comfy = make_comfy(PYTHONPATH=str(tmp_path)).start()
    comfy.wait_for(READY)
    (line,) = lines(comfy, "the worker does not start")
    assert "no redis and no blake3" in line
    assert "requirements.txt" in line
    assert "Traceback" not in comfy.said().partition("the worker does not start")[2][:500]


def test_a_setting_that_cannot_be_used_is_one_line(make_comfy: MakeComfy) -> None:
    comfy = make_comfy(EMQ_REDIS_URL="localhost:6379").start()
    comfy.wait_for(READY)
    (line,) = lines(comfy, "the worker does not start")
    assert "EMQ_REDIS_URL" in line


def test_an_address_that_only_redis_py_finds_fault_with_is_one_line(make_comfy: MakeComfy) -> None:
    comfy = make_comfy(EMQ_REDIS_URL="redis://h/0?socket_timeout=soon").start()
    comfy.wait_for("no hints: EMQ_REDIS_URL cannot be used")
    comfy.wait_for("the queue cannot be reached")
    comfy.wait_for(READY)
    (line,) = lines(comfy, "the queue cannot be reached")
    assert "EMQ_REDIS_URL cannot be used" in line
    assert "a fault in the worker" not in comfy.said()


async def test_the_settings_file_says_where_the_queue_is(make_broker: MakeBroker, make_comfy: MakeComfy) -> None:
    """The pack as a copy, its address in emq.json; LOG_LEVEL is honoured; the pack's import costs ComfyUI little.

    At its end a person's prompt kills the prompt thread, which is noticed within a heartbeat."""
    broker = make_broker()
    comfy = make_comfy(LOG_LEVEL="WARNING", EMQ_REDIS_URL="redis://127.0.0.1:1/0")
    pack = comfy.base / "custom_nodes" / PACK.name
    pack.unlink()
    shutil.copytree(PACK, pack, ignore=shutil.ignore_patterns("__pycache__", "emq.json"))
    (pack / "emq.json").write_text(f'{{"EMQ_REDIS_URL": "{broker.redis_url}"}}')
    light = starts_lightly(comfy)
    async with broker.client() as client:

        async def there() -> bool:
            return await client.worker(comfy.worker_id) is not None

        await wait_until(there, 60, "the worker is in the fleet")
        assert (await client.run(plain_image(2)))["status"] == "completed"
    assert not lines(comfy, "attempt 1 starts")
    # A person's prompt ends ComfyUI's prompt thread, and no job is there to show it.
    await comfy.post("/prompt", {"prompt": fails("SystemExit"), "client_id": "page"})
    comfy.wait_for("prompt thread has ended; it runs nothing more")
    async with broker.client() as client:

        async def unhealthy() -> bool:
            worker = await client.worker(comfy.worker_id)
            return worker is not None and worker["status"] == "unhealthy"

        await wait_until(unhealthy, 20, "the fleet is told")
    for _ in range(2):  # other tests run beside this one
        if not light:
            comfy.end()
            light = starts_lightly(comfy)
    assert light, "the import"
