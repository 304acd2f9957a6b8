"""This release and an older one on one Redis: brokers and workers upgraded one by one under load, and put back.

The older one is what EMQ_RELEASE names (a tag or a commit), else release 0.1.0, else, where its commit is not at hand,
the one before the functions were changed last. It runs from ``git archive``, with this checkout's packages.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
import pytest

from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.queue import Queue
from broker.trial.simulated_gpu import MODELS, workflow
from tests.support.commands import environment
from tests.support.servers import free_port
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("broker", "comfyui_emq_node", "templates", "static")
FUNCTIONS = "broker/queue/functions"
VERSION = re.compile(r"^Q\.VERSION = (\d+)$", re.MULTILINE)


def git(*args: str) -> str | None:
    """What git says; nothing where it fails (no such commit, no repository)."""
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None if done.returncode == 0 else None


def commit(name: str) -> str | None:
    return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")


def released() -> str | None:
    """The commit of release 0.1.0: its tag's, or in a clone without tags the one that says so."""
    return commit("v0.1.0") or git("log", "-1", "--format=%H", "--grep=^Release 0[.]1[.]0$")


def older() -> str | None:
    """The commit of the older release."""
    if named := os.environ.get("EMQ_RELEASE"):
        assert commit(named), f"EMQ_RELEASE names no commit: {named}"
        return commit(named)
    last = git("log", "-1", "--format=%H", "--", FUNCTIONS)
    return released() or (commit(f"{last}^") if last else None)


def functions(tree: Path) -> str:
    return "".join(file.read_text() for file in sorted((tree / FUNCTIONS).glob("*.lua")))


def version(tree: Path) -> int:
    found = VERSION.search(functions(tree))
    assert found
    return int(found[1])


def unpacked(release: str, folder: Path) -> Path:
    """The older release's files."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", release, *PARTS], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
    return folder


def ours(folder: Path, old: Path) -> Path:
    """This checkout's files. Between releases its functions may have the old number still; here they are newer."""
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    if functions(old) != functions(folder) and version(folder) <= version(old):
        base = folder / FUNCTIONS / "_00_base.lua"
        base.write_text(VERSION.sub(f"Q.VERSION = {version(old) + 1}", base.read_text()))
    return folder


@pytest.fixture
def trees(tmp_path: Path) -> dict[str, Path]:
    """The folders of the releases ``old`` and ``new``."""
    release = older()
    if release is None:
        pytest.skip("the repository's history is not here (a shallow clone?): there is no older release to run")
    old = unpacked(release, tmp_path / "old")
    return {"old": old, "new": ours(tmp_path / "new", old)}


def test_changed_functions_have_a_new_number(tmp_path: Path) -> None:
    """Else brokers of this release would leave the last release's functions in Redis."""
    release = released()
    if release is None:
        pytest.skip("the repository's history is not here (a shallow clone?): there is no release to compare with")
    old = unpacked(release, tmp_path / "old")
    assert functions(old) == functions(ROOT) or version(ROOT) > version(old), "raise Q.VERSION in _00_base.lua"


@dataclass
class Part:
    """A process of the site, of one release at a time."""

    args: tuple[str, ...]
    ready: str
    env: dict[str, str]
    log: Path
    process: asyncio.subprocess.Process | None = None

    async def run(self, tree: Path) -> None:
        """End it, if it runs, and start it from these files."""
        await self.end()
        with self.log.open("ab") as log:
            seen = log.tell()
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "broker", *self.args, cwd=tree, env=environment(PYTHONUNBUFFERED="1", **self.env),
                stdout=log, stderr=log,
            )  # fmt: skip
        await wait_until(lambda: self.ready.encode() in self.log.read_bytes()[seen:], 60, f"{self.args} is ready")

    async def end(self) -> None:
        """In good order: a rolling restart, no crash."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            assert await asyncio.wait_for(self.process.wait(), 30) == 0, self.log.read_text()[-3000:]


@dataclass
class Load:
    """Jobs that are submitted all the time, at one replica after the other, until one takes them."""

    urls: list[str]
    http: aiohttp.ClientSession
    jobs: dict[str, str] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Submit no more; raises what went wrong with it."""
        assert self.task is not None
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task

    async def run(self) -> None:
        while True:
            await self.submit(f"load-{len(self.jobs)}")
            await asyncio.sleep(0.3)  # less than the workers do, on a busy machine too

    async def submit(self, key: str, priority: int = 0) -> str:
        body: dict[str, Any] = {"payload": {"workflow": workflow(MODELS[0].file, len(self.jobs))}}
        body |= {"idempotency_key": key, "priority": priority}
        for turn in range(600):
            url = self.urls[(len(self.jobs) + turn) % len(self.urls)]
            with contextlib.suppress(aiohttp.ClientError):
                async with self.http.post(f"{url}/api/jobs", json=body) as response:
                    answer = await response.json()
                    if response.status in (200, 201):
                        self.jobs[key] = answer["job_id"]
                        return self.jobs[key]
                    assert answer["code"] == "unavailable", answer
            await asyncio.sleep(0.05)
        raise AssertionError(f"nobody takes {key}")

    async def record(self, job: str, url: str) -> dict[str, Any]:
        async with self.http.get(f"{url}/api/jobs/{job}") as response:
            assert response.status == 200, await response.text()
            found: dict[str, Any] = await response.json()
            return found

    async def end_of(self, job: str, url: str) -> dict[str, Any]:
        async def ended() -> bool:
            return (await self.record(job, url))["status"] in ("completed", "failed", "cancelled")

        await wait_until(ended, 60, f"{job} ends, asked for at {url}")
        return await self.record(job, url)


@pytest.fixture
async def site(valkey_url: str, pool: str, tmp_path: Path) -> AsyncIterator[tuple[dict[str, Part], list[str]]]:
    """Two brokers, a worker on Redis, one at the gateway of the first broker; none of them runs yet."""
    ports = [free_port(), free_port()]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    env = {"EMQ_POOL": pool, "EMQ_LEASE_S": "5", "EMQ_STORE_URL": f"file://{tmp_path}/store"}
    (tmp_path / "store").mkdir()
    idle = ("--rate", "0.001", "--failing", "0", "--pace", "30")
    common = ("--redis", valkey_url, "--data", str(tmp_path / "data"))
    args = {
        "broker-1": ("serve", "--port", str(ports[0]), *common),
        "broker-2": ("serve", "--port", str(ports[1]), *common),
        "on-redis": (
            "simulate",
            "--name",
            "direct",
            "--workers",
            "2",
            *idle,
            "--broker",
            urls[1],
            "--redis",
            valkey_url,
            "--pool",
            pool,
        ),
        "at-gateway": ("simulate", "--name", "behind", "--workers", "1", *idle, "--broker", urls[0]),
    }
    parts = {
        name: Part(words, "listening on" if words[0] == "serve" else "simulated GPUs", env, tmp_path / f"{name}.log")
        for name, words in args.items()
    }
    yield parts, urls
    for part in parts.values():
        if part.process is not None and part.process.returncode is None:
            part.process.kill()
            await part.process.wait()


async def fsck(old: Path, valkey_url: str, pool: str) -> None:
    """Both releases find the queue in order."""
    connection = Connection(valkey_url)
    assert await Check(connection, Queue(connection, pool).prefix).run() == []
    await connection.close()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "broker", "fsck", "--redis", valkey_url, cwd=old, env=environment(EMQ_POOL=pool),
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()


UP = (("broker-1",), ("broker-2",), ("on-redis", "at-gateway"))
DOWN = (("broker-1", "on-redis"), ("at-gateway", "broker-2"))
"""What starts at once: a worker asks the broker of its own first."""


@pytest.mark.timeout(300)
async def test_an_upgrade_and_the_way_back_under_load(
    trees: dict[str, Path], site: tuple[dict[str, Part], list[str]], valkey_url: str, pool: str
) -> None:
    """Brokers first, then workers, and back in another order: in each mix every job of before and now is done."""
    parts, urls = site
    for pair in (("broker-1", "broker-2"), ("on-redis", "at-gateway")):
        await asyncio.gather(*(parts[name].run(trees["old"]) for name in pair))
    async with aiohttp.ClientSession() as http, Load(urls, http) as load:
        for release, order in (("new", UP), ("old", DOWN)):
            for names in order:
                await asyncio.gather(*(parts[name].run(trees[release]) for name in names))
                job = await load.submit(f"{release} {names}", priority=10)
                told = [await load.end_of(job, url) for url in urls]
                assert {record["status"] for record in told} == {"completed"}, told
        await load.stop()
        ends = [await load.end_of(job, urls[0]) for job in load.jobs.values()]
    assert [name for name, part in parts.items() if part.process is None or part.process.returncode is not None] == []
    assert len(ends) > len(UP) + len(DOWN)
    assert {record["status"] for record in ends} == {"completed"}
    assert len({record["job_id"] for record in ends}) == len(ends)
    await fsck(trees["old"], valkey_url, pool)
