"""Memory that was freed goes back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from tests.support.comfyui import ROOT

FREED = """
import resource
from broker.memory import trim

def rss():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

held = [[bytes(60_000), bytes(1_000)] for _ in range(2000)]
for pair in held:
    pair[0] = None  # what stays lies between what goes
before = rss()
assert trim()
print(before - rss())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it, and only glibc can trim")
def test_what_was_freed_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert int(done.stdout) > 60_000_000
