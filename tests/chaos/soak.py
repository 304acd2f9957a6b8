"""Hours of ordinary work, and whether anything grows: ``python -m tests.chaos.soak --minutes 60 --keep FILE``.

NGINX, two brokers, a Valkey, simulated GPUs over Redis and over the gateway, and clients of every kind at a modest pace
(:mod:`tests.chaos.traffic`), each a process of its own. Records live half a minute. In the warm-up there are twice the
clients: a day has its busiest moment, whose mark resident memory keeps, and processes that still have a part of their
way to it before them grow, though they leak nothing. Then the queue runs empty: that is the baseline. Then the measured
time; then the queue runs empty again. The verdict is written every minute, so a run that is interrupted still tells
what it saw.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from array import array
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import redis

from broker.queue.connection import Connection
from broker.queue.fsck import Check
from broker.queue.queue import Queue
from broker.queue.series import KEPT
from tests.chaos.footprint import Footprint, footprint
from tests.chaos.sampler import Track, broken, ends
from tests.support.comfyui import ROOT, BrokerProcess, Process
from tests.support.nginx import nginx
from tests.support.processes import children
from tests.support.servers import RedisServer, free_port, valkey_binary
from tests.support.waiting import wait_until

MOST_MB_PER_HOUR = 1.0
MEMORY_BACK = 0.02
MOST_WAITING = 10
SAMPLE_S, WRITE_S = 5.0, 60.0
DRAIN_S = 300.0
# Files live for a minute, so brokers look for old ones every half minute, as they do each hour otherwise: that look
# is work like any other, and one at the end of the measured hour, through all of that hour's files, would be growth.
SETTINGS = {
    "EMQ_KEEP_OUTPUTS": "*=60",
    "EMQ_TTL_COMPLETED_S": "30", "EMQ_TTL_FAILED_S": "30", "EMQ_TTL_CANCELLED_S": "30", "EMQ_IDEMPOTENCY_TTL_S": "30",
    "EMQ_BACKOFF_S": "0.2", "EMQ_LOG_FORMAT": "json", "EMQ_SECRET": "the secret of the soak",
}  # fmt: skip
CLIENTS = ("clients", "more-clients")
STATES = ("scheduled", "blocked", "pending", "claimed", "processing", "completed", "failed", "cancelled")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how much."""

    minutes: float
    rate: float = 2.0
    gpus: int = 4
    """Simulated ones over each way."""

    @property
    def warm_s(self) -> float:
        """Before the baseline."""
        return min(900.0, self.minutes * 15)

    @property
    def settle_s(self) -> float:
        """At the beginning of the measured time, not in the fit: allocators and caches fill."""
        return min(600.0, self.minutes * 10)


@dataclass
class Soak:
    """Everything that runs, and what is known of it."""

    plan: Plan
    folder: Path
    keep: Path
    tracks: dict[str, Track] = field(default_factory=dict)
    brokers: list[BrokerProcess] = field(default_factory=list)
    gpus: list[Process] = field(default_factory=list)
    clients: list[Process] = field(default_factory=list)
    baseline: Footprint | None = None
    after: Footprint | None = None
    waiting: array[float] = field(default_factory=lambda: array("d"))
    """Jobs in the queue at each look: they take memory everywhere, so a run in which they grow tells nothing."""
    findings: list[str] = field(default_factory=list)
    ended: bool = False
    _began: float = 0.0
    _written: float = 0.0

    async def run(self) -> bool:
        """The whole course; whether everything held."""
        async with AsyncExitStack() as stack:
            stack.callback(self._stop)
            self.server = RedisServer("soak", valkey_binary(), self.folder / "valkey")
            # Each command that is new to the server would add a histogram of 25 KB, however late its first call is.
            await asyncio.to_thread(self.server.start, "--appendfsync", "always", "--latency-tracking", "no")
            stack.callback(self.server.kill)
            ports = [free_port(), free_port()]
            upstream = [f"127.0.0.1:{port}" for port in ports]
            front = await stack.enter_async_context(nginx("nginx.conf", self.folder / "nginx", upstream))
            self.url = front.url
            await asyncio.to_thread(self._start, ports)
            self.http = await stack.enter_async_context(aiohttp.ClientSession())
            self._traffic(*CLIENTS)
            await asyncio.sleep(self.plan.warm_s)
            await asyncio.to_thread(self._fill_history)
            self.baseline = await self._empty()
            self._traffic(CLIENTS[0])
            await self._watch()
            self.after = await self._empty()
            await self._check()
        self.ended = True
        self.write()
        return not self.wrong()

    def _start(self, ports: list[int]) -> None:
        env = {**SETTINGS, "EMQ_REDIS_URL": self.server.url, "EMQ_PUBLIC_URL": self.url,
               "EMQ_STORE_URL": (self.folder / "files").as_uri(), "EMQ_TRUSTED_PROXIES": "127.0.0.1"}  # fmt: skip
        (self.folder / "files").mkdir()
        for number, port in enumerate(ports):
            log, data = self.folder / f"broker-{number}.log", self.folder / f"data-{number}"
            self.brokers.append(BrokerProcess(log, data=data, port=port, settings=env).start())
        self._track_servers()
        for name, way in (("redis", ["--redis", self.server.url]), ("gateway", [])):
            options = ["--rate", "0", "--stuck", "0", "--pace", "20"]
            options += ["--workers", str(self.plan.gpus), "--name", name, *way]
            self.gpus.append(self._child(f"gpus-{name}", "broker", "simulate", "--broker", self.url, *options))

    def _track_servers(self) -> None:
        assert self.server.process
        self.tracks["valkey"] = Track(self.server.process.pid)
        for number, broker in enumerate(self.brokers):
            self.tracks[f"broker-{number}"] = Track(broker.pid)
        master = int((self.folder / "nginx" / "pid").read_text())
        self.tracks["nginx"] = Track(master)
        for number, pid in enumerate(sorted(children(master))):
            self.tracks[f"nginx-{number}"] = Track(pid)

    def _child(self, name: str, *command: str) -> Process:
        child = Process(self.folder / f"{name}.log")
        child.launch([sys.executable, "-m", *command], ROOT, {**os.environ, "LOG_LEVEL": "INFO"})
        self.tracks[name] = Track(child.pid)
        return child

    def _traffic(self, *names: str) -> None:
        for gone in CLIENTS:
            self.tracks.pop(gone, None)
        options = ["--url", self.url, "--rate", f"{self.plan.rate}"]
        self.clients = [self._child(name, "tests.chaos.traffic", *options) for name in names]

    async def _watch(self) -> None:
        self._began = time.monotonic()
        end = self._began + self.plan.minutes * 60
        while time.monotonic() < end:
            await self._sample()
            await asyncio.sleep(SAMPLE_S)

    async def _sample(self) -> None:
        at = time.monotonic() - self._began
        told = {f"broker-{n}": await self._figures(broker) for n, broker in enumerate(self.brokers)}
        for name, track in self.tracks.items():
            try:
                track.sample(at, told.get(name))
            except OSError:
                self.findings.append(f"{name} has ended")
        if self.findings:
            raise RuntimeError(self.findings[0])
        if at - self._written >= WRITE_S:
            self._written = at
            self.write()

    async def _figures(self, broker: BrokerProcess) -> tuple[float, float]:
        """A broker's tasks and blocks of memory; the first one tells of the queue too."""
        async with self.http.get(broker.url + "/metrics") as answer:
            lines = (await answer.text()).splitlines()
        if broker is self.brokers[0]:
            self.waiting.append(sum(float(line.split()[1]) for line in lines if line.startswith("emq_queue_depth{")))
        own = dict(line.split() for line in lines if line.startswith("emq_broker_") and "{" not in line)
        return float(own["emq_broker_tasks"]), float(own["emq_broker_allocated_blocks"])

    async def _empty(self) -> Footprint:
        """End the clients, wait until every job has ended and its record is gone, and look at the memory."""
        for process in self.clients:
            await asyncio.to_thread(process.end)
        connection = Connection(self.server.url)
        queue = Queue(connection, "default")

        async def nothing() -> bool:
            stats = await queue.stats()
            return not any(stats.number(state) for state in STATES)

        try:
            await wait_until(nothing, DRAIN_S, "the queue is empty")
        except AssertionError as error:
            self.findings.append(f"{error}: {dict((await queue.stats()).pairs)}"[:500])
        await connection.close()
        await asyncio.sleep(35)  # what has a life time of its own (idempotency keys, open pages) ends too
        return await asyncio.to_thread(footprint, self.server.url)

    def _fill_history(self) -> None:
        """As after a day: else pages and brokers would have more of it with every minute, up to its bound."""
        with redis.Redis.from_url(self.server.url) as client:
            known = client.lrange("emq:{default}:history", 0, -1)
            if not known:
                return
            sample = json.loads(sorted(known, key=len)[len(known) // 2])  # not one of the first minutes: they tell less
            more = [json.dumps({**sample, "t": sample["t"] - n * 60_000}) for n in range(1, KEPT - len(known) + 1)]
            client.lpush("emq:{default}:history", *more)

    async def _check(self) -> None:
        connection = Connection(self.server.url)
        queue = Queue(connection, "default")
        self.findings += [f"fsck: {finding}" for finding in await Check(connection, queue.prefix).run()]
        await connection.close()

    def _stop(self) -> None:
        for process in (*self.clients, *self.gpus, *self.brokers):
            process.end()

    # -- the verdict --------------------------------------------------------------------------------------------------

    def errors(self) -> list[str]:
        """Lines of the logs that tell of an error: no fault explains any here."""
        found = []
        for log in sorted(self.folder.glob("*.log")):
            for line in log.read_text("utf-8", "replace").splitlines():
                if _is_error(line):
                    found.append(f"{log.stem}: {line[:500]}")
        return found

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Every process."""
        return {name: track.summary(self.plan.settle_s) for name, track in self.tracks.items()}

    def wrong(self) -> list[str]:
        """What did not hold so far."""
        wrong = [text for name, summary in self.summaries().items() for text in broken(name, summary, MOST_MB_PER_HOUR)]
        first, last = ends(self.waiting) if self.waiting else (0.0, 0.0)
        if last - first > MOST_WAITING:
            wrong.append(f"the queue went from {first:g} to {last:g} jobs: too busy a machine, this tells nothing")
        wrong += [*self.findings, *self.errors()[:20], *self._said().get("wrong", [])]
        if self.baseline and self.after and abs(self.memory_change()) > MEMORY_BACK:
            wrong.append(f"Redis' memory is not back: {self.memory_change():+.2%}")
        return wrong

    def memory_change(self) -> float:
        """Of Redis, from the baseline to the end."""
        assert self.baseline
        assert self.after
        return self.after.counted / self.baseline.counted - 1

    def _said(self) -> dict[str, Any]:
        if not self.clients:
            return {}
        lines = [line for line in self.clients[0].said().splitlines() if line.startswith("{")]
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return found

    def write(self) -> None:
        """Write what is known."""
        summaries, wrong = self.summaries(), self.wrong()
        share = sum(one.get("cpu_share", 0) for one in summaries.values()) / (os.cpu_count() or 1)
        known: dict[str, Any] = {
            "minutes": round((time.monotonic() - self._began) / 60, 1), "of": self.plan.minutes, "ended": self.ended,
            "good": not wrong, "wrong": wrong, "machine_share": round(share, 3), "processes": summaries,
            "clients": self._said(), "waiting": ends(self.waiting) if self.waiting else [],
        }  # fmt: skip
        if self.baseline:
            known["redis"] = {"baseline": self.baseline.figures()}
        if self.baseline and self.after:
            known["redis"] |= {
                "after": self.after.figures(), "change": f"{self.memory_change():+.2%}",
                "grown": self.after.growth(self.baseline),
            }  # fmt: skip
        self.keep.parent.mkdir(parents=True, exist_ok=True)
        self.keep.write_text(json.dumps(known, indent=1) + "\n")


def _is_error(line: str) -> bool:
    if line.startswith("{"):
        return json.loads(line).get("level") in ("error", "critical")
    return line.startswith("Traceback") or " ERROR " in line or "Task exception was never" in line


async def _soak(plan: Plan, keep: Path) -> bool:
    with tempfile.TemporaryDirectory(prefix="emq-soak-") as folder:
        soak = Soak(plan, Path(folder), keep)
        task = asyncio.ensure_future(soak.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            return await task
        finally:
            soak.write()


def main() -> int:
    """0 when nothing grew and nothing went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60, help="the measured time")
    parser.add_argument("--rate", type=float, default=2.0, help="submits a second")
    parser.add_argument("--gpus", type=int, default=4, help="simulated GPUs over each way")
    parser.add_argument("--keep", type=Path, default=ROOT / "artifacts" / "soak.json", help="the verdict, as JSON")
    args = parser.parse_args()
    good = asyncio.run(_soak(Plan(args.minutes, args.rate, args.gpus), args.keep))
    print(args.keep.read_text())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
