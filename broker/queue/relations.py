"""What a check finds of relations: who waits for whom, how many are in the fleet, who can run what.

Like all of a check it reads what belongs together in one moment; what looks wrong is read once more, for in between a
class may have come, or a worker gone.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from broker.queue import given
from broker.queue import invariants as must
from broker.queue.invariants import Finding

Read = Callable[..., Awaitable[list[Any]]]
"""Commands on keys named without the prefix, answered of one moment."""
AGAIN = 20
"""How often the fleet is read again when a worker has come meanwhile, before it is left to the next check."""
WORKER = ("profile", "gone", "drain", "paused", "status", *must.PHASES)


@dataclass(frozen=True, slots=True)
class Needs:
    """What a class needs of a worker."""

    atoms: frozenset[str]
    vram_mb: int


async def dependencies(read: Read, blocked: Mapping[str, str]) -> AsyncIterator[Finding]:
    """Jobs that wait for more, or fewer, than will tell them of their end; ``blocked``: their parents, as lines."""
    for batch in given.batches(sorted(blocked)):
        parents = {job: blocked[job].split("\n") for job in batch}
        answers = iter(await read(*(q for job in batch for q in _about(job, parents[job]))))
        for job in batch:
            record, telling = given.record_of(next(answers)), 0
            for _ in parents[job]:
                (status, kids), listed, queued = next(answers), next(answers), next(answers)
                telling += must.will_tell(given.text(status or b""), bool(kids), bool(listed), queued is not None)
            for finding in must.dependency_findings(job, record, telling):
                yield finding


def _about(job: str, parents: Iterable[str]) -> Iterator[tuple[str, ...]]:
    yield ("HGETALL", f"j:{job}")
    for parent in parents:
        yield ("HMGET", f"j:{parent}", "status", "kids")
        yield ("SISMEMBER", f"kids:{parent}", job)
        yield ("LPOS", "cascade", parent)


async def fleet(read: Read, workers: Sequence[str]) -> AsyncIterator[Finding]:
    """Live workers that are not counted, or counted twice, by profile and by state."""
    names = set(workers)
    for _ in range(AGAIN):
        order = sorted(names)
        listed, profiles, states, *records = await read(
            ("ZRANGE", "workers", "0", "-1"), ("ZRANGE", "profiles", "0", "-1", "WITHSCORES"), ("HGETALL", "states"),
            *(("HMGET", f"wk:{worker}", *WORKER) for worker in order),
        )  # fmt: skip
        names |= {given.text(worker) for worker in listed}
        if len(names) == len(order):
            said = {given.text(state): int(n) for state, n in given.pairs(states)}
            found = ({name: given.text(raw) for name, raw in zip(WORKER, one, strict=True) if raw} for one in records)
            for finding in must.fleet_findings(found, dict(given.scored(profiles)), said):
                yield finding
            return


async def matches(read: Read, keys: Iterable[str]) -> AsyncIterator[Finding]:
    """Classes that are not listed, and those that a live profile should be known to run, or not to run."""
    names = sorted(key[2:] for key in keys if key.startswith("c:"))
    classes = {name: needs for batch in given.batches(names) for name, needs in (await _needs(read, batch)).items()}
    for batch in given.batches(sorted(classes)):
        answers = iter(
            await read(*(q for name in batch for q in (("EXISTS", f"c:{name}"), ("ZSCORE", "classes", name))))
        )
        for name in batch:
            here, listed = next(answers), next(answers)
            if here and listed is None:
                yield Finding("match", "classes", name, "it is not listed, so no worker that comes is compared with it")
    profiles = [given.text(profile) for profile in (await read(("ZRANGE", "profiles", "0", "-1")))[0]]
    for profile in profiles:
        async for finding in _matches(read, profile, classes):
            yield finding


async def _needs(read: Read, names: Sequence[str]) -> dict[str, Needs]:
    rows = await read(*(("HMGET", f"c:{name}", "atoms", "vram_mb") for name in names))
    return {
        name: Needs(frozenset(given.text(atoms or b"").split("\n")) - {""}, int(vram_mb))
        for name, (atoms, vram_mb) in zip(names, rows, strict=True)
        if vram_mb is not None
    }


async def _matches(read: Read, profile: str, classes: Mapping[str, Needs]) -> AsyncIterator[Finding]:
    atoms, vram_mb, known = await read(
        ("SMEMBERS", f"p:{profile}"), ("GET", f"pv:{profile}"), ("SMEMBERS", f"ok:{profile}")
    )
    has, listed = {given.text(atom) for atom in atoms}, {given.text(name) for name in known}
    can = {name for name, needs in classes.items() if must.fits(has, int(vram_mb or 0), needs.atoms, needs.vram_mb)}
    for batch in given.batches(sorted((can ^ listed) & classes.keys())):
        for name in await _wrong(read, profile, batch, can):
            word = "can run it, which is not known" if name in can else "cannot run it, and is thought to"
            yield Finding("match", f"ok:{profile}", name, f"the profile {word}")


async def _wrong(read: Read, profile: str, names: Sequence[str], can: set[str]) -> list[str]:
    """Those that are still wrong, and not about to be compared by the next sweep."""
    live, later, *rest = await read(
        ("ZSCORE", "profiles", profile), ("HEXISTS", "match", f"p:{profile}"),
        *(q for name in names for q in (
            ("SISMEMBER", f"ok:{profile}", name), ("HEXISTS", "match", f"c:{name}"), ("ZSCORE", "classes", name),
        )),
    )  # fmt: skip
    if live is None or later:
        return []
    answers = iter(rest)
    looked = [(name, bool(next(answers)), bool(next(answers)), next(answers)) for name in names]
    return [name for name, here, soon, score in looked if score is not None and not soon and here != (name in can)]
