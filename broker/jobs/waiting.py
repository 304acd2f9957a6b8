"""Why no live worker could run a job, in words a person understands."""

from __future__ import annotations

from collections.abc import Iterable

from broker.jobs.fleet import FleetView
from broker.jobs.ranges import Problem
from broker.jobs.requirements import Requirement
from broker.protocol.records import WaitingCode, WaitingFor

MAX_REASONS = 32
_MAX_SUGGESTIONS = 4
"""Nearest matches are looked up for so many names of one job: each costs up to a few ms in a big fleet."""

_CODES: dict[str, tuple[WaitingCode, str]] = {
    "m": ("no_worker_has_model", "No live worker has the model file {}."),
    "n": ("no_worker_has_node_class", "No live worker has the node class {}."),
    "g": ("no_worker_has_tag", "No live worker has the tag {}."),
    "t": ("no_worker_has_job_type", "No live worker takes jobs of type {}."),
}


_HELD: dict[str, tuple[WaitingCode, str]] = {
    "pool": ("pool_paused", "The queue is paused."),
    "tenant": ("tenant_paused", "The jobs of this tenant are paused."),
    "cap": ("tenant_at_limit", "As many jobs of this tenant run as may run at once."),
}


def explain(need: Requirement, fleet: FleetView) -> list[WaitingFor]:
    """The reasons why ``need`` runs nowhere; empty when some live worker could run it."""
    if not fleet.profiles:
        return [WaitingFor(code="no_worker", message="No worker is connected.")]
    wanted = frozenset(need.atoms)
    if any(wanted <= p.atoms and p.vram_mb >= need.vram_mb for p in fleet.profiles):
        return []
    reasons = from_atoms(sorted(wanted - fleet.atoms), need, fleet)
    if need.vram_mb > max(p.vram_mb for p in fleet.profiles):
        reasons.append(_no_room(need, fleet))
    return reasons or [_no_single(need, fleet)]


def held_back(by: str) -> list[WaitingFor]:
    """The reason that lies in a pause or limit (``held`` of ``emq_job``)."""
    found = _HELD.get(by)
    return [WaitingFor(code=found[0], message=found[1])] if found else []


def values(problems: Iterable[Problem]) -> list[WaitingFor]:
    """The reasons that lie in the values of inputs."""
    return [problem.reason() for problem in problems]


def from_atoms(missing: Iterable[str], need: Requirement, fleet: FleetView) -> list[WaitingFor]:
    """One reason for each atom that no worker has; ``*`` is no worker at all, ``+`` no single one."""
    reasons: list[WaitingFor] = []
    for atom in list(missing)[:MAX_REASONS]:
        if atom == "*":
            reasons.append(WaitingFor(code="no_worker", message="No worker is connected."))
        elif atom == "+":
            reasons.append(_no_single(need, fleet))
        elif atom.startswith("v:"):
            reasons.append(_no_room(need, fleet))
        elif atom[:1] in _CODES:
            code, text = _CODES[atom[0]]
            name = need.files.get(atom, atom[2:])
            near = fleet.nearest(atom) if len(reasons) < _MAX_SUGGESTIONS else None
            hint = f" Did you mean {near}?" if near else ""
            reasons.append(WaitingFor(code=code, detail=name, suggestion=near, message=text.format(name) + hint))
    return reasons


def _no_room(need: Requirement, fleet: FleetView) -> WaitingFor:
    best = max((p.vram_mb for p in fleet.profiles), default=0)
    text = f"The job needs {need.vram_mb} MB of VRAM; the largest worker has {best} MB."
    return WaitingFor(code="not_enough_vram", detail=str(need.vram_mb), message=text)


def _no_single(need: Requirement, fleet: FleetView) -> WaitingFor:
    wanted = frozenset(need.atoms)
    closest = min(fleet.profiles, key=lambda p: (len(wanted - p.atoms), -p.vram_mb), default=None)
    lacking = sorted(need.files.get(a, a[2:]) for a in wanted - closest.atoms)[:5] if closest else []
    if closest and closest.vram_mb < need.vram_mb:
        lacking.append(f"{need.vram_mb} MB of VRAM")
    text = "Each thing the job needs is somewhere, but no single worker has all of it."
    return WaitingFor(code="no_single_worker", detail=", ".join(lacking) or None, message=text)
