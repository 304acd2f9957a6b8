"""Child processes that end with the block that started them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

END_S = 10.0
"""How long a child may take to end by itself."""


class ChildEnded(Exception):
    """A child ended that should have gone on; the message has its last words."""


class Child:
    """A running process and the file its output goes to."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    async def line(self, pattern: str, timeout_s: float) -> re.Match[str]:
        """Wait for a line of its output.

        Raises:
            ChildEnded: it ended, or did not say so in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    if found := re.search(pattern, self.log.read_text(errors="replace")):
                        return found
                    self.check()
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise ChildEnded(f"{self.name} was not ready within {timeout_s:g} s:\n{self.last_words()}") from None

    def check(self) -> None:
        """Raise ``ChildEnded`` if it has ended."""
        if self._process.returncode is not None:
            raise ChildEnded(f"{self.name} ended (exit code {self._process.returncode}):\n{self.last_words()}")

    async def ended(self) -> None:
        """Wait for its end, then raise ``ChildEnded``."""
        await self._process.wait()
        self.check()

    def last_words(self, lines: int = 15) -> str:
        """The end of its output, indented."""
        tail = self.log.read_text(errors="replace").splitlines()[-lines:]
        return "\n".join(f"    {line}" for line in tail) or "    (it said nothing)"

    async def end(self) -> None:
        """Ask it to end, insist after ``END_S``."""
        if self._process.returncode is None:
            self._process.terminate()
            try:
                await asyncio.wait_for(self._process.wait(), END_S)
            except TimeoutError:
                self._process.kill()
                await self._process.wait()


@asynccontextmanager
async def child(
    name: str, command: Sequence[str], log: Path, *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> AsyncIterator[Child]:
    """Start a process in a session of its own, so that Ctrl-C reaches only the one who ends it."""
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=cwd,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
    started = Child(name, process, log)
    try:
        yield started
    finally:
        await started.end()
