"""Memory that nothing needs is freed, and what was freed goes back to the system."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys
import weakref
from functools import lru_cache

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


def said(program: str) -> str:
    """What a program writes in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps it, and only glibc can trim")
def test_what_was_freed_goes_back() -> None:
    assert int(said(FREED)) > 60_000_000


HEAPS = """
import ctypes, threading
from broker.memory import share_heap

assert share_heap()
here = threading.Barrier(9)
for _ in range(8):
    threading.Thread(target=lambda: (bytearray(100_000), here.wait(), here.wait())).start()
here.wait()
libc = ctypes.CDLL(None)
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
here.wait()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives threads heaps of their own")
def test_threads_share_a_heap() -> None:
    assert said(HEAPS).count("<heap nr=") == 1


async def test_what_was_made_of_names_goes_after_a_while() -> None:
    draw = lru_cache(str.title)
    async with tidied(0.01, [draw]):
        assert draw("job") == "Job"
        await wait_until(lambda: not draw.cache_info().currsize, what="it is forgotten")


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
