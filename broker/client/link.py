"""One WebSocket to the broker: requests, their answers, and the events of jobs; made again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
from pydantic import ValidationError

from broker.client.errors import BrokerUnreachable, refusal
from broker.client.events import EVENTS, parse_event, parse_preview
from broker.client.feed import Feed, Listener
from broker.errors import Conflict, EmqError, Forbidden, Unauthorized, Unavailable

Message = dict[str, Any]
HEARTBEAT_S = 20.0
HANDSHAKE_S = 10.0
"""A connection that is not answered by then is tried anew: at another broker, perhaps."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
AGAIN_S = 1.0
"""When to repeat what was answered `unavailable`."""
REFUSALS: dict[int, type[EmqError]] = {401: Unauthorized, 403: Forbidden}


@dataclass(eq=False)
class _Request:
    message: Message
    answer: asyncio.Future[Message]
    on_answer: Callable[[Message], None] | None


class Link:
    """Requests wait for their answers through reconnects: they are sent again, so they must bear it.

    Every message of the protocol but ``force_retry_job`` does, and ``submit_job`` with an idempotency key.
    """

    def __init__(self, http: aiohttp.ClientSession, url: str, patience_s: float) -> None:
        self._http = http
        self._url = url
        self._patience_s = patience_s
        self._numbers = itertools.count(1)
        self._requests: dict[str, _Request] = {}
        self._feeds: dict[str, Feed] = {}
        self._out: asyncio.Queue[str] | None = None
        self._task: asyncio.Task[None] | None = None

    async def ask(self, message: Message, on_answer: Callable[[Message], None] | None = None) -> Message:
        """The direct reply. ``on_answer`` sees it before the event that follows it on the socket.

        Raises the broker's refusal, and ``BrokerUnreachable`` when none answered within the client's patience.
        """
        number = f"c{next(self._numbers)}"
        request = _Request({**message, "message_id": number}, asyncio.get_running_loop().create_future(), on_answer)
        self._requests[number] = request
        try:
            self._start()
            self._send(request.message)
            async with asyncio.timeout(self._patience_s):
                return await request.answer
        except TimeoutError:
            raise self._silent() from None
        finally:
            del self._requests[number]

    async def listen(self, job_id: str, after: str | None, previews: bool) -> Listener:
        """Hear a job's events, from the first or after ``after``. Raises what :meth:`ask` raises, ``NotFound`` too.

        All listeners of a job share one subscription; with others here already, ``after`` is refused as ``Conflict``.
        """
        feed = self._feeds.get(job_id)
        if feed is not None and after is not None:
            raise Conflict("This client follows the job already; listen without `after`, or let the others end.")
        fresh = feed is None
        feed = feed or Feed(job_id, after, previews)
        listener = Listener(lambda one: self._part(feed, one), previews)
        feed.join(listener)
        self._feeds[job_id] = feed
        try:
            if previews and not feed.previews and not feed.ended:
                # What was sent before this answer has come then, so the new subscription repeats nothing.
                await self.ask({"type": "unsubscribe_job", "job_id": job_id})
                feed.previews = fresh = True
            if fresh:
                await self._subscribe(feed)
        except BaseException:
            listener.close()
            raise
        return listener

    async def _subscribe(self, feed: Feed) -> None:
        """Ask for the events, now or with the next socket, and wait until it stands."""
        self._start()
        feed.standing = asyncio.get_running_loop().create_future()
        self._send(self._subscription(feed))
        try:
            async with asyncio.timeout(self._patience_s):
                await feed.standing
        except TimeoutError:
            raise self._silent() from None

    def follow(self, job_id: str) -> None:
        """The broker has subscribed this socket to a job already (the answer to its submit says so)."""
        self._feeds.setdefault(job_id, Feed(job_id))

    async def close(self) -> None:
        """End the socket; who listens or waits is told."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._give_up(BrokerUnreachable("The client was closed."))

    def _part(self, feed: Feed, listener: Listener) -> None:
        feed.listeners.discard(listener)
        if feed.listeners or self._feeds.get(feed.job_id) is not feed:
            return
        del self._feeds[feed.job_id]
        self._send({"type": "unsubscribe_job", "job_id": feed.job_id})

    def _silent(self) -> BrokerUnreachable:
        return BrokerUnreachable(f"No broker answered at {self._url} in {self._patience_s:g} s.")

    # -- the socket ---------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="emq-client")

    def _send(self, message: Message) -> None:
        """Send in order, if there is a socket; the next one begins with what is open."""
        if self._out is not None:
            self._out.put_nowait(json.dumps(message))

    async def _run(self) -> None:
        pause = FIRST_PAUSE_S
        while True:
            began = asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    ws = await self._http.ws_connect(self._url, heartbeat=HEARTBEAT_S, max_msg_size=0)
                async with ws:
                    await self._serve(ws)
            except aiohttp.WSServerHandshakeError as error:
                if error.status in REFUSALS or error.status == 404:
                    self._give_up(_refused(self._url, error.status))
                    return
            except (aiohttp.InvalidURL, ValueError) as error:
                self._give_up(BrokerUnreachable(f"{self._url} is not the URL of a broker: {error}"))
                return
            except (aiohttp.ClientError, OSError):
                pass
            if asyncio.get_running_loop().time() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311
            pause = min(2 * pause, LONGEST_PAUSE_S)

    async def _serve(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._out = out = asyncio.Queue[str]()
        for feed in self._feeds.values():
            if not feed.ended:
                self._send(self._subscription(feed))
        for request in self._requests.values():
            self._send(request.message)
        writer = asyncio.create_task(_write(ws, out), name="emq-client-writer")
        try:
            async for frame in ws:
                self._take(frame)
        finally:
            self._out = None
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def _take(self, frame: aiohttp.WSMessage) -> None:
        if frame.type is aiohttp.WSMsgType.TEXT:
            self._hear(json.loads(frame.data))
        elif frame.type is aiohttp.WSMsgType.BINARY:
            preview = parse_preview(frame.data)
            if preview is not None and preview.job_id in self._feeds:
                self._feeds[preview.job_id].take_preview(preview)

    def _subscription(self, feed: Feed) -> Message:
        number = f"s{next(self._numbers)}"
        feed.asked = number
        return {
            "type": "subscribe_job", "job_id": feed.job_id, "after": feed.last, "previews": feed.previews,
            "message_id": number,
        }  # fmt: skip

    def _hear(self, message: Message) -> None:
        if message.get("type") in EVENTS:
            self._hear_event(message)
        elif (request := self._requests.get(str(message.get("message_id")))) is not None:
            self._hear_answer(request, message)
        elif (feed := self._feeds.get(str(message.get("job_id")))) is not None:
            self._hear_of_feed(feed, message)
        elif message.get("type") == "error":
            for feed in self._feeds.values():
                if feed.asked == message.get("message_id"):
                    self._hear_of_feed(feed, message)
                    break

    def _hear_answer(self, request: _Request, message: Message) -> None:
        if request.answer.done():
            return
        if message["type"] != "error":
            if request.on_answer is not None:
                request.on_answer(message)
            request.answer.set_result(message)
        elif message["code"] == Unavailable.code:
            asyncio.get_running_loop().call_later(AGAIN_S, self._ask_again, request)
        else:
            request.answer.set_exception(refusal(message))

    def _hear_of_feed(self, feed: Feed, message: Message) -> None:
        """A subscription stands, was refused, or has ended by an error."""
        if message["type"] == "subscription_confirmed" and message.get("message_id") == feed.asked:
            feed.stands()
        elif message["type"] == "error" and message["code"] == Unavailable.code:
            asyncio.get_running_loop().call_later(AGAIN_S, self._follow_again, feed)
        elif message["type"] == "error":
            feed.fail(refusal(message))
            self._feeds.pop(feed.job_id, None)

    def _ask_again(self, request: _Request) -> None:
        if not request.answer.done():
            self._send(request.message)

    def _follow_again(self, feed: Feed) -> None:
        if self._feeds.get(feed.job_id) is feed and not feed.ended:
            self._send(self._subscription(feed))

    def _hear_event(self, message: Message) -> None:
        feed = self._feeds.get(message["job_id"])
        if feed is None:
            return
        try:
            feed.take(parse_event(message))
            if feed.ended and not feed.listeners:
                del self._feeds[feed.job_id]
        except ValidationError:
            feed.fail(BrokerUnreachable(f"The broker at {self._url} sends events that this client cannot read."))

    def _give_up(self, error: EmqError) -> None:
        for request in self._requests.values():
            if not request.answer.done():
                request.answer.set_exception(error)
        for feed in self._feeds.values():
            feed.fail(error)
        self._feeds.clear()


async def _write(ws: aiohttp.ClientWebSocketResponse, out: asyncio.Queue[str]) -> None:
    with contextlib.suppress(ConnectionError):  # the reading side ends too
        while True:
            await ws.send_str(await out.get())


def _refused(url: str, status: int) -> EmqError:
    kind = REFUSALS.get(status, BrokerUnreachable)
    return kind(f"{url} refuses the connection ({status}): {'is the key right?' if status != 404 else 'is this EMQ?'}")
