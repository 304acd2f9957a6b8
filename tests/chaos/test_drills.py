"""The drill that runs with every change. ``make chaos`` and ``make chaos-long`` run longer ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import kills
from tests.chaos.faults import FAULTS
from tests.support.comfyui import ROOT


@pytest.mark.timeout(1500)
def test_sixty_faults_under_load_break_no_promise(tmp_path: Path) -> None:
    """Every kind at least once, the others at random; what is printed names the seed."""
    kept = tmp_path / "verdict.json"
    command = [sys.executable, "-m", "tests.chaos.mix", "--seconds", "0", "--faults", "60", "--keep", str(kept)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=1400)
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    verdict = json.loads(kept.read_text())
    assert sum(verdict["faults"].values()) >= 60
    assert set(verdict["faults"]) >= set(FAULTS) - {"cut_power"}
    assert verdict["completed"] > 100
    assert verdict["attempts"] > verdict["completed"], "the faults did hit jobs"


async def test_a_redis_that_is_killed_under_submits_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    """``python -m tests.chaos.kills`` does it thirty times at five times the rate."""
    count = await kills.drill(tmp_path, kills=3, rate=100, seed=1)
    assert count.good, count
    assert (count.kills, count.acknowledged) == (3, count.submitted)
    assert count.submitted > 100
