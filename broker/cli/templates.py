"""``templates``: store, list, show, try and remove workflow templates."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from broker.cli import client
from broker.cli.client import table
from broker.cli.command import Command
from broker.cli.files import source
from broker.cli.watch import describe
from broker.client import Client
from broker.errors import BadMessage, EmqError
from broker.jobs import pictures, strict
from broker.protocol.messages import JobAccepted
from broker.protocol.templates import MEDIA, ParamType

MAX_TEXT = 16 << 20


def _arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add = actions.add_parser("add", help="store a workflow as a template, or a new version of it")
    add.add_argument("name")
    add.add_argument(
        "file", help="a workflow (JSON), a template (JSON with workflow and params), or a PNG or WebP of one"
    )
    add.add_argument("--params", metavar="FILE", help='JSON: {"prompt": {"bind": ["6.text"], "type": "string"}}')
    add.add_argument(
        "--param", action="append", default=[], metavar="NAME[:TYPE]=NODE.INPUT", help="a parameter; repeatable"
    )
    add.add_argument("--description", help="what it makes")
    actions.add_parser("list", help="the templates that there are")
    show = actions.add_parser("show", help="a template's parameters")
    trial = actions.add_parser("test", help="bind parameters and say what would happen; nothing is submitted")
    remove = actions.add_parser("remove", help="remove a version, or all of them")
    for action in (show, trial, remove):
        action.add_argument("template", metavar="NAME[@VERSION]")
    add_values(trial)
    for action in (add, remove):
        action.add_argument("--shared", action="store_true", help="for every tenant (administrators)")
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", help="print the broker's answer as it is")
        client.add_arguments(action)


def add_values(parser: argparse.ArgumentParser) -> None:
    """The argument that gives parameters their values."""
    parser.add_argument(
        "--param",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter (of a file: its path, a URL, or blake3:…); repeatable",
    )


async def _templates(emq: Client, args: argparse.Namespace) -> int:
    answer = await _ACTIONS[args.action](emq, args)
    print(json.dumps(answer, ensure_ascii=False) if args.json else _TEXTS[args.action](answer))
    return 0


def address(reference: str) -> str:
    """Where a broker has a template."""
    return f"/api/templates/{quote(reference, safe='@')}"


async def _add(emq: Client, args: argparse.Namespace) -> Any:
    body = _template(read(args.file), args.file)
    if args.params:
        body["params"] = {**body.get("params", {}), **_object(read(args.params), args.params)}
    body["params"] = {**body.get("params", {}), **dict(map(_bind, args.param))}
    if args.description is not None:
        body["description"] = args.description
    return await emq.request("PUT", address(args.name), body, **_shared(args))


async def _list(emq: Client, args: argparse.Namespace) -> Any:
    return await emq.request("GET", "/api/templates")


async def _show(emq: Client, args: argparse.Namespace) -> Any:
    return await emq.request("GET", address(args.template))


async def _test(emq: Client, args: argparse.Namespace) -> Any:
    params = await values(emq, args.template, args.param)
    bound = await emq.request("POST", address(args.template) + "/test", {"params": params})
    payload = {"template": bound["template"], "params": params}
    return {**bound, "submit": await emq.request("POST", "/api/jobs", {"payload": payload, "dry_run": True})}


async def _remove(emq: Client, args: argparse.Namespace) -> Any:
    return await emq.request("DELETE", address(args.template), **_shared(args))


def _shared(args: argparse.Namespace) -> dict[str, Any]:
    return {"shared": "true"} if args.shared else {}


# -- what is given ----------------------------------------------------------------------------------------------------


def read(path: str) -> bytes:
    """A file's bytes, ``-`` for stdin; raises ``BadMessage``."""
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise BadMessage(f"Cannot read {path}: {error.strerror}.") from None


def _object(raw: bytes, path: str) -> dict[str, Any]:
    try:
        found = strict.parse(raw)
    except EmqError as error:
        raise BadMessage(f"{path}: {error.message}") from None
    if not isinstance(found, dict):
        raise BadMessage(f"{path} must be a JSON object.")
    return found


def _template(raw: bytes, path: str) -> dict[str, Any]:
    """A template's message from any of its sources."""
    if pictures.is_picture(raw):
        texts = pictures.payload_of(raw, MAX_TEXT)
        return {"workflow": texts.get("prompt") or texts.get("workflow")}
    found = _object(raw, path)
    workflow = found.get("workflow")
    return found if isinstance(workflow, dict) and "class_type" not in workflow else {"workflow": found}


def _bind(text: str) -> tuple[str, dict[str, Any]]:
    what, given, place = text.partition("=")
    name, _, kind = what.partition(":")
    if not given or (kind and kind not in get_args(ParamType)):
        raise BadMessage(f"--param takes NAME[:TYPE]=NODE.INPUT, types {', '.join(get_args(ParamType))}; not {text!r}.")
    return name, {"bind": [place], "type": kind or "string"}


async def values(emq: Client, reference: str, given: list[str]) -> dict[str, Any]:
    """Parameters as the template's types want them; raises ``BadMessage``."""
    if not given:
        return {}
    known = (await emq.request("GET", address(reference)))["params"]
    found: dict[str, Any] = {}
    for text in given:
        name, is_given, value = text.partition("=")
        if not is_given:
            raise BadMessage(f"--param takes NAME=VALUE, not {text!r}.")
        about = known.get(name, {})
        found[name] = await source(emq, value) if about.get("type") in MEDIA else _value(value, about)
    return found


def _value(text: str, about: dict[str, Any]) -> Any:
    kind = about.get("type")
    if kind == "string" or (kind == "choice" and text in about.get("choices", ())):
        return text
    try:
        return strict.parse(text)
    except EmqError:
        return text


# -- what is printed --------------------------------------------------------------------------------------------------


def _stored(answer: dict[str, Any]) -> str:
    how = " (converted from the editor's format)" if answer.get("converted") else ""
    return f"{answer['name']}@{answer['version']}{how}\n{_parameters(answer)}"


def _listing(answer: dict[str, Any]) -> str:
    rows = [[t["name"], t["version"], "shared" if t["shared"] else "", t["description"]] for t in answer["templates"]]
    return table(rows, ["NAME", "VERSION", "", "DESCRIPTION"]) if rows else "no templates"


def _parameters(answer: dict[str, Any]) -> str:
    rows = [
        [name, p["type"], json.dumps(p["default"], ensure_ascii=False) if "default" in p else "required", _limits(p),
         " ".join(p["bind"]), p["description"]]
        for name, p in answer["params"].items()
    ]  # fmt: skip
    return table(rows, ["PARAMETER", "TYPE", "DEFAULT", "TAKES", "SETS", "DESCRIPTION"]) if rows else "no parameters"


def _limits(about: dict[str, Any]) -> str:
    if about.get("choices"):
        return ", ".join(map(str, about["choices"][:8])) + (" …" if len(about["choices"]) > 8 else "")
    low, high = about.get("minimum"), about.get("maximum")
    return "" if low is None and high is None else f"{'' if low is None else low}…{'' if high is None else high}"


def _trial(answer: dict[str, Any]) -> str:
    head = [f"{name} = {json.dumps(value, ensure_ascii=False)[:200]}" for name, value in answer["params"].items()]
    waits = describe(JobAccepted.model_validate(answer["submit"]))[1:]
    workflow = json.dumps(answer["workflow"], indent=2, ensure_ascii=False)
    return "\n".join([answer["template"], *head, *(waits or ["a live worker could run it"]), workflow])


def _removed(answer: dict[str, Any]) -> str:
    return f"{answer['name']}: {len(answer['removed'])} removed ({', '.join(map(str, answer['removed']))})"


_ACTIONS = {"add": _add, "list": _list, "show": _show, "test": _test, "remove": _remove}
_TEXTS = {"add": _stored, "list": _listing, "show": _stored, "test": _trial, "remove": _removed}

COMMANDS = {
    "templates": Command(
        "workflow templates: add, list, show, test, remove", _arguments, lambda a: client.run(_templates, a)
    )
}
