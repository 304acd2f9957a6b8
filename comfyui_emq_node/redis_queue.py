"""The queue reached directly in Redis: every call is one of the queue's functions.

redis-py is imported by the class, not by the module: ComfyUI's start is not to wait for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

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
    told,
)
from .redis_client import close_client, forget_nodes, open_client, open_wire, server_of, words
from .redis_wire import Wire
from .resp import ReplyError, pack

log = logging.getLogger("emq")

HINT_S = 5
COMMAND_S = 5.0
RAISED = {"superseded": Superseded, "unknown": Unregistered, "stale_lease": StaleLease}
Pairs = dict[str, Any]
Call = tuple[str, Pairs]


class Answer:
    """A function's answer: its outcome word, its pairs, and the answer of a fused claim."""

    def __init__(self, raw: Sequence[Any]) -> None:
        self.outcome = raw[0].decode()
        self._pairs: dict[bytes, Any] = dict(zip(raw[1::2], raw[2::2], strict=False))
        following = self._pairs.pop(b"next", None)
        self.next = Answer(following) if following else None

    def raw(self, name: str) -> bytes:
        """A pair as it is; an absent one is empty."""
        value = self._pairs.get(name.encode(), b"")
        return value if isinstance(value, bytes) else b""

    def text(self, name: str) -> str:
        """A pair as text."""
        return self.raw(name).decode()

    def number(self, name: str, default: float) -> float:
        """A pair as a number."""
        value = self.raw(name)
        return float(value) if value else default

    def flag(self, name: str) -> bool:
        """A pair as a boolean."""
        return self.raw(name) not in (b"", b"0")

    def lines(self, name: str) -> tuple[str, ...]:
        """A pair as a list."""
        text = self.text(name)
        return tuple(text.split("\n")) if text else ()


class RedisQueue:
    """A pool's queue in Redis (a server, a sentinels' service or a cluster).

    ``url`` is asked for at every new start of a connection, because a Valkey of this machine may come back elsewhere.
    """

    keeps_unstarted = True

    def __init__(self, url: Callable[[], str | None], pool: str, worker: str, instance: str) -> None:
        self.pool = pool
        self._url, self._used, self._ask_again = url, "", True
        self._prefix = f"emq:{{{pool}}}:"
        self._who = {"worker": worker, "instance": instance}
        self._inbox = f"{self._prefix}in:{instance}"
        self._commands: Any = None
        self._blocking: Any = None
        self._wire: Wire | None = None
        self._opening = asyncio.Lock()

    # -- the worker -----------------------------------------------------------------------------------------------

    async def register(self, registration: Registration) -> Terms:
        """Say hello, the first time and after :class:`Unregistered`."""
        answer = await self._call(
            "register",
            **self._who,
            previous=self._who["instance"],
            machine=registration.machine,
            profile=_json(registration.profile),
            ranges=registration.ranges,
            info=_json(registration.info),
            slots=1,
            via="redis",
            status=registration.status,
        )
        return Terms(
            lease_s=answer.number("lease_ms", 30_000) / 1000,
            stall_s=answer.number("stall_ms", 600_000) / 1000,
            max_finishing=int(answer.number("max_finishing", 4)),
            input_urls=answer.text("input_urls") or "public",
            brokers=answer.lines("brokers"),
        )

    async def heartbeat(
        self, status: str, jobs: Iterable[Claimed], loaded: Sequence[str], gpus: Sequence[Mapping[str, Any]]
    ) -> Beat:
        """Keep the lease, naming every job still held."""
        answer = await self._call(
            "heartbeat",
            **self._who,
            status=status,
            jobs="\n".join(f"{job.job_id} {job.lease}" for job in jobs),
            loaded="\n".join(loaded),
            gpus=_json(list(gpus)),
        )
        words = (line.split(" ", 2) for line in answer.lines("jobs"))
        return Beat(
            jobs={word[0]: (word[1], word[2] if len(word) > 2 else "") for word in words},
            work=answer.flag("work"),
            paused=answer.flag("paused"),
            drain=answer.flag("drain"),
            watched=frozenset(answer.lines("watch")),
            lease_s=answer.number("lease_ms", 0) / 1000 or None,
            brokers=answer.lines("brokers"),
        )

    async def hints(self) -> list[str]:
        """Wait a few seconds for a hint."""
        self._connect()
        answer = await self._guarded(self._blocking.blpop([self._inbox], timeout=HINT_S))
        return [answer[1].decode()] if answer else []

    async def guard(self, lease_s: float) -> Pairs:
        """Where the lease lies."""
        return {
            **self._who,
            "server": server_of(self._commands, self._prefix),
            "prefix": self._prefix,
            "lease_s": lease_s,
        }

    async def bye(self) -> None:
        """Leave; whatever is still held goes back."""
        await self._call("bye", **self._who)

    async def steer(self, word: str) -> None:
        """Pause, resume or drain this worker, as its own machine may."""
        worker = self._who["worker"]
        if word != "drain":
            await self._call("pause", scope="worker", id=worker, on=word == "pause")
        if word != "pause":
            await self._call("drain", worker=worker, on=word == "drain")

    # -- jobs ---------------------------------------------------------------------------------------------------------

    async def claim(self, claim: Claim, reports: Sequence[Report] = ()) -> Claimed | None:
        """Take the best job for this worker, after ``reports``."""
        calls = [_report(report) for report in reports]
        calls.append(("claim", {**self._who, "token": claim.token, **_wishes(claim)}))
        while True:
            answer = (await self._calls(calls))[-1]
            if answer.outcome != "again":
                return _claimed(self.pool, answer)

    async def report(self, report: Report) -> Reported:
        """Report progress; a job's first report starts it."""
        answer = await self._call(*_report(report))
        return Reported(answer.text("cancel") or None, answer.flag("watch"), _px(answer))

    async def preview(self, job: Claimed, frame: int, data: bytes) -> bool:
        """Send one preview frame; says whether somebody still watches."""
        answer = await self._call("preview", **_about(job), frame=frame, data=data)
        return answer.flag("watch")

    async def executed(
        self, job: Claimed, timings: Mapping[str, int], cold: bool, reports: Sequence[Report], claim: Claim | None
    ) -> Claimed | None:
        """The device is free, files are still going out."""
        more = {"timings": _json(timings), "exec_ms": timings.get("execution_ms", 0), "cold": cold}
        return await self._end("executed", job, more, reports, claim)

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
        """Complete the job."""
        timings = result.get("timings") or {}
        more = {"result": _json(result), "exec_ms": timings.get("execution_ms", 0), "cold": cold, **_spans(steps)}
        return await self._end("finish", job, more, reports, claim, patience_s=patience_s)

    async def fail(
        self, job: Claimed, failure: Failure, claim: Claim | None, *, steps: Sequence[Step] = ()
    ) -> Claimed | None:
        """End the job without a result."""
        more = {
            "code": failure.code,
            "error": _json(failure.as_error()),
            "hand_back": failure.hand_back,
            "missing": "\n".join(failure.missing),
            "retry": "auto" if failure.retry else "no",
            **_spans(steps),
        }
        return await self._end("fail", job, more, (), claim)

    async def release(self, job: Claimed, reason: str) -> None:
        """Give back a job that was not started."""
        await self._call("release", **_about(job), reason=reason)

    async def _end(
        self,
        function: str,
        job: Claimed,
        more: Pairs,
        reports: Sequence[Report],
        claim: Claim | None,
        *,
        patience_s: float = 0.0,
    ) -> Claimed | None:
        """End (a part of) a job; the reports go in the same trip, before it."""
        wishes = {**self._who, "claim": 1, "claim_token": claim.token, **_wishes(claim)} if claim else {}
        calls: list[Call] = [_report(report) for report in reports]
        calls.append((function, {**_about(job), **more, **wishes}))
        answer = (await self._calls(calls, patience_s))[-1]
        return _claimed(self.pool, answer.next) if answer.next else None

    # -- calling --------------------------------------------------------------------------------------------------

    async def _call(self, function: str, /, *given: Pairs, **pairs: Any) -> Answer:
        return (await self._calls([(function, {**(given[0] if given else {}), **pairs})]))[0]

    async def _calls(self, calls: Sequence[Call], patience_s: float = 0.0) -> list[Answer]:
        """Run functions in one trip, one after the other; with ``patience_s`` in that of another call."""
        packed = [self._packed(function, pairs) for function, pairs in calls]
        raw = await self._ask(packed, patience_s)
        for answer in raw:
            if isinstance(answer, ReplyError):
                await self._start_anew()
                raise _meaning(answer)
        parsed = [Answer(answer) for answer in raw]
        if error := RAISED.get(parsed[-1].outcome):
            raise error(calls[-1][0])
        if parsed[-1].outcome == "invalid":
            raise Refused(f"{calls[-1][0]}: {parsed[-1].text('argument')}")
        return parsed

    def _packed(self, function: str, pairs: Pairs) -> bytes:
        flat: list[bytes | str | int] = ["FCALL", f"emq_{function}", 1, self._prefix]
        for name, value in pairs.items():
            flat += (name, int(value) if isinstance(value, bool) else value)
        return pack(flat)

    async def _ask(self, commands: Sequence[bytes], patience_s: float = 0.0) -> list[Any]:
        """Send commands. On a connection that was idle they are sent again over a new one: repeating is safe."""
        wire = self._wire
        if wire is not None and not wire.is_closed:
            try:
                return await wire.ask(commands, patience_s)
            except ConnectionError as error:
                log.debug("the connection to Redis has ended: %s", error)
        try:
            return await (await self._opened()).ask(commands)
        except OSError as error:
            await self._start_anew()
            raise _meaning(error) from None

    async def _opened(self) -> Wire:
        """The connection, opened where there is none."""
        async with self._opening:
            if self._wire is None or self._wire.is_closed:
                await self._drop_wire()
                self._connect()
                self._wire = await self._guarded(open_wire(self._commands, self._prefix))
            return self._wire

    async def _drop_wire(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    async def _start_anew(self) -> None:
        """Find the server again for the next call: it has moved, has no functions, or does not answer."""
        self._ask_again = True
        await self._drop_wire()
        await forget_nodes(self._commands)

    def _connect(self) -> None:
        """Build the clients, for the first time or where the server may have moved."""
        if not self._ask_again:
            return
        url = self._url()
        if not url:
            raise QueueAway("no broker has its data in this machine's default folder; start one, or set EMQ_REDIS_URL")
        if url != self._used:
            self._commands, self._blocking = open_client(url, COMMAND_S, 2), open_client(url, HINT_S + 5, 0)
            self._used = url
        self._ask_again = False

    async def _guarded(self, command: Any) -> Any:
        try:
            return await _translated(command)
        except QueueAway:
            self._ask_again = True
            raise

    async def close(self) -> None:
        """Close connections; never raises."""
        await self._drop_wire()
        for client in (self._commands, self._blocking):
            if client is not None:
                await close_client(client)


async def _translated(command: Any) -> Any:
    """Await a command; redis-py's errors become ours."""
    from redis.exceptions import RedisError

    try:
        return await command
    except (RedisError, OSError) as error:
        raise _meaning(error) from None


def _meaning(error: Exception) -> QueueAway:
    """What an error of redis-py means for the worker: always that it has to wait."""
    text = words(error)
    if "Function not found" in text:
        return QueueAway("Redis has no EMQ functions yet: start a broker on it")
    if "WRONGPASS" in text or "NOAUTH" in text or "NOPERM" in text:
        return QueueAway(f"Redis refuses the login: {text}")
    return QueueAway(text)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")


def _about(job: Claimed) -> Pairs:
    return {"job": job.job_id, "token": job.lease}


def _report(report: Report) -> Call:
    return "report", {**_about(report.job), "p": report.number, "data": _json(report.data), "store": report.store}


def _spans(steps: Sequence[Step]) -> Pairs:
    return {"spans": _json(told(steps))} if steps else {}


def _px(answer: Answer) -> int | None:
    """How large previews are wished for; None: as usual."""
    return int(answer.number("watch", 0)) if answer.number("watch", 0) > 1 else None


def _wishes(claim: Claim) -> Pairs:
    return {"loaded": "\n".join(claim.loaded), "ahead": claim.ahead}


def _claimed(pool: str, answer: Answer) -> Claimed | None:
    if answer.outcome in RAISED:
        raise RAISED[answer.outcome]("claim")
    if answer.outcome != "job":
        return None
    return Claimed(
        pool=pool,
        job_id=answer.text("job_id"),
        attempt=int(answer.number("attempt", 1)),
        lease=answer.text("lease"),
        payload=answer.raw("payload"),
        job_type=answer.text("job_type") or "comfyui",
        priority=int(answer.number("priority", 0)),
        timeout_s=answer.number("timeout_s", 0) or None,
        watched=answer.flag("watch"),
        rules=answer.text("rules"),
        traced=bool(answer.text("trace")),
        input_urls=answer.text("input_urls"),
        preview_px=_px(answer),
        queued_ms=int(answer.number("queued_ms", -1)) if answer.text("queued_ms") else None,
    )
