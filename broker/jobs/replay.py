"""Exported jobs on one plain ComfyUI, without any queue: one after another, over ComfyUI's own HTTP."""

from __future__ import annotations

import asyncio
import base64
import copy
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from broker.errors import Unavailable
from broker.jobs.archive import Archive, ArchivedJob

DONE = "replayed.jsonl"
POLL_S = 0.1
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a job: ``status`` is ``completed``, ``failed`` or ``skipped``."""

    job_id: str
    status: str
    reason: str = ""
    files: tuple[str, ...] = ()


class Skipped(Exception):
    """A job that a plain ComfyUI cannot run."""


class Replay:
    """Runs an archive's jobs on the ComfyUI at ``url``; what was done in an earlier run is not done again.

    ``output`` is where results are saved (``None``: they stay in ComfyUI's output folder). ``fetch_urls`` lets inputs
    be fetched from the URLs that jobs name: from here, so with this machine's access.
    """

    def __init__(self, archive: Archive, url: str, output: Path | None = None, fetch_urls: bool = False) -> None:
        self._archive = archive
        self._url = url.rstrip("/")
        self._output = output
        self._fetch_urls = fetch_urls

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(timeout=60, trust_env=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def run(self, limit_s: float) -> AsyncIterator[Replayed]:
        """Run every job that is left, highest priority first; each may take ``limit_s``.

        Raises ``Unavailable`` when ComfyUI cannot be reached: what is left stays left.
        """
        done = self._done()
        jobs = sorted(self._archive.jobs(), key=lambda job: -int(job.submit.get("priority", 0)))
        for job in jobs:
            if job.job_id not in done:
                outcome = await self._one(job, limit_s)
                self._note(outcome)
                yield outcome

    def _done(self) -> set[str]:
        path = self._archive.folder / DONE
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        return {json.loads(line)["job_id"] for line in lines if line.endswith("}")}

    def _note(self, outcome: Replayed) -> None:
        with (self._archive.folder / DONE).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"job_id": outcome.job_id, "status": outcome.status}) + "\n")

    async def _one(self, job: ArchivedJob, limit_s: float) -> Replayed:
        try:
            graph = await self._graph(job)
            async with asyncio.timeout(limit_s):
                entry = await self._execute(graph)
        except Skipped as reason:
            return Replayed(job.job_id, "skipped", str(reason))
        except TimeoutError:
            await self._http.post(f"{self._url}/interrupt")
            return Replayed(job.job_id, "failed", f"It did not end within {limit_s:g} s.")
        except httpx.TransportError as error:
            raise Unavailable(f"ComfyUI at {self._url} cannot be reached: {error}") from None
        if entry["status"]["status_str"] != "success":
            return Replayed(job.job_id, "failed", _reason(entry["status"]))
        return Replayed(job.job_id, "completed", files=tuple([name async for name in self._save(job, entry)]))

    async def _graph(self, job: ArchivedJob) -> Message:
        """The workflow with its input files in ComfyUI's input folder."""
        payload = job.submit["payload"]
        if job.submit.get("job_type", "comfyui") != "comfyui" or not isinstance(payload.get("workflow"), dict):
            raise Skipped("It is no ComfyUI workflow.")
        graph: Message = copy.deepcopy(payload["workflow"])
        for place, source in (payload.get("inputs") or {}).items():
            node_id, _, name = place.rpartition(".")
            if node_id not in graph:
                raise Skipped(f"Input {place} names a node that is not there.")
            graph[node_id].setdefault("inputs", {})[name] = await self._upload(place, source)
        return graph

    async def _upload(self, place: str, source: Message) -> str:
        content, name = await self._content(place, source)
        files = {"image": (name, content)}
        answer = await self._http.post(f"{self._url}/upload/image", files=files, data={"subfolder": "emq-replay"})
        answer.raise_for_status()
        stored = answer.json()
        return f"{stored['subfolder']}/{stored['name']}"

    async def _content(self, place: str, source: Message) -> tuple[bytes, str]:
        label = Path(str(source.get("filename") or "input.png")).name
        if name := source.get("asset"):
            path = self._archive.file(name)
            if not path.is_file():
                raise Skipped(f"The file of input {place} is not in the export.")
            return path.read_bytes(), f"{path.name[:32]}{Path(label).suffix}"
        if source.get("base64"):
            return base64.b64decode(source["base64"]), label
        if source.get("url") and self._fetch_urls:
            answer = await self._http.get(source["url"])
            answer.raise_for_status()
            return answer.content, label
        raise Skipped(f"Input {place} comes from {'a URL (--fetch-urls)' if source.get('url') else 'another job'}.")

    async def _execute(self, graph: Message) -> Message:
        answer = await self._http.post(f"{self._url}/prompt", json={"prompt": graph})
        said = answer.json()
        if "prompt_id" not in said:
            raise Skipped(f"ComfyUI refuses it: {said.get('error', {}).get('message', answer.text[:200])}")
        prompt = said["prompt_id"]
        while True:
            history: Message = (await self._http.get(f"{self._url}/history/{prompt}")).json()
            if prompt in history:
                entry: Message = history[prompt]
                return entry
            await asyncio.sleep(POLL_S)

    async def _save(self, job: ArchivedJob, entry: Message) -> AsyncIterator[str]:
        for outputs in entry.get("outputs", {}).values():
            for made in (one for files in outputs.values() for one in files if isinstance(one, dict)):
                if "filename" not in made or made.get("type") == "temp":
                    continue
                if self._output is None:
                    yield str(Path(made.get("subfolder", ""), made["filename"]))
                    continue
                answer = await self._http.get(f"{self._url}/view", params=made)
                answer.raise_for_status()
                path = self._output / job.job_id / Path(made["filename"]).name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(answer.content)
                yield str(path)


def _reason(status: Message) -> str:
    """What ComfyUI's history says of a prompt that did not succeed."""
    for kind, data in reversed(status.get("messages", [])):
        if kind == "execution_error":
            return f"{data.get('node_type')}: {str(data.get('exception_message')).strip()}"
        if kind == "execution_interrupted":
            return "It was interrupted."
    return "It did not succeed."
