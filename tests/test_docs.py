"""The pages say what the code does: settings, links, examples, the Redis configuration."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from pydantic import AliasChoices
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from broker.app import create_app
from broker.errors import Unavailable
from broker.protocol import gateway, messages, records
from broker.protocol.schema import EVENTS, REPLIES
from broker.queue import startup
from broker.settings import Settings, default_data_dir
from tests.support.servers import free_port, redis7_binary, valkey_binary
from tests.support.tables import described_settings
from tests.support.waiting import wait_until

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
UNSAID = {"type", "message_id", "timestamp"}
"""Fields of every message, described once."""
NOTHING = "\N{EN DASH}"
A_SETTING = re.compile(r"(EMQ|REDIS|COMFYUI|WORKER|MACHINE|GPU|LOG)_[A-Z_]*[A-Z]|COMFYUI")


def name_of(field: FieldInfo) -> str:
    assert isinstance(field.validation_alias, AliasChoices)
    return str(field.validation_alias.choices[0])


def default_of(field: FieldInfo) -> str:
    """A default as the page shows it."""
    if field.default is PydanticUndefined:
        return "~/.local/share/emq"
    if field.default in (None, ""):
        return NOTHING
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def test_every_setting_of_a_broker_is_described_with_its_default() -> None:
    assert described_settings("Broker") == {
        name_of(field): default_of(field) for field in Settings.model_fields.values()
    }


def test_every_setting_of_a_worker_is_described() -> None:
    tree = ast.parse((ROOT / "comfyui_emq_node/settings.py").read_text())
    read = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    text = (ROOT / "docs/configuration.md").read_text().partition("## Worker")[2].partition("\n## ")[0]
    described = set(re.findall(r"`([A-Z_]+)`", text))
    assert set(filter(A_SETTING.fullmatch, read)) == set(filter(A_SETTING.fullmatch, described))


def test_every_variable_in_the_code_is_described() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    for file in [*ROOT.glob("broker/**/*.py"), *ROOT.glob("comfyui_emq_node/**/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            value = node.value if isinstance(node, ast.Constant) else None
            if isinstance(value, str) and A_SETTING.fullmatch(value):
                assert f"`{value}`" in text, f"{value} of {file.relative_to(ROOT)} is not in docs/configuration.md"


def test_an_empty_variable_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields.values():
        monkeypatch.setenv(name_of(field), "")
    assert Settings() == Settings.model_construct(data=default_data_dir())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)
    for target in (first or second for first, second in targets):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.name}: {target}"


def test_example_workflows_are_those_of_the_code() -> None:
    from broker.trial.picture import paper_cut
    from broker.trial.workflows import plain_image, text_to_image

    folder = ROOT / "docs/examples/workflows"
    made = {"paper-cut": paper_cut(7), "text-to-image": text_to_image(7), "plain-image": plain_image()}
    assert {file.stem: json.loads(file.read_text()) for file in folder.glob("*.json")} == made


def test_the_example_environment_names_every_setting() -> None:
    named = re.findall(r"^#?([A-Z_]+)=", (ROOT / "deploy/.env.example").read_text(), re.MULTILINE)
    assert sorted(named) == sorted({*described_settings("Broker"), *described_settings("Worker")})


@pytest.fixture(params=[valkey_binary, redis7_binary], ids=["valkey", "redis7"])
def configured_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A server started with ``deploy/redis.conf`` as it is."""
    shutil.copy(ROOT / "deploy/redis.conf", tmp_path)
    port = free_port()
    command = [request.param(), "redis.conf", "--port", str(port), "--dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        yield f"redis://127.0.0.1:{port}/0"
        server.kill()


async def test_the_redis_configuration_is_what_a_broker_accepts(configured_server: str) -> None:
    async def connected() -> bool:
        try:
            async with startup.redis(Settings(redis_url=configured_server)):
                return True
        except Unavailable:
            return False

    await wait_until(connected, 20, "a broker accepts the server")


def words_of(page: str) -> set[str]:
    """Everything that a page shows as code or as JSON."""
    return set(re.findall(r"[a-z0-9_]+", " ".join(re.findall(r"`[^`]+`|```.*?```", page, re.DOTALL))))


def test_the_protocol_page_has_every_message_and_field() -> None:
    page = (ROOT / "docs/protocol.md").read_text()
    words = words_of(page)
    for message in (*messages.CLIENT_MESSAGES, *gateway.WORKER_MESSAGES, *gateway.GATEWAY_REPLIES, *EVENTS, *REPLIES):
        missing = {*get_args(message.model_fields["type"].annotation), *message.model_fields} - words
        assert not missing - UNSAID, message.__name__
    for codes in (records.ErrorCode, records.FailureCode, records.WaitingCode):
        assert set(get_args(codes)) <= words


def test_the_pages_of_protocol_and_dashboard_have_every_route(tmp_path: Path) -> None:
    page = "".join((ROOT / "docs" / name).read_text() for name in ("protocol.md", "dashboard.md"))
    for resource in create_app(Settings(data=tmp_path)).router.resources():
        path = resource.canonical
        # The upload path is given to a worker with its job; static files belong to the page.
        if "{attempt}" not in path and not path.startswith("/static"):
            short = re.sub(r"^/api/(jobs|workers)/\{\w+\}(?=/(cancel|retry|priority|pause|resume|drain)$)", "", path)
            assert f"{path}`" in page or f"`{short}`" in page, path
