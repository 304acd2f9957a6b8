"""What is done to jobs: one, those that are ticked, or all of a search."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

from broker.access.identity import Role, current
from broker.api.services import services
from broker.dashboard.forms import Form, done, field, read_form
from broker.dashboard.frame import add_action
from broker.dashboard.jobs import MOST, VERBS, find, up_to
from broker.dashboard.words import count
from broker.errors import BadMessage, Conflict, EmqError, NotFound
from broker.jobs.operations import Operations
from broker.jobs.search import read as read_search
from broker.protocol.base import now_ms

AT_ONCE = 16
REASON = "from the dashboard"
LEAST, HIGHEST = -100, 100

Do = Callable[[Operations, str, str, Form], Awaitable[str]]


def add_to(app: web.Application) -> None:
    """Register the actions."""
    for verb in (*_DO, "duplicate"):
        add_action(app, f"/ui/jobs/{{job_id}}/{verb}", one, Role.OPERATOR)
    add_action(app, "/ui/jobs/selected", selected, Role.OPERATOR)
    add_action(app, "/ui/jobs/search", searched, Role.OPERATOR)


async def _cancel(ops: Operations, job_id: str, tenant: str, _: Form) -> str:
    status = (await ops.cancel(job_id, tenant, REASON)).status
    return "is cancelled" if status == "cancelled" else "is told to stop"


async def _retry(ops: Operations, job_id: str, tenant: str, _: Form) -> str:
    await ops.retry(job_id, tenant)
    return "waits again"


async def _elsewhere(ops: Operations, job_id: str, tenant: str, _: Form) -> str:
    await ops.retry(job_id, tenant, elsewhere=True)
    return "waits again, for another worker if there is one"


async def _front(ops: Operations, job_id: str, tenant: str, _: Form) -> str:
    await ops.set_priority(job_id, tenant, None, True)
    return "is first of its priority"


async def _priority(ops: Operations, job_id: str, tenant: str, form: Form) -> str:
    """To ``priority``, or up or down ``by``."""
    text = field(form, "priority") or field(form, "by")
    if not text.removeprefix("-").isdecimal() or len(text) > 4:
        raise BadMessage("priority: a whole number from -100 to 100.")
    wanted = int(text)
    if not field(form, "priority"):
        wanted += (await ops.queue.job(job_id, tenant)).number("priority")
    wanted = max(LEAST, min(HIGHEST, wanted))
    await ops.set_priority(job_id, tenant, wanted, False)
    return f"has priority {wanted}"


async def _raise(ops: Operations, job_id: str, tenant: str, _: Form) -> str:
    return await _priority(ops, job_id, tenant, {"by": ["1"]})


async def _lower(ops: Operations, job_id: str, tenant: str, _: Form) -> str:
    return await _priority(ops, job_id, tenant, {"by": ["-1"]})


_DO: dict[str, Do] = {
    "cancel": _cancel, "retry": _retry, "elsewhere": _elsewhere, "front": _front, "priority": _priority,
    "raise": _raise, "lower": _lower,
}  # fmt: skip


async def one(request: web.Request) -> web.StreamResponse:
    """One job."""
    form, job_id, verb = await read_form(request), request.match_info["job_id"], request.path.rpartition("/")[2]
    ops, sees = services(request).operations, current(request).sees
    if verb == "duplicate":
        return await _duplicate(request, ops, job_id, form)
    said = await _DO[verb](ops, job_id, sees, form)
    return done(request, form, f"Job {job_id[:12]} {said}.")


async def _duplicate(request: web.Request, ops: Operations, job_id: str, form: Form) -> web.StreamResponse:
    """Submit what the job was submitted with once more, as its tenant's."""
    who = current(request)
    record = await ops.record(job_id, who.sees)
    message = {
        "type": "submit_job", "job_type": record["job_type"], "priority": record["priority"],
        "payload": await ops.submitted(job_id, who.sees), "max_attempts": record["max_attempts"],
    }  # fmt: skip
    for name in ("requirements", "metadata", "timeout_s", "group"):
        if record[name] is not None:
            message[name] = record[name]
    accepted = await ops.submitter.submit(record["tenant"] or who.tenant, message, key_id=who.key_id)
    return done(request, form, f"This is a copy of job {job_id[:12]}.", to=f"/jobs/{accepted.job_id}")


async def selected(request: web.Request) -> web.StreamResponse:
    """The jobs that are ticked."""
    form = await read_form(request)
    jobs = form.get("job_id", [])
    if not jobs:
        raise BadMessage("Tick the jobs that it is about first.")
    verb = field(form, "do")
    return done(request, form, await act(services(request).operations, current(request).sees, verb, jobs))


async def searched(request: web.Request) -> web.StreamResponse:
    """All jobs of a search that were submitted until the page with their count was shown."""
    form = await read_form(request)
    search, until = read_search(field(form, "q"), now_ms()), field(form, "until")
    if search.problem or not until.isdecimal() or len(until) > 16:
        raise BadMessage(search.problem or "until: the time at which the jobs were counted.")
    ops, sees = services(request).operations, current(request).sees
    search.wanted = up_to(search, int(until))
    jobs: list[str] = []
    cursor = None
    while len(jobs) < MOST:
        page = await find(ops, search, sees, cursor, 1000)
        jobs += [job["job_id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        if not cursor:
            break
    return done(request, form, await act(ops, sees, field(form, "do"), jobs[:MOST]))


async def act(ops: Operations, tenant: str, verb: str, jobs: Sequence[str]) -> str:
    """Do one thing to many jobs; says how many it was done to and what became of the others."""
    if verb not in _DO or verb == "priority":
        raise BadMessage(f"do: one of {', '.join(VERBS)}.")
    seats, ends = asyncio.Semaphore(AT_ONCE), Counter[str]()

    async def do(job_id: str) -> None:
        async with seats:
            try:
                await _DO[verb](ops, job_id, tenant, {})
                ends["done"] += 1
            except Conflict:
                ends["in another state"] += 1
            except NotFound:
                ends["gone"] += 1
            except EmqError as error:
                ends[error.message] += 1

    async with asyncio.TaskGroup() as group:
        for job_id in jobs:
            group.create_task(do(job_id))
    word = VERBS.get(verb, "To the front")
    rest = [f"{count(n)} {why}" for why, n in ends.items() if why != "done"]
    return f"{word}: {count(ends['done'])} of {count(len(jobs))} jobs" + (f"; {', '.join(rest)}" if rest else "") + "."
