"""``python -m broker demo``: broker, Valkey and a real ComfyUI with the worker make a picture on this machine.

All of it runs on free ports of loopback, keeps its data in a temporary folder, and ends with the demo.
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
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from broker.cli.watch import Screen, describe, follow
from broker.client import Client
from broker.errors import EmqError
from broker.queue.valkey_files import free_port
from broker.trial.children import Child, ChildEnded, child
from broker.trial.comfyui import Launch, NoComfyUI, own, trial
from broker.trial.picture import paper_cut
from broker.trial.runtime import RuntimeUnavailable

ROOT = Path(__file__).resolve().parents[2]
BROKER_S = 60.0
COMFYUI_S = 300.0
"""How long broker and ComfyUI may take until they are ready: the first start after an update compiles a lot, and the
machine may be slow or busy. One that has ended is not waited for."""
FAILURES = (EmqError, ChildEnded, NoComfyUI, RuntimeUnavailable, OSError)


def say(line: str) -> None:
    """One line for the person who watches."""
    print(line, flush=True)


def main(argv: Sequence[str]) -> int:
    """Run the demo; 0 when its picture was made and it ended as asked."""
    parser = argparse.ArgumentParser(prog="python -m broker demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--once", action="store_true", help="end after the first picture")
    parser.add_argument("--output", type=Path, default=Path("demo"), metavar="DIR", help="where pictures go (./demo)")
    args = parser.parse_args(argv)
    try:
        args.output.mkdir(parents=True, exist_ok=True)
        return asyncio.run(_until_stopped(_demo(args.output.absolute(), args.once)))
    except FAILURES as error:
        say(f"The demo ended: {error}")
    return 1


async def _until_stopped(work: Coroutine[Any, Any, int]) -> int:
    """Let Ctrl-C, SIGTERM and a closed terminal end the work in order; the children end with it."""
    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        if not stopped:
            raise
        say("Ended.")
        return 0


async def _demo(output: Path, once: bool) -> int:
    started = time.monotonic()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emq-demo-")))
        broker, url = await stack.enter_async_context(_broker(folder))
        say(f"  broker    {url}")
        launch = await asyncio.to_thread(_launch, folder)
        comfyui = await stack.enter_async_context(_comfyui(launch, folder))
        emq = await stack.enter_async_context(Client(url))
        await _worker_ready(emq, comfyui)
        say(f"  worker    ready in {launch.name}")
        for file in await _picture(emq, output):
            say(f"  saved     {file}")
        say(f"  took      {time.monotonic() - started:.1f} s from the start to the picture")
        say(f"  page      {url}/")
        if once:
            return 0
        say("Ctrl-C ends everything.")
        await _first_end(broker, comfyui)
    return 0


def _launch(folder: Path) -> Launch:
    """The ComfyUI to run, with the settings of a worker on this machine."""
    redis = json.loads((folder / "data" / "valkey.json").read_text())["url"]
    settings = {"EMQ_REDIS_URL": redis, "WORKER_ID": "demo", "EMQ_POOLS": "default"}
    named = os.environ.get("COMFYUI")
    if named:
        return own(Path(named), folder / "comfyui", free_port(), settings)
    return trial(folder / "comfyui", free_port(), settings)


@asynccontextmanager
async def _broker(folder: Path) -> AsyncIterator[tuple[Child, str]]:
    """A broker with its own Valkey, whatever the environment says about others."""
    command = [sys.executable, "-m", "broker", "serve", "--host", "127.0.0.1", "--port", "0"]
    command += ["--data", str(folder / "data")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("EMQ_", "REDIS_"))}
    async with child("The broker", command, folder / "broker.log", cwd=ROOT, env=environment) as process:
        found = await process.line(r"listening on (http://\S+)", BROKER_S)
        yield process, found[1].rstrip("/")


@asynccontextmanager
async def _comfyui(launch: Launch, folder: Path) -> AsyncIterator[Child]:
    log = folder / "comfyui.log"
    async with child(launch.name, launch.command, log, cwd=launch.cwd, env=launch.environment) as process:
        yield process


async def _picture(emq: Client, output: Path) -> list[Path]:
    """Submit the sample over the WebSocket, show its progress, and save what it makes."""
    screen = Screen()
    try:
        job = await emq.submit(paper_cut(int(time.time())))
        if job.accepted is not None:
            screen.say("\n".join(describe(job.accepted)))
        return await emq.save(await follow(job, screen), output)
    finally:
        screen.close()


async def _worker_ready(emq: Client, comfyui: Child) -> None:
    """Wait until the broker knows the worker. Raises ``ChildEnded`` when ComfyUI ended or took too long."""
    limit = time.monotonic() + COMFYUI_S
    while time.monotonic() < limit:
        comfyui.check()
        if await emq.workers():
            return
        await asyncio.sleep(0.1)
    raise ChildEnded(f"{comfyui.name} has no worker after {COMFYUI_S:g} s:\n{comfyui.last_words()}")


async def _first_end(*children: Child) -> None:
    """Wait until one of them ends, which none should; raises ``ChildEnded``."""
    waiting = [asyncio.create_task(each.ended()) for each in children]
    try:
        done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        done.pop().result()
    finally:
        for task in waiting:
            task.cancel()
