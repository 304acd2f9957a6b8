"""The queue reached through a broker's gateway, for a worker that must not reach Redis: one socket, a message a call.

A broken socket makes every call fail with ``QueueAway``; the next heartbeat asks to register, and that connects again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import aiohttp

from .queue import (
    Beat,
    Claim,
    Claimed,
    Failure,
    QueueAway,
    Refused,
    Registration,
    Report,
    Reported,
    StaleLease,
    Step,
    Superseded,
    Terms,
    Unregistered,
    Uploads,
    told,
)

log = logging.getLogger("emq")

Socket = Any
"""aiohttp's client socket; its type has a parameter in some of the versions that ComfyUI runs with, not in others."""

ANSWER_S = 15.0
HINT_S = 5.0
MAX_MESSAGE = 64 << 20
Message = dict[str, Any]


class GatewayQueue:
    """The pool of one broker, as one worker sees it over ``/ws/worker``."""

    pool = "gateway"
    keeps_unstarted = False

    def __init__(self, url: str, api_key: str | None, worker: str) -> None:
        self._url = f"{url}/ws/worker"
        self._broker = url
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._worker = worker
        self._instance: str | None = None
        self._session: aiohttp.ClientSession | None = None
        self._socket: Socket = None
        self._reader: asyncio.Task[None] | None = None
        self._ids = itertools.count(1)
        self._open: dict[str, asyncio.Future[Message]] = {}
        self._told: asyncio.Queue[str] = asyncio.Queue(1000)
        self._superseded = False

    # -- the worker -----------------------------------------------------------------------------------------------

    async def register(self, registration: Registration) -> Terms:
        """Connect if need be, and say hello."""
        if self._superseded:
            raise Superseded("register")
        if self._socket is None or self._socket.closed:
            await self._connect()
        answer = await self._ask(
            "register_worker",
            worker_id=self._worker,
            machine_id=registration.machine,
            status=registration.status,
            **self._from_before(registration),
            capabilities={
                **registration.info,
                **registration.profile,
                "slots": 1,
                "ranges": json.loads(zlib.decompress(registration.ranges)) if registration.ranges else None,
            },
        )
        self._instance = str(answer.get("instance") or self._instance)
        return Terms(
            lease_s=float(answer.get("lease_s") or 30.0),
            stall_s=float(answer.get("stall_s") or 600.0),
            max_finishing=int(answer.get("max_finishing") or 4),
            input_urls=str(answer.get("input_urls") or "public"),
            brokers=tuple(answer.get("brokers") or (self._broker,)),
        )

    def _from_before(self, registration: Registration) -> Message:
        """On a new connection: who this process was, and what it still has from then."""
        if self._instance is None:
            return {}
        return {"instance": self._instance, "jobs": [_about(job) for job in registration.jobs]}

    async def heartbeat(
        self, status: str, jobs: Iterable[Claimed], loaded: Sequence[str], gpus: Sequence[Mapping[str, Any]]
    ) -> Beat:
        """Name every job still held."""
        if self._socket is None or self._socket.closed:
            raise Unregistered("heartbeat")
        answer = await self._ask(
            "worker_heartbeat",
            worker_id=self._worker,
            status=status,
            jobs=[{"job_id": job.job_id, "lease": job.lease} for job in jobs],
            loaded_models=list(loaded),
            gpus=list(gpus),
        )
        return Beat(
            jobs=_words(answer.get("jobs")),
            work=bool(answer.get("work")),
            paused=bool(answer.get("pause") or answer.get("paused")),
            drain=bool(answer.get("drain")),
            watched=frozenset(answer["watch"]) if isinstance(answer.get("watch"), list) else None,
            brokers=tuple(answer.get("brokers") or (self._broker,)),
        )

    async def hints(self) -> list[str | Claimed]:
        """Wait a few seconds for something the broker says unasked."""
        try:
            return [await asyncio.wait_for(self._told.get(), HINT_S)]
        except asyncio.TimeoutError:
            return []

    async def steer(self, word: str) -> None:
        """Pause, resume or drain this worker, as its own machine may."""
        await self._ask("steer_worker", worker_id=self._worker, word=word)

    async def guard(self, lease_s: float) -> Message:
        """The open socket keeps the lease; only that this process has died is told from outside of it."""
        url = f"{self._broker}/api/workers/{quote(self._worker, safe='')}/gone"
        return {"url": url, "headers": self._headers, "instance": self._instance}

    async def bye(self) -> None:
        """Leave: a closed socket makes the worker offline; what it holds goes back after a grace of one lease."""
        await self.close()

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def claim(self, claim: Claim, reports: Sequence[Report] = ()) -> Claimed | None:
        """Take the best job for this worker, after ``reports``."""
        for report in reports:
            await self.report(report)
        wishes = {"claim_token": claim.token, "loaded_models": list(claim.loaded), "ahead": claim.ahead}
        try:
            return self._claimed(await self._ask("claim_job", worker_id=self._worker, **wishes))
        except Refused:  # nothing there, or taken by another
            return None

    async def report(self, report: Report) -> Reported:
        """Report progress; a job's first report starts it. There is no answer: what is wrong comes as a hint."""
        await self._send("update_job_progress", f"progress-{next(self._ids)}", {**_about(report.job), **report.data})
        return Reported()

    async def preview(self, job: Claimed, frame: int, data: bytes) -> bool | None:
        """Send one preview frame, in ComfyUI's own form; its metadata names the job."""
        try:
            await self._connected().send_bytes(data)
        except (ConnectionError, aiohttp.ClientError) as error:
            raise QueueAway(str(error)) from None
        return None

    async def executed(
        self, job: Claimed, timings: Mapping[str, int], cold: bool, reports: Sequence[Report], claim: Claim | None
    ) -> Claimed | None:
        """The device is free, files are still going out."""
        return await self._end("job_executed", job, {"timings": dict(timings), "cold": cold}, reports, claim)

    async def finish(
        self,
        job: Claimed,
        result: Mapping[str, Any],
        cold: bool,
        reports: Sequence[Report],
        claim: Claim | None,
        *,
        steps: Sequence[Step] = (),
        patience_s: float = 0.0,
    ) -> Claimed | None:
        """Complete the job, without patience: to send it with another message would spare nothing."""
        more = {"result": dict(result), "cold": cold, **_trace(steps)}
        return await self._end("complete_job", job, more, reports, claim)

    async def fail(
        self, job: Claimed, failure: Failure, claim: Claim | None, *, steps: Sequence[Step] = ()
    ) -> Claimed | None:
        """End the job without a result."""
        more: Message = {"error": failure.as_error(), "hand_back": failure.hand_back, "missing": list(failure.missing)}
        more |= _trace(steps)
        if not failure.retry:
            more["retry"] = "no"
        return await self._end("fail_job", job, more, (), claim)

    async def release(self, job: Claimed, reason: str) -> None:
        """Give back a job that was not started."""
        await self._ask("release_job", **_about(job), reason=reason)

    async def _end(
        self, kind: str, job: Claimed, more: Message, reports: Sequence[Report], claim: Claim | None
    ) -> Claimed | None:
        for report in reports:
            await self.report(report)
        if claim is None:
            await self._ask(kind, **_about(job), **more)
            return None
        wishes = {"claim": True, "claim_token": claim.token, "loaded_models": list(claim.loaded), "ahead": claim.ahead}
        await self._ask(kind, **_about(job), **more, **wishes)
        return await self.claim(claim)  # the same token gives the same job, whether or not its message has come

    # -- the socket -----------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        await self._disconnect()
        self._session = aiohttp.ClientSession()
        try:
            socket = await asyncio.wait_for(self._open_socket(self._session), ANSWER_S)
        except aiohttp.WSServerHandshakeError as error:
            await self._disconnect()
            if error.status in (401, 403):
                raise QueueAway(f"{self._broker} refuses this worker ({error.status}): set EMQ_API_KEY") from None
            raise QueueAway(f"{self._broker} answers {error.status}") from None
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
            await self._disconnect()
            raise QueueAway(f"{self._broker}: {error or 'no answer'}") from None
        self._socket = socket
        self._reader = asyncio.create_task(self._read(socket))

    async def _open_socket(self, session: aiohttp.ClientSession) -> Socket:
        return await session.ws_connect(
            self._url, headers=self._headers, max_msg_size=MAX_MESSAGE, compress=0, heartbeat=20
        )

    async def _read(self, socket: Socket) -> None:
        """Hand each message to whoever asked, or to the hints."""
        try:
            async for frame in socket:
                if frame.type is aiohttp.WSMsgType.TEXT:
                    self._take(json.loads(frame.data))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            log.debug("the gateway's socket broke: %s", error)
        finally:
            self._fail_all()

    def _take(self, message: Message) -> None:
        future = self._open.pop(str(message.get("message_id")), None)
        if future is not None:
            if not future.done():
                future.set_result(message)
        elif (hint := self._hint(message)) and not self._told.full():
            self._told.put_nowait(hint)

    def _hint(self, message: Message) -> str | None:
        kind = message.get("type")
        if kind == "superseded" or message.get("code") == "superseded":
            self._superseded = True
            return "superseded"
        if kind == "error" and isinstance(_error(message), StaleLease):
            return f"lost {message.get('job_id')}"
        if kind == "cancel_job":
            return f"cancel {message.get('job_id')} {message.get('reason') or ''}".strip()
        if kind == "watch_job":
            return f"watch {message.get('job_id')} {message.get('px') or ''}".strip()
        return {"job_available": "work", "pause": "pause", "resume": "work", "drain": "drain"}.get(str(kind))

    def _connected(self) -> Socket:
        if self._superseded:
            raise Superseded("gateway")
        if self._socket is None or self._socket.closed:
            raise QueueAway(f"{self._broker} is not connected")
        return self._socket

    async def _ask(self, kind: str, **fields: Any) -> Message:
        """Send a message and wait for its answer."""
        message_id = str(next(self._ids))
        future = self._open[message_id] = asyncio.get_running_loop().create_future()
        try:
            await self._send(kind, message_id, fields)
            answer: Message = await asyncio.wait_for(future, ANSWER_S)
        except asyncio.TimeoutError:
            raise QueueAway(f"{self._broker} does not answer") from None
        finally:
            self._open.pop(message_id, None)
        if answer["type"] == "error":
            raise _error(answer)
        return answer

    async def _send(self, kind: str, message_id: str, fields: Message) -> None:
        text = json.dumps({"type": kind, "message_id": message_id, **fields}, ensure_ascii=False)
        try:
            await self._connected().send_str(text.encode("utf-8", "replace").decode())
        except (aiohttp.ClientError, OSError) as error:
            raise QueueAway(f"{self._broker}: {error}") from None

    def _fail_all(self) -> None:
        for future in self._open.values():
            if not future.done():
                future.set_exception(QueueAway(f"{self._broker} closed the connection"))
        self._open.clear()

    async def _disconnect(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
        if self._socket is not None:
            await self._socket.close()
        if self._session is not None:
            await self._session.close()
        self._reader = self._socket = self._session = None

    async def close(self) -> None:
        """Close the connection; never raises."""
        try:
            await asyncio.wait_for(self._disconnect(), 2)
        except Exception as error:
            log.debug("closing the gateway's socket: %s", error)

    def _claimed(self, message: Message) -> Claimed | None:
        if message.get("type") != "job_assigned":
            return None
        uploads = message.get("uploads")
        return Claimed(
            pool=self.pool,
            job_id=str(message["job_id"]),
            attempt=int(message["attempt"]),
            lease=str(message["lease"]),
            payload=json.dumps(message["payload"]).encode(),
            job_type=str(message.get("job_type") or "comfyui"),
            priority=int(message.get("priority") or 0),
            timeout_s=float(message["timeout_s"]) if message.get("timeout_s") else None,
            watched=bool(message.get("watch")),
            input_urls=str(message.get("input_urls") or ""),
            preview_px=message.get("preview_px"),
            queued_ms=message.get("queued_ms"),
            rules=str(message.get("rules") or ""),
            traced=bool(message.get("traceparent")),
            uploads=self._uploads(uploads) if isinstance(uploads, dict) else None,
        )

    def _uploads(self, uploads: Message) -> Uploads:
        """Where files go; a prefix without a host is the broker that we are connected to."""
        prefix = str(uploads["url_prefix"])
        if prefix.startswith("/"):
            prefix = self._broker + prefix
        return Uploads(prefix.rstrip("/") + "/", str(uploads["authorization"]), uploads.get("max_bytes"))


def _trace(steps: Sequence[Step]) -> Message:
    return {"trace": told(steps)} if steps else {}


def _error(answer: Message) -> Exception:
    code, text = str(answer.get("code")), str(answer.get("error"))
    details = answer.get("details")
    reason = str(details.get("reason") or "") if isinstance(details, dict) else ""
    if reason == "superseded" or code == "superseded":
        return Superseded(text)
    if reason in ("not_registered", "unknown_worker"):
        return Unregistered(text)
    if code == "conflict" and reason == "stale_lease":
        return StaleLease(text)
    if code in ("unavailable", "rate_limited"):
        return QueueAway(text)
    return Refused(f"{code}: {text}")


def _about(job: Claimed) -> Message:
    return {"job_id": job.job_id, "lease": job.lease}


def _words(jobs: Any) -> dict[str, tuple[str, str]]:
    """The heartbeat's word on each job."""
    return {str(each["job_id"]): (str(each["state"]), str(each.get("reason") or "")) for each in jobs or ()}
