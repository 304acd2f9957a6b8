"""``demo``: everything on this machine, for a first look."""

from __future__ import annotations

import argparse

from broker.cli.command import Command


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--once", action="store_true", help="end after the first picture")
    parser.add_argument("--output", metavar="DIR", help="where pictures go (./demo)")


def _run(args: argparse.Namespace) -> int:
    # Not needed by any other command, and it imports a lot.
    from broker.trial.demo import main  # noqa: PLC0415

    return main([*(["--once"] if args.once else []), *(["--output", args.output] if args.output else [])])


COMMANDS = {"demo": Command("broker, Valkey and a real ComfyUI make a picture", _arguments, _run)}
