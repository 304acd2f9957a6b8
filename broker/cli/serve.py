"""``serve``: one broker replica in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import signal
import socket
from pathlib import Path

from aiohttp import web

from broker.api.doorman import Hall
from broker.api.kernel import end_untaken
from broker.app import create_app, require_key
from broker.cli.command import Command
from broker.errors import ConfigurationError
from broker.logging import configure
from broker.memory import share_heap
from broker.settings import Settings

log = logging.getLogger(__name__)

YOUNG = 10_000
"""Objects after which Python looks for rings of rubbish among the newest: a drawn page or a large answer of Redis makes
some thousands that go by themselves. At Python's 700 it looked 20 times a second at what pages show, for nothing."""
BETWEEN_REQUESTS_S = 75
"""A connection may idle between requests for so long; longer than NGINX keeps one (60 s), or requests would be lost."""


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (EMQ_HOST, default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 takes a free one (EMQ_PORT, default 8000)")
    add_queue_arguments(parser)


def add_queue_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of everything that works on the queue itself."""
    parser.add_argument("--data", type=Path, help="data folder (EMQ_DATA)")
    parser.add_argument("--redis", dest="redis_url", help="URL of a Redis or Valkey (EMQ_REDIS_URL)")


def settings_from(args: argparse.Namespace) -> Settings:
    """The environment's settings with what the command line says on top."""
    given = {name: getattr(args, name, None) for name in ("host", "port", "data", "redis_url")}
    return Settings().model_copy(update={name: value for name, value in given.items() if value is not None})


def _run(args: argparse.Namespace) -> int:
    settings = settings_from(args)
    configure(settings.log_level, settings.log_format)
    share_heap()
    return asyncio.run(serve(settings))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        end_untaken(listener)
        listener.bind((settings.host.strip("[]"), settings.port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(f"Cannot listen on {settings.host}:{settings.port}: {error}.") from None
    return listener


def runner_of(app: web.Application) -> web.AppRunner:
    """What serves connections."""
    return web.AppRunner(
        app,
        access_log_format='%a "%r" %s %Tf',
        shutdown_timeout=2,
        keepalive_timeout=BETWEEN_REQUESTS_S,
        auto_decompress=False,  # a compressed body is refused, so nobody need unpack it
    )


async def serve(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT; prints ``listening on http://H:P`` once requests are answered."""
    await require_key(settings)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    with contextlib.closing(_listen(settings)) as listener:
        port = listener.getsockname()[1]
        runner = runner_of(create_app(settings.model_copy(update={"port": port})))
        server: asyncio.Server | None = None
        try:
            if not await _started(runner, stop):
                return 0
            # What was made until now stays: without this each full collection looks at all of it, for 0.1 s and more.
            gc.collect()
            gc.freeze()
            gc.set_threshold(YOUNG)
            assert runner.server is not None
            server = await loop.create_server(Hall(runner.server), sock=listener, backlog=1024)
            host = f"[{settings.host}]" if ":" in settings.host.strip("[]") else settings.host
            print(f"listening on http://{host}:{port}", flush=True)
            await stop.wait()
            log.info("stopping")
            gc.disable()  # the process ends: what thousands of connections leave need not be looked for
        finally:
            if server is not None:
                server.close()
            await runner.cleanup()
    return 0


async def _started(runner: web.AppRunner, stop: asyncio.Event) -> bool:
    """Set the application up, unless a signal comes first."""
    setup = asyncio.ensure_future(runner.setup())
    stopped = asyncio.ensure_future(stop.wait())
    await asyncio.wait({setup, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not setup.done():
        setup.cancel()
        await asyncio.gather(setup, return_exceptions=True)
        return False
    await setup
    return True


COMMANDS = {"serve": Command("run a broker", _arguments, _run)}
