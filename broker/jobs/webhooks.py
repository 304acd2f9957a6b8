"""Webhooks: what happened to a job, told to the URL that it was submitted with, as Standard Webhooks 1.0.

The queue writes what is to be told in the call in which it happens; brokers take it from there, each entry for a
limited time, so that none is lost with a broker. The same event keeps its ``webhook-id`` through all tries, which is
how a receiver knows one that came twice.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol
from weakref import WeakValueDictionary

import httpx

from broker.errors import EmqError, NotFound, Unavailable
from broker.jobs.records import Deliver, loads, public_job
from broker.outbound import Outbound, UrlRefused
from broker.queue.queue import Answer, Queue

log = logging.getLogger(__name__)

PAUSES_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Before each further try; after the last one the delivery is given up. The schedule that Standard Webhooks names."""
LEASE_MS = 60_000
AT_ONCE, PER_HOST = 32, 4
"""Deliveries under way at a time: in all, and to one host, so that a slow one does not hold up the others."""
IDLE_S = 30.0
GONE = 410


class Secrets(Protocol):
    """The tenants' signing secrets."""

    async def signing(self, tenant: str) -> list[bytes]:
        """The secrets to sign with, the newest first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to tell: ``name`` is ``<job> <event> <attempt>.<round>``; ``tries`` counts this one too."""

    name: str
    tries: int

    @property
    def job_id(self) -> str:
        """The job it is about."""
        return self.name.split(" ", 1)[0]

    @property
    def event(self) -> str:
        """What happened to it."""
        return self.name.split(" ")[1]

    @property
    def message_id(self) -> str:
        """The ``webhook-id``: the same for each try."""
        return f"msg_{hashlib.sha256(self.name.encode()).hexdigest()[:32]}"


def sign(secrets: list[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The ``webhook-signature``: one ``v1,<base64>`` a secret, so that one can be replaced while both count."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    digests = (hmac.digest(secret, signed, hashlib.sha256) for secret in secrets)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


class Webhooks:
    """The replica's deliveries. :meth:`wake` when some are due; it also looks by itself now and then."""

    def __init__(self, queue: Queue, secrets: Secrets, outbound: Outbound, deliver: Deliver) -> None:
        self._queue, self._secrets, self._outbound, self._deliver = queue, secrets, outbound, deliver
        self._due = asyncio.Event()
        self._free = asyncio.Semaphore(AT_ONCE)
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Seats of a host, for as long as somebody uses or waits for one."""
        self._running: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run(), name="webhooks")

    async def stop(self) -> None:
        """End; what is under way is due again after its time, here or elsewhere."""
        tasks = [*self._running, *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """Deliveries are due."""
        self._due.set()

    async def _run(self) -> None:
        while True:
            self._due.clear()
            try:
                await self._take()
            except Unavailable:
                log.debug("webhooks wait for Redis")
            except EmqError:
                log.exception("webhooks: taking failed")
            try:
                async with asyncio.timeout(IDLE_S):
                    await self._due.wait()
            except TimeoutError:
                pass

    async def _take(self) -> None:
        while True:
            await self._free.acquire()  # at least one can be worked on
            self._free.release()
            answer = await self._queue.call("outbox", [("limit", PER_HOST), ("lease_ms", LEASE_MS)])
            entries = [line.rsplit(" ", 1) for line in answer.lines("entries")]
            for name, tries in entries:
                task = asyncio.create_task(self._work(Entry(name, int(tries))), name="webhook")
                self._running.add(task)
                task.add_done_callback(self._running.discard)
            if not entries:
                return

    async def _work(self, entry: Entry) -> None:
        async with self._free:
            try:
                record, url = await self._target(entry)
                async with self._hosts.setdefault(httpx.URL(url).host, asyncio.Semaphore(PER_HOST)):
                    await self._tell(entry, record, url)
            except NotFound:
                await self._settle(entry, None, "the job's record is gone", 0, again=False)
            except Unavailable:
                log.debug("a webhook delivery waits for Redis")
            except Exception:
                log.exception("a webhook delivery failed")

    async def _target(self, entry: Entry) -> tuple[Answer, str]:
        record = await self._queue.job(entry.job_id)
        url = loads(record.text("spec"), {}).get("webhook_url")
        if not isinstance(url, str):
            raise NotFound("The job has no webhook.")
        return record, url

    async def _tell(self, entry: Entry, record: Answer, url: str) -> None:
        body = self._body(entry, record)
        timestamp = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "EMQ",
            "webhook-id": entry.message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(
                await self._secrets.signing(record.text("tenant")), entry.message_id, timestamp, body
            ),
        }
        try:
            posted = await self._outbound.post(url, body, headers)
        except UrlRefused as error:
            await self._settle(entry, None, error.message, 0, again=False)
        except (httpx.TransportError, TimeoutError) as error:
            await self._settle(entry, None, str(error) or type(error).__name__, 0, again=True)
        else:
            good = 200 <= posted.status < 300
            reason = "" if good else f"answered {posted.status}"
            await self._settle(entry, posted.status, reason, posted.ms, again=not good and posted.status != GONE)

    def _body(self, entry: Entry, record: Answer) -> bytes:
        data = public_job(record, self._deliver)
        moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        message = {"type": f"job.{entry.event}", "timestamp": moment, "data": data}
        return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()

    async def _settle(self, entry: Entry, status: int | None, reason: str, ms: int, *, again: bool) -> None:
        """Log the try, and say when the next one is."""
        pause = PAUSES_S[entry.tries - 1] if again and entry.tries <= len(PAUSES_S) else None
        line = {
            "entry": entry.name, "event": entry.event, "webhook_id": entry.message_id, "at": time.time_ns() // 10**6,
            "try": entry.tries, "status": status, "ms": ms, "error": reason[:500] or None,
            "again_s": pause,
        }  # fmt: skip
        spread = None if pause is None else round(pause * 1000 * random.uniform(1, 1.1))  # noqa: S311
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        await self._queue.call("delivered", [("entry", entry.name), ("log", text), ("again_ms", spread)])
