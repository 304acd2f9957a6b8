"""``python -m bench queue``: EMQ against a floor of raw Redis and against other queues, on the same server settings.

Rounds are interleaved, their order reversed each second time; printed are medians and, for every figure, the ratio to
two floors of the same round. The floor is the fewest atomic steps of a queue that can recover a job
(``bench/peers/floor.lua``); the floor with duties does in the fewest steps what EMQ promises of every job besides:
``bench/peers/floor_duties.lua`` lists it. Floors and EMQ use the same client (``bench/mux.py``): one connection, on
which all calls of one turn of the event loop are written at once. Workers of one process are independent of each other,
so nothing is gained by waiting for one's answer before another's call is sent. With 32 jobs in flight EMQ ends those of
one turn of the loop in one call, as a broker does for the workers behind it (``broker/queue/turns.py``); floors make a
call a job. What a job costs Redis, in CPU and calls, is measured with one in flight, where nobody can do so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from bench.peers.catalog import DUTIES, EMQ, FLOOR, PEERS, Peer
from bench.peers.install import install, version
from bench.roles import Figures, Plan, measure
from bench.targets import Target, print_targets

Results = dict[str, list[Figures]]

COLUMNS = {
    "enqueue single /s": "single/s",
    "enqueue bulk /s": "bulk/s",
    "enqueue bulk100 /s": "bulk100/s",
    "drain 1 /s": "drain1/s",
    "drain 32 /s": "drain32/s",
    "latency p50 ms": "p50 ms",
    "latency p95 ms": "p95 ms",
    "latency p99 ms": "p99 ms",
    "enqueue cpu us": "cpu enq",
    "work cpu us": "cpu work",
    "cpu us a job": "cpu/job",
    "calls a job": "calls",
    "bytes a job": "bytes",
    "idle calls /s": "idle/s",
}


def medians(results: Results, figure: str) -> dict[str, float]:
    """Each peer's median of a figure."""
    out = {}
    for name, rounds in results.items():
        values = [figures[figure] for figures in rounds if figure in figures]
        if values:
            out[name] = statistics.median(values)
    return out


def ratios(results: Results, figure: str, name: str, to: str) -> float | None:
    """The median of one's figure over another's in the same round."""
    pairs = zip(results.get(name, []), results.get(to, []), strict=False)
    values = [mine[figure] / its[figure] for mine, its in pairs if mine.get(figure) and its.get(figure)]
    return statistics.median(values) if values else None


def table(results: Results) -> str:
    """Medians, then ratios to the floor."""
    head = f"  {'':24}" + "".join(f"{title:>10}" for title in COLUMNS.values())
    lines = ["medians", head]
    for name in results:
        found = [medians(results, figure).get(name) for figure in COLUMNS]
        lines.append(f"  {name:24}" + "".join(_cell(value) for value in found))
    for floor in (FLOOR.name, DUTIES.name):
        if floor in results:
            lines += ["", f"ratio to {floor} of the same round", head]
            for name in results:
                cells = "".join(_cell(ratios(results, figure, name, floor)) for figure in COLUMNS)
                lines.append(f"  {name:24}{cells}")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    if value is None:
        return f"{'-':>10}"
    return f"{value:10.2f}" if value < 100 else f"{value:10,.0f}"


def _least(results: Results, figure: str, peers: list[Peer]) -> tuple[float, str] | None:
    """The smallest ratio of EMQ to any of these peers."""
    found = [(value, peer.name) for peer in peers if (value := ratios(results, figure, EMQ.name, peer.name))]
    return min(found) if found else None


def targets(results: Results) -> list[Target]:
    """What was wanted, and what came out."""
    pythons = [peer for peer in PEERS if peer.python]
    nodes = [peer for peer in PEERS if peer.node]
    safe = [peer for peer in pythons if peer.recovers]
    out = []
    for what, figure, peers, wanted in (
        ("bulk enqueue / BullMQ Node", "enqueue bulk /s", nodes, 1.3),
        ("bulk enqueue / best Python peer", "enqueue bulk /s", pythons, 2.0),
        ("bulk enqueue, 100 a call / BullMQ Node", "enqueue bulk100 /s", nodes, 1.3),
        ("bulk enqueue, 100 a call / best Python peer", "enqueue bulk100 /s", pythons, 2.0),
        ("drain 32 / BullMQ Node", "drain 32 /s", nodes, 1.0),
        ("drain 32 / best Python peer that recovers jobs", "drain 32 /s", safe, 2.0),
        ("drain 1 / best Python peer", "drain 1 /s", pythons, 1.0),
    ):
        if found := _least(results, figure, peers):
            out.append(Target(what, found[0], wanted, against=found[1]))
    for what, figure, most in (
        ("latency p50 / floor", "latency p50 ms", 1.3),
        ("Redis CPU a job / floor", "cpu us a job", 1.6),
    ):
        for floor in (FLOOR, DUTIES):
            if ratio := ratios(results, figure, EMQ.name, floor.name):
                out.append(Target(what, ratio, most, most=True, against=floor.name))
    if (functions := medians(results, "work functions").get(EMQ.name)) is not None:
        out.append(Target("calls a job of EMQ's worker (finish and claim are one)", functions, 1.05, most=True))
    idle = medians(results, "idle calls /s").get(EMQ.name)
    if idle is not None:
        out.append(Target("idle worker, commands/s", idle, 1.0, most=True))
    return out


def chosen(names: str) -> list[Peer]:
    """The peers of these modules; all of them without one."""
    wanted = names.split(",") if names else [peer.module for peer in PEERS]
    unknown = set(wanted) - {peer.module for peer in PEERS}
    if unknown:
        raise SystemExit(f"no peer {', '.join(unknown)}; there are: {', '.join(peer.module for peer in PEERS)}")
    return [peer for peer in PEERS if peer.module in wanted]


def there(peer: Peer) -> bool:
    """Install a peer; one that cannot be had here is left out, loudly."""
    try:
        install(peer)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"LEFT OUT: {peer.name} cannot be installed: {error}", file=sys.stderr, flush=True)
        return False
    return True


def run(peers: list[Peer], plan: Plan, rounds: int) -> Results:
    """Measure in interleaved rounds; a peer that fails in one is left out of it, loudly."""
    results: Results = {peer.name: [] for peer in peers}
    for number in range(rounds):
        for peer in peers if number % 2 == 0 else reversed(peers):
            print(f"round {number + 1} of {rounds}: {peer.name}", file=sys.stderr, flush=True)
            try:
                results[peer.name].append(measure(peer, plan))
            except (RuntimeError, OSError) as error:
                print(f"FAILED: {error}", file=sys.stderr, flush=True)
                results[peer.name].append({})
    return results


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="bench queue", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual number of jobs")
    parser.add_argument("--fsync", choices=("everysec", "always", "off"), default="everysec")
    parser.add_argument("--peers", default="", help="modules of bench/peers, by comma")
    parser.add_argument("--json", type=Path, help="also write every round's figures here")
    args = parser.parse_args(argv)
    peers = [peer for peer in chosen(args.peers) if there(peer)]
    results = run(peers, Plan(scale=args.scale, fsync=args.fsync), args.rounds)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    print(f"Redis appendfsync {args.fsync}, payload 2 KiB, {args.rounds} rounds; bulk: 1,000 jobs a call")
    print(
        "EMQ and floors: calls pipelined over one connection of bench/mux.py, since one that waits for each answer "
        "measures the loopback; peers: their own clients"
    )
    print("versions: " + "; ".join(filter(None, (version(peer) for peer in peers))))
    print(table(results))
    print_targets(targets(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
