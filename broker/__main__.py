"""The command line: ``python -m broker``."""

from __future__ import annotations

import argparse
import importlib
import sys

from pydantic import ValidationError

from broker.cli.command import Command
from broker.errors import ConfigurationError, EmqError

MODULES = (
    "serve", "submit", "jobs", "templates", "workers", "functions", "pause", "transfer", "keys", "users", "tenants",
    "fsck", "doctor", "demo", "simulate",
)  # fmt: skip
"""Modules of ``broker/cli``; each has a ``COMMANDS`` dictionary of sub-commands."""


def commands() -> dict[str, Command]:
    """Every sub-command by name."""
    found: dict[str, Command] = {}
    for name in MODULES:
        found.update(importlib.import_module(f"broker.cli.{name}").COMMANDS)
    return found


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command; errors that a person can act on end in one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m broker", description="A job queue for fleets of ComfyUI servers.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    known = commands()
    for name, command in known.items():
        command.configure(subparsers.add_parser(name, help=command.help, description=command.help))
    args = parser.parse_args(argv)
    try:
        return known[args.command].run(args)
    except ConfigurationError as error:
        print(f"emq: {error}", file=sys.stderr)
    except EmqError as error:
        print(f"emq: {error.code}: {error.message}", file=sys.stderr)
        for each in _further(error):
            print(f"emq: {each}", file=sys.stderr)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            where = ".".join(str(part) for part in problem["loc"])
            print(f"emq: setting {where}: {problem['msg']}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _further(error: EmqError) -> list[str]:
    """The other faults of a message, beside the first, which the error itself tells."""
    errors = error.details.get("errors")
    found = [each for each in errors if isinstance(each, dict)] if isinstance(errors, list) else []
    return [f"{each.get('field')}: {each.get('problem')}" for each in found[1:]]


if __name__ == "__main__":
    sys.exit(main())
