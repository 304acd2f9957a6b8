"""``/openapi.json`` says what the broker does: schemathesis looks for a request of which that is not true."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.http_exceptions import HttpProcessingError

from broker.access import users
from broker.api import sse
from broker.api.openapi import OPERATIONS
from tests.access.conftest import Guarded, guarded
from tests.api.conftest import own_valkey, start_broker
from tests.support.depth import DEEP

__all__ = ["guarded", "own_valkey", "start_broker"]

HERE = Path(__file__).parent


async def briefly(*args: Any, pump: Callable[..., Awaitable[None]] = sse._pump) -> None:
    """The stream of a job that waits does not end by itself; an answer that is not there yet is waited for as any."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await pump(*args)


@pytest.mark.timeout(7200 if DEEP else 300)
async def test_schemathesis_finds_nothing(
    guarded: Guarded, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its checks, with the key of an administrator, for every operation: what fits, and what just does not.

    ``EMQ_FUZZ`` adds so many random requests for each operation, and sequences of them.
    """
    monkeypatch.setattr(users, "_N", 2**4)  # a hundred passwords are set
    monkeypatch.setattr(sse, "_pump", briefly)
    key = await guarded.key("admin")
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run",
        f"{guarded.broker.url}/openapi.json", "--header", f"Authorization: Bearer {key}",
        "--phases", "examples,coverage,fuzzing,stateful" if DEEP else "examples,coverage",
        "--max-examples", str(DEEP or 1),
        "--request-timeout", "20", "--generation-deterministic", "--no-shrink",
        "--continue-on-failure", "--warnings", "off", "--no-color",
    ]  # fmt: skip
    hooks = {"SCHEMATHESIS_HOOKS": "tests.fuzz.schemathesis_hooks", "PYTHONPATH": str(HERE.parents[1])}
    process = await asyncio.create_subprocess_exec(
        *command, env={**os.environ, **hooks}, cwd=tmp_path, stdout=PIPE, stderr=STDOUT
    )
    told = (await process.communicate())[0].decode()
    print(told)
    assert process.returncode == 0, told
    tested = re.search(r"Tested: (\d+)", told)
    assert tested is not None, told
    assert int(tested[1]) == len(OPERATIONS)
    cases = re.search(r"(\d+) generated, (\d+) passed", told)
    assert cases is not None, told
    assert int(cases[1]) == int(cases[2]) >= 2000
    faults = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert not [fault for fault in faults if not isinstance(fault, HttpProcessingError)], "what is no HTTP is no fault"
