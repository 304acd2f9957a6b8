"""How the command line talks to a broker."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from broker.errors import EmqError

Message = dict[str, Any]
DEFAULT_URL = "http://127.0.0.1:8000"


class BrokerRefused(EmqError):
    """The broker's own words."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which broker, and as whom."""
    url = os.environ.get("EMQ_BROKER_URL", DEFAULT_URL)
    parser.add_argument("--broker", default=url, metavar="URL", help=f"the broker (EMQ_BROKER_URL; {url})")
    parser.add_argument("--key", default=os.environ.get("EMQ_API_KEY"), help="API key (EMQ_API_KEY)")


class Broker:
    """One broker over HTTP and WebSocket."""

    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self.http = http
        self.url = url.rstrip("/")

    async def ask(self, method: str, path: str, body: Message | None = None, **query: Any) -> Any:
        """The JSON answer; raises ``BrokerRefused`` with the broker's reason."""
        params = {name: str(value) for name, value in query.items() if value is not None}
        async with self.http.request(method, self.url + path, json=body, params=params) as response:
            text = await response.text()
            try:
                answer = json.loads(text)
            except ValueError:
                raise BrokerRefused(f"{self.url}{path} answers {response.status}, not JSON: is this EMQ?") from None
            if response.status >= 400:
                raise BrokerRefused(f"{answer.get('code')}: {answer.get('error')}")
            return answer

    def socket(self) -> Any:
        """A client's WebSocket, as a context manager."""
        return self.http.ws_connect(self.url + "/ws", heartbeat=20, max_msg_size=0)


@asynccontextmanager
async def connect(args: argparse.Namespace) -> AsyncIterator[Broker]:
    """The broker that the arguments name; connection problems become ``BrokerRefused``."""
    headers = {"Authorization": f"Bearer {args.key}"} if args.key else {}
    try:
        async with aiohttp.ClientSession(headers=headers) as http:
            yield Broker(http, args.broker)
    except (aiohttp.InvalidURL, ValueError) as error:
        raise BrokerRefused(f"{args.broker} is not the URL of a broker: {error}") from None
    except aiohttp.WSServerHandshakeError as error:
        raise BrokerRefused(f"{args.broker} refuses the connection ({error.status}); is --key right?") from None
    except (aiohttp.ClientError, OSError) as error:
        raise BrokerRefused(f"The broker at {args.broker} cannot be reached: {error}") from None


def run(work: Callable[[Broker, argparse.Namespace], Awaitable[int]], args: argparse.Namespace) -> int:
    """Do ``work`` with the broker that the arguments name."""

    async def whole() -> int:
        async with connect(args) as broker:
            return await work(broker, args)

    return asyncio.run(whole())


def table(rows: list[list[Any]], heads: list[str]) -> str:
    """Columns as wide as their longest cell."""
    cells = [heads, *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
