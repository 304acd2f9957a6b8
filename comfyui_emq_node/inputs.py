"""Input files: fetched, checked, kept by the hash of their content, and named in the graph.

A name from outside never becomes a path: a file is called by its hash, and of its label only a harmless ending is
taken. Nothing is fetched twice at once, and what is here already is not fetched again; whether its job may have it is
asked each time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from . import media
from .download import TRANSIENT, Answer, Asked, Gone, download, in_thread
from .files import lease_ticket
from .input_cache import Held, InputCache
from .queue import Claimed, Failure, QueueAway
from .urls import UrlRefused, UrlRule, open_session

AT_ONCE = 4
REMEMBERED = 1000
TYPICAL_MAX_S = 6.0

KindOf = Callable[[str, str], "str | None"]
"""What kind of file an input of a node class takes."""


class InputUnavailable(Exception):
    """An input file cannot be had; carries what the job fails with."""

    def __init__(self, place: str, message: str, retry: bool = True, code: str = "input_unavailable") -> None:
        super().__init__(message)
        self.failure = Failure(code, f"Input {place}: {message}.", details={"input": place}, retry=retry)


class _Wish(NamedTuple):
    """One input file: for which input of which job, from where, and what it has to be."""

    job: Claimed
    place: str
    source: Mapping[str, Any]
    kind: str | None
    at: float
    """When it was wanted."""

    @property
    def label(self) -> str:
        return str(self.source.get("filename") or "")

    def unavailable(self, message: str, retry: bool = False) -> InputUnavailable:
        return InputUnavailable(self.place, message, retry)


class _Seen(NamedTuple):
    """What a URL gave: the hash of the file, and by what its server tells whether it has changed."""

    digest: str
    validators: dict[str, str]
    at: float


class Inputs:
    """Fetches the files that jobs name; ``policy`` is the brokers' ``EMQ_INPUT_URLS`` where a job does not say."""

    def __init__(
        self,
        brokers: Callable[[str], Sequence[str]],
        cache: InputCache,
        kind_of: KindOf,
        resolver: Callable[[], AbstractResolver] = ThreadedResolver,
    ) -> None:
        self._brokers, self._cache, self._kind_of, self._resolver = brokers, cache, kind_of, resolver
        self.policy = "public"
        self._web: dict[str, tuple[UrlRule, aiohttp.ClientSession]] = {}
        """A client for each rule: a connection that one rule lets be made is none of another's."""
        self._own: aiohttp.ClientSession | None = None
        self._held: dict[str, list[Held]] = {}
        self._busy: dict[str, tuple[asyncio.Lock, list[None]]] = {}
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._sound: OrderedDict[tuple[str, str | None], None] = OrderedDict()
        self._room = asyncio.Semaphore(AT_ONCE)
        self.typical_s = 0.0
        """How long the inputs of a job have taken lately."""
        self.fetched_bytes = 0

    async def close(self) -> None:
        """Close connections."""
        for session in (self._own, *(session for _, session in self._web.values())):
            if session is not None:
                await session.close()

    def release(self, job_id: str) -> None:
        """The job needs its files no more."""
        for held in self._held.pop(job_id, ()):
            held.close()

    async def place(self, job: Claimed, graph: dict[str, Any], wanted: Mapping[str, Any]) -> None:
        """Fetch every file of ``payload.inputs`` and name it in the graph.

        Raises:
            InputUnavailable: a file is not to be had.
        """
        began = asyncio.get_running_loop().time()
        fetching = [asyncio.ensure_future(self._one(job, graph, str(key), wanted[key])) for key in wanted]
        try:
            await asyncio.gather(*fetching)
        except BaseException:
            for each in fetching:
                each.cancel()
            await asyncio.gather(*fetching, return_exceptions=True)
            self.release(job.job_id)
            raise
        took = asyncio.get_running_loop().time() - began
        self.typical_s = min(TYPICAL_MAX_S, self.typical_s * 0.7 + took * 0.3)

    async def _one(self, job: Claimed, graph: dict[str, Any], place: str, source: Any) -> None:
        node, _, name = place.partition(".")
        inputs = graph.get(node, {}).get("inputs")
        if not name or not isinstance(inputs, dict) or not isinstance(source, Mapping):
            raise InputUnavailable(place, "it is not node_id.input_name of this workflow", retry=False)
        at = asyncio.get_running_loop().time()
        kind = await in_thread(self._kind_of, str(graph[node].get("class_type")), name)
        async with self._room:
            held = await self._get(_Wish(job, place, source, kind, at))
        self._held.setdefault(job.job_id, []).append(held)
        inputs[name] = held.name

    async def _get(self, wish: _Wish) -> Held:
        """A file, checked; what stands in the way becomes the reason of a failure."""
        try:
            try:
                held = await self._from_somewhere(wish)
            except OSError as error:
                if error.errno != errno.ENOSPC or not await in_thread(self._cache.make_room):
                    raise
                held = await self._from_somewhere(wish)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message = f"there is no space left on the worker's disk ({error.strerror})"
                raise InputUnavailable(wish.place, message, code="worker_disk_full") from error
            raise wish.unavailable(str(error) or type(error).__name__, retry=True) from error
        except (UrlRefused, Gone) as error:
            raise wish.unavailable(str(error)) from error
        except TRANSIENT as error:
            raise wish.unavailable(str(error) or type(error).__name__, retry=True) from error
        try:
            await self._check(wish, held)
        except BaseException:
            held.close()
            raise
        return held

    async def _check(self, wish: _Wish, held: Held) -> None:
        """Compare with what was promised: hash, size, and the kind of file that the node takes."""
        wanted = str(wish.source.get("hash") or "").removeprefix("blake3:").lower()
        if wanted and wanted != held.digest:
            raise wish.unavailable(f"the content has another hash: blake3:{held.digest}")
        if wish.source.get("size") not in (None, held.size):
            raise wish.unavailable(f"the file has {held.size} bytes and not {wish.source['size']}")
        known = (held.digest, wish.kind)
        if known not in self._sound:
            try:
                await in_thread(media.check, held.path, wish.kind)
            except media.Unsound as error:
                raise wish.unavailable(str(error)) from error
            _remember(self._sound, known, None)

    async def _from_somewhere(self, wish: _Wish) -> Held:
        source = wish.source
        if "base64" in source:
            return await self._from_text(wish)
        if "asset" in source:
            digest = str(source["asset"]).removeprefix("blake3:").lower()
            return await self._from_broker(wish, f"/api/assets/{quote(digest, safe='')}", digest)
        if "output" in source:
            return await self._from_broker(wish, _output_path(wish), None)
        if "url" in source:
            return await self._from_web(wish, str(source["url"]))
        raise wish.unavailable("it names neither url, asset, base64 nor output")

    # -- where files come from ----------------------------------------------------------------------------------------

    async def _from_text(self, wish: _Wish) -> Held:
        try:
            text = str(wish.source["base64"])
            content = base64.b64decode(text.partition("base64,")[2] or text, validate=True)
        except (binascii.Error, ValueError):
            raise wish.unavailable("it is not base64") from None

        def store() -> Held:
            part = self._cache.part()
            try:
                part.write(content)
                return self._cache.keep(part, media.ending_of(wish.label, content[:16]))
            except BaseException:
                part.discard()
                raise

        return await in_thread(store)

    async def _from_broker(self, wish: _Wish, path: str, digest: str | None) -> Held:
        """From a broker, which says whether this job's tenant has such a file, also of one that is here already."""
        ticket = wish.job.uploads.authorization if wish.job.uploads else lease_ticket(wish.job)
        if self._own is None:
            self._own = open_session(None)
        session, turn = self._own, 0

        @asynccontextmanager
        async def ask(headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
            nonlocal turn
            brokers = self._brokers(wish.job.pool)
            if not brokers:
                raise QueueAway("no broker has told its address")
            url = f"{brokers[turn % len(brokers)].rstrip('/')}{path}"
            turn += 1
            async with _followed(session, url, {**headers, "Authorization": ticket}) as response:
                yield response

        async with self._alone(path):
            if digest is not None:
                held = await in_thread(self._cache.find, digest, media.ending_of(wish.label, b""))
                headers = {"If-None-Match": f'"{digest}"'} if held else {}
                answer = await self._fetch(Asked(ask, headers, held, wish.label, trusted=True))
            else:
                answer = await self._fetch(Asked(ask, {}, None, wish.label, trusted=True))
        if digest is not None and answer.held.digest != digest:
            answer.held.close()
            raise wish.unavailable(f"the broker's file has another hash: blake3:{answer.held.digest}")
        return answer.held

    async def _from_web(self, wish: _Wish, text: str) -> Held:
        name = wish.job.input_urls or self.policy
        if name not in self._web:
            self._web[name] = (rule := UrlRule(name)), open_session(rule, self._resolver)
        rule, session = self._web[name]
        url = rule.check(text)

        @asynccontextmanager
        async def ask(headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
            async with session.get(url, headers=headers, allow_redirects=False) as response:
                yield response

        label, key = wish.label or url.name, f"{name} {url}"
        async with self._alone(key):
            seen = self._seen.get(key)
            held = await in_thread(self._cache.find, seen.digest, media.ending_of(label, b"")) if seen else None
            if held is not None and seen is not None and seen.at >= wish.at:
                return held  # it has just come, for another input that asked for it first
            answer = await self._fetch(Asked(ask, seen.validators if seen and held else {}, held, label))
            at = asyncio.get_running_loop().time()
            _remember(self._seen, key, _Seen(answer.held.digest, answer.validators, at))
        return answer.held

    async def _fetch(self, asked: Asked) -> Answer:
        """Download, unless the server says that what is here is still right; if it is not, that is let go of."""
        answer = None
        try:
            answer = await download(self._cache, asked)
        finally:
            if asked.known is not None and (answer is None or answer.held is not asked.known):
                asked.known.close()
        self.fetched_bytes += answer.received
        return answer

    @asynccontextmanager
    async def _alone(self, key: str) -> AsyncIterator[None]:
        """Let one at a time fetch the same thing."""
        lock, users = self._busy.setdefault(key, (asyncio.Lock(), []))
        users.append(None)
        try:
            async with lock:
                yield
        finally:
            users.pop()
            if not users:
                del self._busy[key]


@asynccontextmanager
async def _followed(
    session: aiohttp.ClientSession, url: str, headers: dict[str, str]
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask a broker, which may send us on to its store; the lease is for the broker alone."""
    async with contextlib.AsyncExitStack() as stack:
        response = await stack.enter_async_context(session.get(url, headers=headers, allow_redirects=False))
        target = response.headers.get("Location")
        if response.status in (302, 303, 307, 308) and target:
            rest = {name: value for name, value in headers.items() if name != "Authorization"}
            onward = response.url.join(URL(target, encoded=True))
            response = await stack.enter_async_context(session.get(onward, headers=rest, allow_redirects=False))
        yield response


def _remember(memory: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED:
        memory.popitem(last=False)


def _output_path(wish: _Wish) -> str:
    """Where the broker has another job's output, by the node that made it."""
    output = wish.source["output"]
    if not isinstance(output, Mapping) or not output.get("job_id") or not output.get("node_id"):
        raise wish.unavailable("an output is named by job_id, node_id and index")
    job, node = (quote(str(output[name]), safe="") for name in ("job_id", "node_id"))
    return f"/api/jobs/{job}/outputs/by-node/{node}/{int(output.get('index') or 0)}"
