"""Outputs: which files a prompt made, and their way to the broker.

A file counts by being a file, whatever key its node lists it under: packs invent keys. Uploads stream from disk; a lost
lease ends them, anything else is tried again for ten minutes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote

from .carrier import Errand
from .dimensions import dimensions
from .metadata import copy_without_text, has_text
from .queue import Claimed, Failure, StaleLease, Uploads

log = logging.getLogger("emq")

Carry = Callable[[Errand], Awaitable[dict[str, Any]]]
"""Carries a file; answers as :meth:`Carrier.put` does."""
INLINE_BYTES = 8 * 1024
INLINE_TOTAL = 64 * 1024
TRY_FOR_S = 600.0
CHANGED = ("hash_mismatch", "size_mismatch")
"""The file was written to while it was carried."""
NO_TEXT_KEYS = frozenset({"dims", "animated"})
"""What core nodes list beside files: flags and sizes for their page."""


class Finder(Protocol):
    """Where ComfyUI keeps the files of an output entry."""

    def file_of(self, item: dict[str, Any]) -> str | None:
        """The path of ``{filename, subfolder, type}``; None when there is no such file."""

    def output_folder(self) -> str:
        """Where nodes save."""


class UploadFailed(Exception):
    """A file cannot be delivered; carries what the job fails with."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.failure = Failure("output_upload_failed", message)


@dataclass(frozen=True)
class Output:
    """One file to deliver."""

    node_id: str | None
    path: str
    temporary: bool = False

    @property
    def filename(self) -> str:
        """The label it goes by."""
        return os.path.basename(self.path)


@dataclass
class Gathered:
    """A job's outputs; ``folder`` holds those that were no files before, and goes with :meth:`discard`."""

    outputs: list[Output] = field(default_factory=list)
    folder: str | None = None

    def write(self, name: str, node_id: str | None, save: Callable[[str], None]) -> None:
        """Make a file of something that was none."""
        path = os.path.join(self._own_folder(), name)
        save(path)
        self.outputs.append(Output(node_id, path))

    def _own_folder(self) -> str:
        if self.folder is None:
            self.folder = tempfile.mkdtemp(prefix="emq-")
        return self.folder

    def strip(self) -> None:
        """Have PNGs delivered without texts in them. Reads and writes files: use a thread; raises ``OSError``."""
        for number, output in enumerate(self.outputs):
            if has_text(output.path):
                folder = os.path.join(self._own_folder(), str(number))
                os.mkdir(folder)
                copy = os.path.join(folder, output.filename)
                copy_without_text(output.path, copy)
                self.outputs[number] = replace(output, path=copy)

    def discard(self) -> None:
        """Remove what :meth:`write` made."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def gather(
    outputs: Mapping[str, Any], images: Sequence[tuple[str | None, Any]], finder: Finder, deliver_temp: bool
) -> Gathered:
    """Find everything a prompt delivers. Encodes images that came without a file: use a thread.

    Files of type ``temp`` (previews at ComfyUI's page) are delivered only where there is no other, or when asked for.
    """
    gathered = Gathered()
    for number, (node_id, image) in enumerate(images):
        gathered.write(f"image_{number + 1:05}.png", node_id, partial(_write_image, image))
    files = {output.path: output for node, shown in outputs.items() for output in _files(str(node), shown, finder)}
    gathered.outputs += files.values()
    if not deliver_temp and any(not output.temporary for output in gathered.outputs):
        gathered.outputs = [output for output in gathered.outputs if not output.temporary]
    for node, shown in outputs.items():
        for number, text in enumerate(_texts(shown, finder)):
            name = f"text_{_plain(node)}{f'_{number + 1}' if number else ''}.txt"
            gathered.write(name, str(node), partial(_write_text, text))
    return gathered


def remove_files(outputs: Mapping[str, Any], finder: Finder) -> None:
    """Remove the files that a prompt has made, delivered or not."""
    for node, shown in outputs.items():
        for output in _files(str(node), shown, finder):
            with contextlib.suppress(OSError):
                os.unlink(output.path)


def _plain(node: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in str(node))[:40]


def _write_image(image: Any, path: str) -> None:
    image.save(path, "PNG")


def _write_text(text: str, path: str) -> None:
    with open(path, "w", encoding="utf-8", errors="replace", newline="") as file:
        file.write(text)


def _lists(shown: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    for key, value in shown.items() if isinstance(shown, Mapping) else ():
        if isinstance(value, list | tuple):
            yield str(key), value


def _files(node: str, shown: Any, finder: Finder) -> Iterator[Output]:
    for _, values in _lists(shown):
        for item in values:
            if isinstance(item, Mapping) and item.get("filename") and item.get("type", "output") != "input":
                path = finder.file_of(dict(item))
                if path is None:
                    log.warning("node %s names a file that is not there: %s", node, str(item.get("filename"))[:200])
                else:
                    yield Output(node, path, item.get("type") == "temp")
            elif isinstance(item, str) and (path := _saved(item, finder)):
                yield Output(node, path)


def _saved(text: str, finder: Finder) -> str | None:
    """The path of a saved file that a node names by its path alone, as Preview3D does."""
    if not text or len(text) > 500 or "\n" in text:
        return None
    folder, name = os.path.split(text)
    root = os.path.realpath(finder.output_folder())
    if os.path.isabs(folder):
        folder = os.path.relpath(os.path.realpath(folder), root)
    return finder.file_of({"filename": name, "subfolder": folder, "type": "output"}) if name else None


def _texts(shown: Any, finder: Finder) -> Iterator[str]:
    for key, values in _lists(shown):
        if key in NO_TEXT_KEYS or not values or not all(isinstance(value, str) for value in values):
            continue
        if not any(_saved(value, finder) for value in values):
            yield "\n".join(values)


class Courier:
    """Has files carried to whichever broker is there; ``brokers`` gives those of a pool as of now."""

    def __init__(self, brokers: Callable[[str], Sequence[str]], carry: Carry) -> None:
        self._brokers, self._carry = brokers, carry

    def places(self, job: Claimed) -> list[Uploads]:
        """Where this job's files may go, in the order to try.

        The broker that handed the job out may be gone since; any other takes them under the same ticket.
        """
        first = job.uploads
        ticket, most = (first.authorization, first.max_bytes) if first else (lease_ticket(job), None)
        places = [
            Uploads(f"{broker.rstrip('/')}/api/jobs/{job.job_id}/outputs/{job.attempt}/", ticket, most)
            for broker in self._brokers(job.pool)
        ]
        return [first, *(place for place in places if place != first)] if first else places

    async def deliver(self, job: Claimed, gathered: Gathered, is_held: Callable[[], bool]) -> list[dict[str, Any]]:
        """Upload everything; the result's ``outputs``.

        Raises:
            StaleLease: the job is no longer ours.
            UploadFailed: a file cannot be delivered.
        """
        described: list[dict[str, Any]] = []
        room = INLINE_TOTAL
        for number, output in enumerate(gathered.outputs):
            stored = await self._put_for_long(job, number, output, is_held)
            head = bytes.fromhex(stored.pop("head", ""))
            record = {"node_id": output.node_id, "filename": output.filename, **stored}
            content_type = str(record.get("content_type") or "")
            record["kind"] = kind_of(content_type)
            record.update(await dimensions(output.path, content_type, head))
            if record["kind"] == "text" and (text := _inline(output.path, room)) is not None:
                record["text"] = text
                room -= len(text)
            described.append(record)
        return described

    async def _put_for_long(
        self, job: Claimed, number: int, output: Output, is_held: Callable[[], bool]
    ) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        until, pause, reason = loop.time() + TRY_FOR_S, 0.2, "no broker has told its address"
        while True:
            for place in self.places(job):
                if not is_held():
                    raise StaleLease(job.job_id)
                try:
                    return await self._put(place, number, output)
                except _Again as error:
                    reason = str(error)
            if loop.time() > until:
                raise UploadFailed(f"{output.filename} could not be uploaded for {TRY_FOR_S:g} s: {reason}.")
            log.warning("cannot upload %s of job %s now (%s); trying again", output.filename, job.job_id, reason)
            await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311
            pause = min(pause * 2, 10.0)

    async def _put(self, place: Uploads, number: int, output: Output) -> dict[str, Any]:
        url = f"{place.url_prefix}{number}/{quote(output.filename, safe='')}"
        said = await self._carry(Errand(output.path, url, place.authorization, place.max_bytes))
        if "again" in said:
            raise _Again(said["again"])
        if "unreadable" in said:
            raise UploadFailed(f"Cannot read {output.filename}: {said['unreadable']}.")
        if "too_large" in said:
            raise UploadFailed(f"{output.filename} has {said['too_large']} bytes; the broker takes {place.max_bytes}.")
        if said["status"] < 300:
            return {"size": said["size"], "hash": said["hash"], "head": said.get("head", ""), **said["answer"]}
        raise _refusal(said["status"], said["answer"], output.filename)


class _Again(Exception):
    """The broker could not take the file now."""


def _refusal(status: int, answer: Mapping[str, Any], filename: str) -> Exception:
    """What an answer means. One without a ``code`` is not a broker's but a proxy's, which knows of no lease."""
    text, details = str(answer.get("error") or f"HTTP {status}"), answer.get("details")
    if isinstance(details, Mapping) and details.get("reason") in CHANGED:
        return _Again(text)
    if status in (401, 403, 404, 409) and "code" in answer:
        return StaleLease(text)
    if status in (413, 415):
        return UploadFailed(f"{filename} was refused: {text}")
    return _Again(text)


def lease_ticket(job: Claimed) -> str:
    """The ``Authorization`` that a job's lease is."""
    return f"Lease {job.job_id}.{job.attempt}.{job.lease}"


def kind_of(content_type: str) -> str:
    """The kind of an output: image, video, audio, text or file."""
    head = content_type.partition("/")[0]
    return head if head in ("image", "video", "audio", "text") else "file"


def _inline(path: str, room: int) -> str | None:
    if os.path.getsize(path) > min(INLINE_BYTES, room):
        return None
    with open(path, "rb") as file:
        return file.read().decode("utf-8", "replace")
