"""How the command line talks to a broker."""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

from broker.client import Client

DEFAULT_URL = "http://127.0.0.1:8000"
PATIENCE_S = 3.0
"""How long a person waits for a broker that does not answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which broker, and as whom."""
    url = os.environ.get("EMQ_BROKER_URL", DEFAULT_URL)
    parser.add_argument("--broker", default=url, metavar="URL", help=f"the broker (EMQ_BROKER_URL; {url})")
    parser.add_argument("--key", default=os.environ.get("EMQ_API_KEY"), help="API key (EMQ_API_KEY)")


def connect(args: argparse.Namespace) -> Client:
    """A client of the broker that the arguments name."""
    return Client(args.broker, args.key, patience_s=PATIENCE_S)


def run(work: Callable[[Client, argparse.Namespace], Awaitable[int]], args: argparse.Namespace) -> int:
    """Do ``work`` with the broker that the arguments name."""

    async def whole() -> int:
        async with connect(args) as client:
            return await work(client, args)

    return asyncio.run(whole())


def table(rows: list[list[Any]], heads: list[str]) -> str:
    """Columns as wide as their longest cell."""
    cells = [heads, *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
