"""A power cut without cutting the power: what a server wrote but had not synced is taken out of its files.

A small library, loaded before the C library, notes how long a file was when it was last synced. After the server was
killed, each file is cut to that length: what the page cache alone had held is gone, as it would be.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void note(int fd) {
    const char *to = getenv("EMQ_POWER_NOTES");
    char link[64], path[4096], line[4200];
    struct stat about;
    if (!to || fstat(fd, &about) || !S_ISREG(about.st_mode)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return;
    path[length] = 0;
    int notes = open(to, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (notes < 0) return;
    int n = snprintf(line, sizeof line, "%lld %s\n", (long long)about.st_size, path);
    if (write(notes, line, n) < 0) {}
    close(notes);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    int done = real(fd);
    if (!done) note(fd);
    return done;
}

int fdatasync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    int done = real(fd);
    if (!done) note(fd);
    return done;
}
"""


def build(library: Path, source: str) -> bool:
    """Make a library to be loaded before the C library; false where there is no C compiler."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is not None:
        file = library.with_suffix(".c")
        file.write_text(source)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, file, "-ldl"], check=True)
    return compiler is not None


class Power:
    """Cuts what was not synced. :attr:`possible` says whether this machine has a C compiler."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._notes, self._library = folder / "notes", folder / "power.so"
        self.possible = build(self._library, SOURCE)

    @contextmanager
    def shim(self) -> Iterator[None]:
        """What is started inside is watched."""
        if not self.possible:
            yield
            return
        os.environ |= {"LD_PRELOAD": str(self._library), "EMQ_POWER_NOTES": str(self._notes)}
        try:
            yield
        finally:
            del os.environ["LD_PRELOAD"], os.environ["EMQ_POWER_NOTES"]

    def cut(self, folder: Path) -> int:
        """Take out of the files below ``folder`` what was not synced; answers how many bytes that were."""
        synced: dict[str, int] = {}
        if self._notes.exists():
            for line in self._notes.read_text().splitlines():
                size, _, path = line.partition(" ")
                synced[path] = int(size)
        lost = 0
        for file in (path for path in folder.rglob("*.incr.aof") if path.is_file()):
            kept = synced.get(str(file.resolve()))
            if kept is not None and file.stat().st_size > kept:
                lost += file.stat().st_size - kept
                os.truncate(file, kept)
        return lost
