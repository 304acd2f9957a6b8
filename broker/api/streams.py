"""A job's events as messages for clients: ids, time and fresh file URLs are added at delivery."""

from __future__ import annotations

import json
import struct
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from broker.api.errors import dumps
from broker.api.tally import Tally
from broker.errors import BadMessage, NotFound
from broker.jobs.records import Deliver, public_job, public_result
from broker.protocol.base import now_ms
from broker.queue.events import Event, EventHub, Preview, Reset

_UNTOLD = dict.fromkeys(("node", "nodes_done", "nodes_total", "eta_s", "message"))
"""What a worker may leave out of its progress."""
SHARED_MS = 100
"""A message that was made so long ago is made anew: its time and its files' addresses are of the delivery."""
PREVIEW_PX = (64, 1024)
"""How small and how large previews may be wished for."""
_SHOWN = ("image/jpeg", "image/png", "image/webp", "text/plain", "audio/flac", "audio/mpeg", "audio/ogg", "audio/wav")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to deliver: a message as JSON, or a preview's bytes."""

    text: str = ""
    type: str = ""
    event_id: str | None = None
    preview: bytes | None = None
    latest_only: bool = False
    """Progress that a newer one may replace."""


@dataclass(frozen=True, slots=True)
class _Made:
    """The message that was made last."""

    event: Event
    tenant: str
    at: int
    item: Item

    def serves(self, event: Event, tenant: str, now: int) -> bool:
        """Whether it is what this tenant is to get of this event."""
        return self.event is event and self.tenant == tenant and 0 <= now - self.at < SHARED_MS


@dataclass(frozen=True, slots=True)
class Picture:
    """A preview: a picture, a text (UTF-8) or a sound."""

    image: bytes
    content_type: str
    node_id: str | None = None


def picture_of(frame: bytes) -> Picture | None:
    """The picture in a frame of ComfyUI's format 4: event type, length of the metadata, metadata, picture."""
    try:
        (length,) = struct.unpack_from(">I", frame, 4)
        meta = json.loads(frame[8 : 8 + length])
        kind, node = meta.get("image_type"), meta.get("node_id")
    except (struct.error, ValueError, AttributeError):
        return None
    return Picture(frame[8 + length :], kind, None if node is None else str(node)) if kind in _SHOWN else None


def wished_px(text: str | None) -> int:
    """How large previews a request wishes for (``?px=``); 0: as they come. Raises ``BadMessage``."""
    if text is None:
        return 0
    least, most = PREVIEW_PX
    if not (text.isascii() and text.isdecimal() and len(text) < 6 and least <= int(text) <= most):
        raise BadMessage(f"px is a number of pixels from {least} to {most}.")
    return int(text)


class Streams:
    """Event streams of jobs for any carrier."""

    def __init__(self, hub: EventHub, deliver: Deliver, tally: Tally) -> None:
        self.hub = hub
        self._deliver = deliver
        self._tally = tally
        self._latest: _Made | None = None

    async def check(self, job_id: str, tenant: str) -> None:
        """See that ``tenant`` (empty: any) may follow the job. Raises ``NotFound``, ``Unavailable``.

        Thousands of clients that come back at once ask for it, so this reads less than the record.
        """
        if tenant not in ("", (await self.hub.read_log(job_id)).tenant):
            raise NotFound(f"There is no job {job_id}.", what=f"job {job_id}")

    async def follow(
        self,
        job_id: str,
        tenant: str,
        after: str | None = None,
        *,
        previews: bool = False,
        px: int = 0,
        until_end: bool = False,
    ) -> AsyncGenerator[Item, None]:
        """Every event of a job after ``after``. The caller has checked that ``tenant`` may see the job.

        Raises ``NotFound`` when the job's record is gone, ``Unavailable`` when the stream cannot begin.
        """
        async with self.hub.subscribe(job_id, after, previews, px=px, until_end=until_end) as subscription:
            async for item in subscription:
                if isinstance(item, Preview):
                    self._tally.previews.inc()
                    yield Item(preview=item.data)
                elif isinstance(item, Reset):
                    yield self._reset(job_id, item)
                else:
                    self._tally.events.labels(item.type).inc()
                    yield self._shared(job_id, tenant, item)

    async def picture(self, job_id: str, px: int = 0) -> Picture | None:
        """The newest preview's picture, waiting a moment for one when nobody here watches yet."""
        frame = await self.hub.preview(job_id, px=px)
        return picture_of(frame) if frame else None

    def _shared(self, job_id: str, tenant: str, event: Event) -> Item:
        """The event as a message. Its listeners come one behind the other, so it is made once for all of them."""
        latest, now = self._latest, now_ms()
        if latest is not None and latest.serves(event, tenant, now):
            return latest.item
        item = self._event(job_id, tenant, event, now)
        self._latest = _Made(event, tenant, now, item)
        return item

    def _event(self, job_id: str, tenant: str, event: Event, now: int) -> Item:
        data = event.data
        if event.type == "complete_job":
            data = {
                **data,
                "result": public_result(self.hub.result(job_id, data.get("result")), tenant, job_id, self._deliver),
            }
        elif event.type == "update_job_progress":
            data = _UNTOLD | data
        message = {
            **data,
            "type": event.type,
            "job_id": job_id,
            "event_id": event.event_id,
            "timestamp": now,
        }
        progress = event.type == "update_job_progress" and event.p > 0
        return Item(dumps(message), event.type, event.event_id, latest_only=progress)

    def _reset(self, job_id: str, reset: Reset) -> Item:
        reset.record.pairs.setdefault("job_id", job_id.encode())
        message = {
            "type": "reset",
            "job_id": job_id,
            "event_id": reset.event_id,
            "record": public_job(reset.record, self._deliver),
            "timestamp": now_ms(),
        }
        return Item(dumps(message), "reset", reset.event_id)
