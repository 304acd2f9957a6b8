"""What a fleet shows of each worker and job, as HTML: by functions, because hundreds of them are drawn each second."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from markupsafe import Markup, escape

from broker.dashboard.parts import Parts, joined
from broker.dashboard.words import age, duration, element, escaped, megabytes, segment

Job = dict[str, Any]
Draw = Callable[..., str]
_REST = {"offline": "Gone.", "idle": "Waits for a job."}
_NEXT = ' <span class="chip">next</span>'


@lru_cache(1024)
def job_link(job_id: Any) -> Markup:
    """A link to a job."""
    text = escape(str(job_id))
    return Markup(f'<a class="id" href="/jobs/{segment(job_id)}" title="{text}">{escape(str(job_id)[:12])}</a>')  # noqa: S704 # nosec B704 - escaped above


def node(job: Job) -> Markup:
    """The node that runs, and its step; what a job does when none runs."""
    told = job["node"]
    if told:
        step = f' <span class="num">{int(told["value"])}/{int(told["max"])}</span>' if told["max"] else ""
        name = escaped(str(told["class_type"] or told["id"]))
        return Markup(f'<span class="node">{name}{step}</span>')  # noqa: S704 # nosec B704 - escaped above
    word = "uploading" if job["phase"] == "finishing" else "starting" if job["status"] == "claimed" else ""
    return Markup(f'<span class="node quiet">{word}</span>' if word else "")  # noqa: S704 # nosec B704 - own words


def bar(job: Job) -> Markup:
    """How far a job is."""
    label = escaped(job["job_id"][:12])
    return Markup(f'<progress max="100" value="{job["progress"] or 0}" aria-label="progress of {label}"></progress>')  # noqa: S704 # nosec B704 - a number and an escaped text


def elapsed(job: Job) -> Markup:
    """Since when it runs, and how long such jobs take."""
    since = job["started_at"] or job["claimed_at"]
    usual = f' <span class="quiet">of ≈ {duration(job["expected_ms"])}</span>' if job["expected_ms"] else ""
    return Markup(f"{age(since)}{usual}" if since else "")  # noqa: S704 # nosec B704 - times only


def doing(job: Job) -> Markup:
    """What a card shows of a job: its picture, its link, what it does, how far it is, since when."""
    seen = job["mine"] and job["status"] == "processing" and job["phase"] != "finishing"
    name = job_link(job["job_id"]) if job["mine"] else '<span class="quiet">a job of another tenant</span>'
    return Markup(  # noqa: S704 # nosec B704 - made of the pieces above
        f'<div class="doing">{_picture(job) if seen else ""}<div>'
        f"<p>{name}{_NEXT if job['phase'] == 'ahead' else ''}</p><p>{node(job)}</p>{bar(job)}"
        f'<p class="num">{elapsed(job)}</p></div></div>'
    )


def _picture(job: Job) -> str:
    source = f"/ui/preview/{segment(job['job_id'])}?v={int(job['preview'])}"
    return f'<img class="preview" src="{source}" alt="" width="96" height="96" loading="lazy">'


def vram(gpus: Iterable[dict[str, Any]]) -> Markup:
    """How much of its memory each GPU uses."""
    return Markup("").join(_memory(gpu["vram_mb"], gpu["vram_free_mb"]) for gpu in gpus if gpu["vram_mb"])


def _memory(whole: float, free: float | None) -> Markup:
    if free is None:
        return Markup(f'<span class="vram quiet">{megabytes(whole)} VRAM</span>')  # noqa: S704 # nosec B704 - a number
    used, most = whole - free, megabytes(whole)
    meter = f'<meter min="0" max="{whole}" value="{used}" aria-label="VRAM in use">{megabytes(used)}</meter>'
    return Markup(f'<span class="vram">{meter} {megabytes(used)} of {most}</span>')  # noqa: S704 # nosec B704 - numbers


def _now(name: str, worker: Job) -> Markup:
    jobs = "".join(doing(job) for job in worker["doing"])
    rest = "" if jobs else f'<p class="quiet rest">{_REST.get(worker["status"], "No job.")}</p>'
    return Markup(f'<div id="d{name}" class="now">{jobs}{rest}</div>')  # noqa: S704 # nosec B704 - made of pieces


def _heard(name: str, worker: Job) -> Markup:
    versions = (("ComfyUI", worker["comfyui_version"]), ("EMQ", worker["version"]))
    told = "".join(f" · {what} {escape(version)}" for what, version in versions if version)
    heard = f'<p class="quiet">heard {age(worker["last_heartbeat"])} ago{told}</p>'
    return Markup(f'<div id="h{name}">{vram(worker["gpus"])}{heard}</div>')  # noqa: S704 # nosec B704 - made of pieces


def grid(part: Parts, workers: Iterable[Job], frame: Draw) -> Markup:
    """A card for each worker; ``frame`` draws what is around what it does now and what was heard of it."""
    return joined(_card(part, element("w", worker["worker_id"]), worker, frame) for worker in workers)


def _card(part: Parts, name: str, worker: Job, frame: Draw) -> str:
    known = part.again(name, worker["shown"])
    if known:
        return known
    now = part(f"d{name}", worker["doing"], worker["status"], caller=lambda: _now(name, worker))
    heard = part(f"h{name}", worker["record"], caller=lambda: _heard(name, worker))
    return part(name, worker["fixed"], caller=lambda: frame(worker, now, heard))


def table(part: Parts, workers: Iterable[Job], frame: Draw) -> Markup:
    """The same as a row for each worker."""
    return joined(_row(part, element("w", worker["worker_id"]), worker, frame) for worker in workers)


def _row(part: Parts, name: str, worker: Job, frame: Draw) -> str:
    known = part.again(name, worker["shown"])
    if known:
        return known
    job = worker["doing"][0] if worker["doing"] else None
    now = part(f"d{name}", job, caller=lambda: _cell(f"d{name}", f"{node(job)} {bar(job)}" if job else ""))
    heard = part(f"h{name}", worker["gpus"], caller=lambda: _cell(f"h{name}", vram(worker["gpus"])))
    beat = part(f"b{name}", worker["last_heartbeat"], caller=lambda: _beat(f"b{name}", worker["last_heartbeat"]))
    around = job and tuple(job[field] for field in ("job_id", "mine", "started_at", "claimed_at", "expected_ms"))
    return part(name, worker["fixed"], around, caller=lambda: frame(worker, job, now, heard, beat))


def _cell(name: str, html: str) -> Markup:
    return Markup(f'<td id="{name}">{html}</td>')  # noqa: S704 # nosec B704 - made of pieces


def _beat(name: str, moment: int | None) -> Markup:
    return Markup(f'<td id="{name}" class="num">{age(moment)}</td>')  # noqa: S704 # nosec B704 - made of pieces


def waiting(part: Parts, jobs: Iterable[Job], now: int, frame: Draw) -> Markup:
    """A row for each waiting job. Its place is a part of its own: with each job that starts all others move up."""
    return joined(_waits(part, element("j", job["job_id"]), job, now, frame) for job in jobs)


def _waits(part: Parts, name: str, job: Job, now: int, frame: Draw) -> str:
    spot = job["place"] or "\N{EN DASH}"
    place = part(f"p{name}", spot, caller=lambda: f'<td id="p{name}" class="num">{spot}</td>')
    return part(name, job["about"], job["expected"], now, caller=lambda: frame(job, place))


FILTERS = {"doing": doing, "job_link": job_link, "node": node, "bar": bar, "elapsed": elapsed, "vram": vram}
GLOBALS = {"grid": grid, "table": table, "waiting": waiting}
"""What draws many parts beside each other: a template goes through hundreds of rows more slowly."""
