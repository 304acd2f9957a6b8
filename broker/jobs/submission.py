"""A submit's way: sizes, fields, graph, requirements, then one atomic call of the queue.

The checks run in that order: whatever else is wrong with it, a payload over the limit is answered as that.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pydantic import ValidationError

from broker.access.policies import Policies
from broker.access.side_keys import SideKeys, split
from broker.errors import BadMessage, Conflict, EmqError, InvalidWorkflow, NotFound, PayloadTooLarge
from broker.jobs import labels, strict
from broker.jobs.estimates import Forecasts, Prediction
from broker.jobs.fleet import Fleet, FleetView
from broker.jobs.payloads import (
    body_digest,
    checked_inputs,
    decode_payload,
    digest,
    encode_payload,
    message_errors,
    spec_of,
    told,
    with_parents,
)  # fmt: skip
from broker.jobs.ranges import Problem, node_errors
from broker.jobs.references import lift
from broker.jobs.requirements import Requirement, complete
from broker.jobs.templates import Bound, Loaded, Templates
from broker.jobs.traces import Submits, Tracer
from broker.jobs.ui_format import convert
from broker.jobs.waiting import explain, from_atoms, values
from broker.jobs.workflow import Graph, check, normalise
from broker.outbound import UrlRule
from broker.protocol.base import JobStatus, now_ms
from broker.protocol.messages import JobAccepted, Requirements, SubmitJob
from broker.protocol.records import WaitingFor
from broker.queue.new_job import NewJob
from broker.queue.queue import Answer, Queue, require
from broker.queue.seal import TAG
from broker.settings import Settings

_REMEMBERED_CLASSES = 4096


@dataclass(slots=True)
class Draft:
    """A submit that passed every check."""

    submit: SubmitJob
    job: NewJob
    began: int
    need: Requirement
    problems: list[Problem]
    partner_keys: dict[str, str] = field(default_factory=dict, repr=False)
    bound: Bound | None = None
    expected: Prediction | None = None


def new_job_id() -> str:
    """128 random bits: an id cannot be guessed."""
    return secrets.token_hex(16)


class Submitter:
    """Takes submits for one pool."""

    def __init__(
        self,
        queue: Queue,
        fleet: Fleet,
        settings: Settings,
        policies: Policies | None = None,
        side: SideKeys | None = None,
        *,
        templates: Templates | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        """``side`` takes partner keys; without it they are refused."""
        self._tracer = tracer
        self._side = side
        self._policies = policies or Policies(settings)
        self._queue = queue
        self._fleet = fleet
        self._templates = templates
        self._max_payload = settings.max_payload_kb * 1024
        self._max_metadata = settings.max_metadata_kb * 1024
        self._timeout_s = settings.timeout_s or None
        self._classes: OrderedDict[str, Requirement] = OrderedDict()
        self._webhooks = UrlRule(settings.webhook_urls, settings.webhook_ports)
        self.forecasts = Forecasts(queue)

    async def submit(
        self, tenant: str, message: dict[str, Any], job_id: str | None = None, *, key_id: str = ""
    ) -> JobAccepted:
        """Submit one job; it is durable when this returns. ``job_id`` may be drawn by the caller.

        Raises every error of protocol's submit_job, ``Unavailable`` when nothing was accepted.
        """
        named = await self._named(tenant, [message])
        view = await self._view_for([message])
        draft = self._draft(tenant, message, view, job_id, named)
        if draft.submit.dry_run:
            return await self._rehearse(tenant, draft, view)
        if draft.submit.strict:
            self._refuse_waiting(draft, view)
        await self._predict(tenant, draft)
        sent_at = time.monotonic()
        [answer] = await self._send(tenant, [draft], key_id)
        return await self._accepted(draft, answer, sent_at)

    async def submit_many(
        self,
        tenant: str,
        messages: Sequence[dict[str, Any]],
        group: str | None,
        job_ids: Sequence[str] | None = None,
        *,
        key_id: str = "",
    ) -> list[JobAccepted | EmqError]:
        """Submit up to 1,000 jobs in one atomic call; one outcome a job, in order."""
        view = await self._view_for(messages)
        templates = await self._named(tenant, messages)
        outcomes: list[JobAccepted | EmqError | None] = [None] * len(messages)
        drafts: dict[int, Draft] = {}
        for i, message in enumerate(messages):
            try:
                named = message if group is None or message.get("group") is not None else {**message, "group": group}
                draft = self._draft(tenant, named, view, job_ids[i] if job_ids else None, templates)
                if draft.submit.dry_run:
                    outcomes[i] = await self._rehearse(tenant, draft, view)
                    continue
                if draft.submit.strict:
                    self._refuse_waiting(draft, view)
                await self._predict(tenant, draft)
                drafts[i] = draft
            except EmqError as exc:
                outcomes[i] = exc
        if drafts:
            sent_at = time.monotonic()
            answers = await self._send(tenant, list(drafts.values()), key_id)
            for (i, draft), answer in zip(drafts.items(), answers, strict=True):
                outcomes[i] = await self._outcome(draft, answer, sent_at)
        return [outcome for outcome in outcomes if outcome is not None]

    def known(self, class_id: str) -> Requirement | None:
        """The requirement of a class, if one of its jobs came by here."""
        return self._classes.get(class_id)

    async def requirement_of(self, class_id: str, job_type: str, payload: Answer, given: dict[str, Any]) -> Requirement:
        """The requirement of a waiting job, worked out again from its ``payload`` and the ``given`` requirements."""
        stored = decode_payload(payload.pairs.get("payload", b"{}"))
        graph = stored.get("workflow") if isinstance(stored, dict) else None
        wanted = Requirements.model_validate(given).model_dump()
        need = complete(job_type, wanted, graph, await self._fleet.view())
        self._remember(class_id, need)
        return need

    def check_size(self, message: dict[str, Any]) -> None:
        """Raises ``PayloadTooLarge`` for a payload over ``EMQ_MAX_PAYLOAD_KB``."""
        size = strict.size(message.get("payload"))
        if size > self._max_payload:
            raise PayloadTooLarge(
                f"The payload has {size} bytes; at most {self._max_payload} are accepted. "
                "Send input files as assets or URLs.",
                size=size,
                limit=self._max_payload,
            )

    async def _send(self, tenant: str, drafts: Sequence[Draft], key_id: str) -> list[Answer]:
        """Hand jobs to the queue, their partner keys beside them before a worker can claim them."""
        guarded = [draft for draft in drafts if draft.partner_keys and self._side]
        for draft in guarded:
            assert self._side is not None
            await self._side.put(draft.job.job_id, draft.partner_keys)
        limits = self._policies.at_submit(tenant, key_id)
        given = [(draft.job, draft.submit.traceparent, draft.began) for draft in drafts]
        with Submits(self._tracer, tenant, given) as traced:
            answers = traced.answered(await self._queue.submit(tenant, [draft.job for draft in drafts], limits))
        for draft, answer in zip(drafts, answers, strict=True):
            if draft.partner_keys and self._side and answer.outcome != "ok":
                await self._side.drop(draft.job.job_id)
        return answers

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _named(self, tenant: str, messages: Sequence[dict[str, Any]]) -> Mapping[str, Loaded | EmqError]:
        return await self._templates.named(tenant, messages) if self._templates else {}

    def _draft(
        self,
        tenant: str,
        message: dict[str, Any],
        view: FleetView,
        job_id: str | None,
        named: Mapping[str, Loaded | EmqError],
    ) -> Draft:
        began = time.time_ns()
        self.check_size(message)
        try:
            submit = SubmitJob.model_validate(message)
        except ValidationError as exc:
            raise message_errors(exc) from None
        self._check_metadata(submit.metadata)
        if submit.webhook_url is not None:
            self._webhooks.check(submit.webhook_url)
        submit, partner_keys = self._without_keys(submit)
        bound = self._bound(submit, named)
        payload, graph = self._payload(submit, bound.payload if bound else submit.payload, view)
        if graph is not None:
            self._policies.rules(tenant).check(graph)
        submit = with_parents(submit, payload)
        need = complete(submit.job_type, submit.requirements.model_dump(), graph, view)
        self._remember(need.class_id, need)
        problems = view.values.problems(graph, payload.get("inputs") or ()) if graph else []
        spec = spec_of(submit, problems, bound, secret=self._queue.seal.active)
        job = self._new_job(submit, payload, need, job_id or new_job_id(), spec)
        return Draft(submit, job, began, need, problems, partner_keys, bound)

    def _without_keys(self, submit: SubmitJob) -> tuple[SubmitJob, dict[str, str]]:
        """A submit without its partner keys, and they; what is secret asks for workers behind the gateway."""
        payload, keys = split(submit.payload)
        if keys:
            if self._side is None:
                raise BadMessage("Partner keys are not taken here.")
            self._side.check()
        changes: dict[str, Any] = {"payload": payload}
        if keys or self._queue.seal.active:
            tags = dict.fromkeys([*submit.requirements.tags, TAG])
            changes["requirements"] = submit.requirements.model_copy(update={"tags": list(tags)})
        return submit.model_copy(update=changes), keys

    def _check_metadata(self, metadata: Any) -> None:
        size = strict.size(metadata)
        if size > self._max_metadata:
            raise PayloadTooLarge(
                f"metadata has {size} bytes; at most {self._max_metadata} are accepted.",
                size=size,
                limit=self._max_metadata,
            )

    def _bound(self, submit: SubmitJob, named: Mapping[str, Loaded | EmqError]) -> Bound | None:
        """The payload made from the template that it names; a bare graph may have a node of the id ``template``."""
        reference = submit.payload.get("template")
        if reference is None or isinstance(reference, dict):
            return None
        template = named.get(reference) if isinstance(reference, str) else None
        if self._templates is None or template is None:
            raise NotFound(f"There is no workflow template {str(reference)[:128]!r}.")
        if isinstance(template, EmqError):
            raise template
        return self._templates.bind(submit.payload, template)

    def _payload(
        self, submit: SubmitJob, given: dict[str, Any], view: FleetView
    ) -> tuple[dict[str, Any], Graph | None]:
        comfyui = submit.job_type == "comfyui"
        payload = normalise(given, graph_required=comfyui, convert=partial(convert, known=view.values.versions))
        if not comfyui and "workflow" not in payload:
            return payload, None
        graph, inputs = lift(check(payload["workflow"]), payload.get("inputs"))
        if inputs is not None:
            payload = {**payload, "workflow": graph, "inputs": checked_inputs(inputs, graph)}
        return payload, graph

    def _new_job(
        self, submit: SubmitJob, payload: dict[str, Any], need: Requirement, job_id: str, spec: bytes
    ) -> NewJob:
        keyed = submit.idempotency_key is not None
        return NewJob(
            job_id=job_id,
            payload=encode_payload(payload),
            spec=spec,
            job_class=need.class_id,
            atoms=need.atoms,
            kind=need.kind,
            vram_mb=need.vram_mb,
            job_type=submit.job_type,
            priority=submit.priority,
            max_attempts=submit.max_attempts,
            timeout_s=submit.timeout_s or self._timeout_s,
            delay_ms=round(submit.delay_s * 1000) or None,
            start_at=submit.start_at,
            expires_ms=None if submit.expires_s is None else max(1, round(submit.expires_s * 1000)),
            idempotency_key=digest(submit.idempotency_key.encode()) if submit.idempotency_key else None,
            body_digest=body_digest(submit) if keyed else None,
            depends_on=submit.depends_on,
            on_parent_failure=submit.on_parent_failure,
            group=submit.group,
            labels=labels.of(submit.metadata),
            hook=" ".join(submit.webhook_events) or None if submit.webhook_url else None,
        )

    def _remember(self, class_id: str, need: Requirement) -> None:
        self._classes[class_id] = need
        self._classes.move_to_end(class_id)
        if len(self._classes) > _REMEMBERED_CLASSES:
            self._classes.popitem(last=False)

    async def _predict(self, tenant: str, draft: Draft, *, count: bool = True) -> None:
        """Say when the job will start, as far as that can be known: nobody knows when a parent ends."""
        job = draft.job
        if job.depends_on:
            return
        expected = await self.forecasts.at_submit(tenant, job.job_class, job.priority, count=count)
        if expected is not None:
            delay = max(job.delay_ms or 0, (job.start_at or 0) - now_ms())
            draft.expected = expected.after(delay) if delay > 0 else expected
            job.estimate = draft.expected.stored()

    async def _view_for(self, messages: Sequence[dict[str, Any]]) -> FleetView:
        """The fleet: as it is now where the answer is all that a submit changes, else as it was lately."""
        now = any(message.get("strict") or message.get("dry_run") for message in messages)
        return await self._fleet.view(since=time.monotonic()) if now else await self._fleet.view()

    def _refuse_waiting(self, draft: Draft, view: FleetView) -> None:
        reasons = explain(draft.need, view) + values(draft.problems)
        if reasons:
            raise InvalidWorkflow(
                f"No live worker could run this: {reasons[0].message}",
                node_errors=node_errors(draft.problems),
                reason="strict",
                waiting_for=[reason.model_dump() for reason in reasons],
            )

    async def _rehearse(self, tenant: str, draft: Draft, view: FleetView) -> JobAccepted:
        """Answer as a submit would, submitting nothing."""
        for parent in draft.job.depends_on:
            await self._queue.job(parent, tenant)
        reasons = explain(draft.need, view) + values(draft.problems)
        if draft.submit.strict:
            self._refuse_waiting(draft, view)
        status = JobStatus.PENDING
        if draft.job.depends_on:
            status = JobStatus.BLOCKED
        elif draft.job.delay_ms or (draft.job.start_at or 0) > now_ms():
            status = JobStatus.SCHEDULED
        await self._predict(tenant, draft, count=False)
        return JobAccepted(
            message_id=draft.submit.message_id,
            status=status,
            estimated_start=draft.expected.public(now_ms()) if draft.expected else None,
            waiting_for=reasons,
            requirements=draft.need.public(),
            dry_run=True,
            **told(draft.bound),
        )

    async def _outcome(self, draft: Draft, answer: Answer, sent_at: float) -> JobAccepted | EmqError:
        try:
            return await self._accepted(draft, answer, sent_at)
        except EmqError as exc:
            return exc

    async def _accepted(self, draft: Draft, answer: Answer, sent_at: float) -> JobAccepted:
        _require_submitted(answer)
        duplicate = answer.outcome == "duplicate"
        position = answer.number("position") or None
        expected = None if duplicate or answer.lines("missing") else draft.expected
        return JobAccepted(
            message_id=draft.submit.message_id,
            job_id=answer.text("job_id"),
            status=JobStatus(answer.text("status", "pending")),
            position=position,
            position_exact=answer.flag("exact") if position else None,
            estimated_start=expected.public(answer.number("created_at", now_ms())) if expected else None,
            notified_workers=answer.number("notified"),
            duplicate=duplicate,
            waiting_for=[] if duplicate else await self._waiting(draft, answer.lines("missing"), sent_at),
            requirements=None if duplicate else draft.need.public(),
            **told(None if duplicate else draft.bound),
        )

    async def _waiting(self, draft: Draft, missing: list[str], since: float) -> list[WaitingFor]:
        return await self._lacking(draft.need, missing, since) + values(draft.problems)

    async def _lacking(self, need: Requirement, missing: list[str], since: float) -> list[WaitingFor]:
        if not missing:
            return []
        try:
            view = await self._fleet.view(since=since)
        except EmqError:
            view = FleetView()  # the job is accepted already: say what is known
        return (explain(need, view) if view.profiles else []) or from_atoms(missing, need, view)


def _require_submitted(answer: Answer) -> None:
    what = f"job {answer.text('job_id')}"
    if answer.outcome == "conflict":
        raise Conflict(
            "This idempotency_key was used for another body; use a new key for a new job.",
            reason="idempotency_key",
            job_id=answer.text("job_id"),
        )
    require(answer, what)
