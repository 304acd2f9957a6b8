"""Clocks that are wrong: a library, loaded before the C library, shifts what a process takes for the time of day."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.power import build

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) {
    const char *by = getenv("EMQ_CLOCK_SHIFT");
    return by ? atol(by) : 0;
}

int clock_gettime(clockid_t which, struct timespec *at) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real(which, at);
    if (!done && which == CLOCK_REALTIME) at->tv_sec += shift();
    return done;
}

int gettimeofday(struct timeval *at, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""


class Clock:
    """Shifts clocks. :attr:`possible` says whether this machine has a C compiler."""

    def __init__(self, folder: Path) -> None:
        self._library = folder / "clock.so"
        self.possible = build(self._library, SOURCE)

    @contextmanager
    def shifted(self, seconds: int) -> Iterator[None]:
        """What is started inside has a clock that is wrong by so many seconds."""
        os.environ |= {"LD_PRELOAD": str(self._library), "EMQ_CLOCK_SHIFT": str(seconds)}
        try:
            yield
        finally:
            del os.environ["LD_PRELOAD"], os.environ["EMQ_CLOCK_SHIFT"]
