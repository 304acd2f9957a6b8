"""Follows a job in the terminal and saves what it makes."""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urljoin

import aiohttp

from broker.cli.client import Broker, BrokerRefused, Message

CHUNK = 1 << 16
BAR = 30


class JobEnded(BrokerRefused):
    """The job failed or was cancelled; the message says why."""


class Screen:
    """A progress bar on one line of a terminal; elsewhere a plain line for each change of state, node or tenth."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._bar = False
        self._step: object = None

    def say(self, line: str) -> None:
        """A line that stays."""
        self.close()
        print(line, file=self._out, flush=True)

    def progress(self, percent: float, text: str) -> None:
        """How far the job is."""
        if not self._live:
            step = (int(percent // 10), text.split(" ", 1)[0])
            if step != self._step:
                self._step = step
                print(f"{percent:3.0f} %  {text}".rstrip(), file=self._out, flush=True)
            return
        done = int(percent / 100 * BAR)
        line = f"{'█' * done}{'░' * (BAR - done)} {percent:3.0f} %  {text}"
        self._out.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
        self._out.flush()
        self._bar = True

    def close(self) -> None:
        """Leave the bar where it is and go on below it."""
        if self._bar:
            self._out.write("\n")
            self._bar = False


async def follow(broker: Broker, job_id: str, screen: Screen) -> list[Message]:
    """Show a job's events until it ends and answer its outputs; comes back to a broker that went away.

    Raises ``JobEnded`` when it failed or was cancelled.
    """
    after: str | None = None
    while True:
        async with broker.socket() as socket:
            await socket.send_json({"type": "subscribe_job", "job_id": job_id, "after": after})
            async for frame in socket:
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    continue
                message: Message = frame.json()
                after = message.get("event_id", after)
                outputs = show(message, screen)
                if outputs is not None:
                    screen.close()
                    return outputs
        screen.say("The broker went away; connecting again.")


def show(message: Message, screen: Screen) -> list[Message] | None:
    """Show what a message says; the outputs when it completes the job."""
    kind = message["type"]
    if kind == "error":
        raise JobEnded(f"{message['code']}: {message['error']}")
    if kind == "reset":
        return _ended(message["record"], screen)
    if kind == "complete_job":
        return list(message["result"]["outputs"])
    if kind == "update_job_progress":
        screen.progress(message["progress"], _doing(message))
    elif kind == "fail_job":
        _failed(message, screen)
    elif kind == "job_update":
        _moved(message, screen)
    return None


def _ended(record: Message, screen: Screen) -> list[Message] | None:
    if record["status"] == "completed":
        return list(record["result"]["outputs"])
    if record["status"] == "failed":
        _failed({"error": record["error"] or {}, "will_retry": False}, screen)
    _moved(record, screen)
    return None


def _failed(message: Message, screen: Screen) -> None:
    error = message["error"]
    text = f"{error.get('code')}: {error.get('message')}"
    if not message["will_retry"]:
        screen.close()
        raise JobEnded(f"The job failed: {text}")
    screen.say(f"Failed ({text}); it will be tried again.")


def _moved(message: Message, screen: Screen) -> None:
    status = message["status"]
    if status == "cancelled":
        screen.close()
        raise JobEnded(f"The job was cancelled{': ' + message['reason'] if message.get('reason') else ''}.")
    where = f" by {message['worker_id']}" if message.get("worker_id") and status in ("claimed", "processing") else ""
    place = f", position {message['position']}" if message.get("position") else ""
    if status not in ("completed", "failed"):
        screen.say(f"{status}{where}{place}")


def _doing(message: Message) -> str:
    node = message.get("node")
    if not node:
        return message.get("message") or ""
    steps = f" {node['value']:g}/{node['max']:g}" if (node.get("max") or 0) > 1 else ""
    return f"{node.get('class_type') or node.get('id')}{steps}"


async def save(broker: Broker, outputs: list[Message], folder: Path) -> list[Path]:
    """Download the outputs that are files into ``folder``."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    return [await _save(broker, output, folder) for output in outputs if output.get("url")]


async def _save(broker: Broker, output: Message, folder: Path) -> Path:
    name = re.sub(r"[^\w.\- ]", "_", Path(str(output.get("filename") or "")).name).lstrip(".") or "output"
    path, number = folder / name, 1
    while path.exists():
        path, number = folder / f"{Path(name).stem}-{number}{Path(name).suffix}", number + 1
    async with broker.http.get(urljoin(broker.url + "/", output["url"])) as response:
        response.raise_for_status()
        with path.open("xb") as file:
            async for chunk in response.content.iter_chunked(CHUNK):
                file.write(chunk)
    return path


def describe(accepted: Message) -> list[str]:
    """What an accepted job's answer says, line by line."""
    head = "known already as" if accepted.get("duplicate") else "accepted as"
    lines = [f"{head} {accepted['job_id']} ({accepted['status']})"]
    lines += [f"waits: {_reason(reason)}" for reason in accepted.get("waiting_for") or ()]
    return lines


def _reason(reason: Any) -> str:
    return reason.get("message") or f"{reason['code']} {reason.get('detail') or ''}".strip()
