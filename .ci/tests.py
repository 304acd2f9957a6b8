"""Runs the tests in three pytest processes at once and adds their counts up in one closing line.

Tests that start a real ComfyUI mostly wait for it, the others mostly compute, so they share two cores well. With
arguments it is plain pytest.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

QUEUE = ("tests/queue", "tests/chaos")
PARTS: dict[str, list[str]] = {
    "of the queue": ["-m", "not comfyui", *QUEUE],
    "of the rest": ["-m", "not comfyui", *(f"--ignore={folder}" for folder in QUEUE)],
    "with ComfyUI": ["-m", "comfyui"],
}
NO_TESTS = 5  # pytest's exit code for an empty selection


def run_part(name: str, chosen: list[str], report: Path) -> int:
    """Run one part, print what it said once it has ended, and give its exit code."""
    started = time.monotonic()
    print(f"running the tests {name}; their output follows at their end", flush=True)
    command = [sys.executable, "-m", "pytest", *chosen, f"--junit-xml={report}", "--durations=10"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(f"===== tests {name}, {time.monotonic() - started:.0f} s =====\n{done.stdout}", flush=True)
    return 0 if done.returncode == NO_TESTS else done.returncode


def count(report: Path) -> Counter[str]:
    """Passed, failed and skipped tests in a JUnit report; empty when pytest did not get as far as writing it."""
    totals: Counter[str] = Counter()
    if report.exists():
        for case in ET.parse(report).iter("testcase"):  # noqa: S314
            kinds = {child.tag for child in case}
            failed = kinds & {"failure", "error"}
            totals["failed" if failed else "skipped" if "skipped" in kinds else "passed"] += 1
    return totals


def main() -> int:
    """Run everything, or the tests named on the command line."""
    if sys.argv[1:]:
        return subprocess.call([sys.executable, "-m", "pytest", *sys.argv[1:]])
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(len(PARTS)) as pool:
        reports = [Path(folder, f"{number}.xml") for number in range(len(PARTS))]
        codes = list(pool.map(run_part, PARTS, PARTS.values(), reports))
        totals = sum((count(report) for report in reports), Counter[str]())
    skipped = f", {totals['skipped']} skipped" if totals["skipped"] else ""
    print(f"tests: {totals['passed']} passed, {totals['failed']} failed{skipped}")
    return max(codes) or int(totals["failed"] > 0 or totals["passed"] == 0)


if __name__ == "__main__":
    sys.exit(main())
