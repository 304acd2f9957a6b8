"""Memory that nothing needs is freed, and what was freed goes back to the system."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import weakref

import pytest

from broker.memory import tidied
from tests.support.comfyui import ROOT
from tests.support.waiting import wait_until

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


class Ring:
    """Holds itself."""

    def __init__(self) -> None:
        self.me = self


async def test_rubbish_that_holds_itself_is_freed_without_python_asking_for_it() -> None:
    gc.disable()
    try:
        ring = weakref.ref(Ring())
        assert ring() is not None
        async with tidied(0.01):
            await wait_until(lambda: ring() is None, what="it is freed")
    finally:
        gc.enable()
