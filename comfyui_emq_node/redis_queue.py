"""The queue reached directly in Redis: every call is one of the queue's functions.

redis-py is imported by the class, not by the module: ComfyUI's start is not to wait for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .answer import RAISED, Answer, claimed_of, preview_px
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
    Step,
    Terms,
    told,
)
from .redis_client import close_client, forget_nodes, open_client, open_wire, server_of, words
from .redis_wire import Wire
from .resp import ReplyError, pack, parse
from .standing import Standing

log = logging.getLogger("emq")

HINT_S = 5
LATE_S = HINT_S + 1.0
"""Who waits for hints this long has stood still."""
GIVEN = b"job\n"
"""How a hint begins that answers a claim: the answer follows, as Redis itself would have sent it."""
COMMAND_S = 5.0
Pairs = dict[str, Any]
Call = tuple[str, Pairs]


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
        self._ear: Wire | None = None
        """Where hints are waited for."""
        self._ear_at = ""
        self._standing = Standing()
        self._heard = False
        """Whether hints were read all the time of late."""
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

    async def hints(self) -> list[str | Claimed]:
        """Wait a few seconds for a hint. One that was left while this process stood still may be old news."""
        asked, prompt = time.monotonic(), self._heard
        self._heard = False
        answer = await self._pop()
        self._heard = time.monotonic() - asked < LATE_S
        if not answer:
            return []
        if not answer[1].startswith(GIVEN):
            return [answer[1].decode()]
        if not (prompt and self._heard):
            return ["work"]  # the claim, made again, tells whether the job is still ours
        claimed = self._standing.once(claimed_of(self.pool, Answer(parse(answer[1], len(GIVEN))[0]), given=True))
        return [claimed] if claimed is not None else []

    async def _pop(self) -> list[bytes] | None:
        """The newest hint of the inbox, with the inbox' name; None when none comes."""
        self._connect()
        if self._ear is not None and self._ear_at != self._used:
            await self._ear.close()
        if self._ear is None or self._ear.is_closed:
            self._ear_at = self._used
            self._ear = await self._guarded(open_wire(self._blocking, self._prefix, HINT_S + 5.0))
        answer: Any = (await self._guarded(self._ear.ask([pack(["BLPOP", self._inbox, HINT_S])])))[0]
        if isinstance(answer, ReplyError):
            self._ask_again = True
            await self._ear.close()
            await forget_nodes(self._blocking)
            raise _meaning(answer)
        return answer  # type: ignore[no-any-return]

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
        token = self._token(claim)
        calls = [_report(report) for report in reports]
        calls.append(("claim", {**self._who, "token": token, **_wishes(claim)}))
        while True:
            answer = (await self._calls(calls))[-1]
            if answer.outcome != "again":
                return self._answered(claim, token, answer)

    def _token(self, claim: Claim) -> str:
        return self._standing.token(claim.token) if claim.standing else claim.token

    def _answered(self, claim: Claim, token: str, answer: Answer) -> Claimed | None:
        """What a claim got."""
        if claim.standing:
            self._standing.answered(token, answer.flag("standing"))
        return self._standing.once(claimed_of(self.pool, answer))

    async def report(self, report: Report) -> Reported:
        """Report progress; a job's first report starts it."""
        answer = await self._call(*_report(report))
        return Reported(answer.text("cancel") or None, answer.flag("watch"), preview_px(answer))

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
        token = self._token(claim) if claim else ""
        wishes = {**self._who, "claim": 1, "claim_token": token, **_wishes(claim)} if claim else {}
        calls: list[Call] = [_report(report) for report in reports]
        calls.append((function, {**_about(job), **more, **wishes}))
        answer = (await self._calls(calls, patience_s))[-1]
        return self._answered(claim, token, answer.next) if claim and answer.next else None

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
        if self._ear is not None:
            await self._ear.close()
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


def _wishes(claim: Claim) -> Pairs:
    return {"loaded": "\n".join(claim.loaded), "ahead": claim.ahead, "standing": claim.standing}
