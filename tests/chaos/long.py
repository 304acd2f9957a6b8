"""The recorded long run: mixes one after another until each kind of fault was there as often as is asked.

``python -m tests.chaos.long --keep artifacts/chaos.json``. Every mix is judged by itself and added to the file; started
again with the same file it goes on where it ended. A mix that breaks a promise ends the run, and its folder is kept.
SIGTERM ends it in good order; the mix under way is not added then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from broker.trial.runtime import COMFYUI_VERSION
from broker.version import emq_version
from tests.chaos.judge import Verdict
from tests.chaos.load import Mixture
from tests.chaos.mix import Plan, drill
from tests.support.comfyui import ROOT
from tests.support.servers import valkey_binary

TARGETS = {
    "kill_worker": 900, "kill_comfyui": 100, "kill_broker": 100, "kill_redis": 50, "cut_power": 20,
    "part_workers": 10, "part_brokers": 10,
}  # fmt: skip
NOT_ADDED = ("seed", "faults")


class Record:
    """The file: what was asked for, every mix, and their sums."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def faults(self) -> Counter[str]:
        """Faults of all mixes, by kind."""
        return sum((Counter(run["faults"]) for run in self.runs), Counter())

    def missing(self) -> dict[str, int]:
        """What is still to be done, by kind."""
        done = self.faults()
        return {name: number - done[name] for name, number in TARGETS.items() if done[name] < number}

    def add(self, seed: int, verdict: Verdict) -> None:
        """Add a mix and write the file."""
        run = {name: len(v) if isinstance(v, list) else v for name, v in asdict(verdict).items()}
        broken = {name: v[:20] for name, v in asdict(verdict).items() if isinstance(v, list) and v}
        self.runs.append({"seed": seed, **run, **({"broken": broken} if broken else {})})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.summary(), indent=1) + "\n")

    def summary(self) -> dict[str, Any]:
        """What the file holds."""
        sums: Counter[str] = Counter()
        for run in self.runs:
            sums.update({name: n for name, n in run.items() if isinstance(n, int | float) and name not in NOT_ADDED})
        totals = {**sums, "seconds": round(sums["seconds"]), "faults": dict(sorted(self.faults().items()))}
        return {"versions": _versions(), "asked": TARGETS, "totals": totals, "runs": self.runs}


def _versions() -> dict[str, str]:
    said = subprocess.run([valkey_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    server = next(word for word in said.split() if word.startswith("v="))
    return {
        "emq": emq_version(), "python": platform.python_version(), "valkey": server.removeprefix("v="),
        "comfyui": COMFYUI_VERSION, "fsync": "always",
    }  # fmt: skip


def one(record: Record, plan: Plan) -> bool:
    """Run one mix and add it; whether every promise was kept."""
    folder = Path(tempfile.mkdtemp(prefix="emq-chaos-"))
    verdict = asyncio.run(_interruptible(folder, plan))
    record.add(plan.seed, verdict)
    print(f"seed {plan.seed}: {'good' if verdict.good else f'BROKEN, see {folder}'}\n{verdict.text()}", flush=True)
    if verdict.good:
        shutil.rmtree(folder, ignore_errors=True)
    return verdict.good


async def _interruptible(folder: Path, plan: Plan) -> Verdict:
    """A run that is ended leaves no process behind; its mix does not count."""
    task = asyncio.ensure_future(drill(folder, plan))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def main() -> int:
    """0 when every kind was there often enough and every promise was kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keep", type=Path, default=ROOT / "artifacts" / "chaos.json", help="the record")
    parser.add_argument("--seconds", type=float, default=600, help="faults of one mix")
    parser.add_argument("--rate", type=float, default=12, help="submits a second")
    parser.add_argument("--comfyuis", type=int, default=2, help="real ones")
    parser.add_argument("--kill-every", type=float, default=3.0, help="seconds between killed workers, beside the mix")
    args = parser.parse_args()
    record = Record(args.keep)
    while missing := record.missing():
        print(f"still to do: {missing}", flush=True)
        mixture = Mixture(args.rate, real=0.3 / args.rate if args.comfyuis else 0.0)
        kill_every_s = args.kill_every if "kill_worker" in missing else 0.0
        plan = Plan(args.seconds, int(time.time()), 0, mixture, args.comfyuis, kill_every_s, missing)
        if not one(record, plan):
            return 1
    print(json.dumps(record.summary()["totals"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
