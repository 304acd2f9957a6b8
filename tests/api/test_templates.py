"""Templates on a real broker and Valkey: stored, shown, shared, removed, and submitted with."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from blake3 import blake3
from PIL import Image, PngImagePlugin

from broker.__main__ import main
from broker.jobs.payloads import decode_payload
from broker.jobs.templates import MAX_VERSIONS
from tests.access.conftest import Guarded, guarded
from tests.api.conftest import Broker, own_valkey, start_broker
from tests.support.schema import validator

__all__ = ["guarded", "own_valkey", "start_broker"]

ROOT = Path(__file__).resolve().parents[2]
WORKFLOW = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 255}},
    "2": {
        "class_type": "SaveImage",
        "inputs": {"images": ["1", 0], "filename_prefix": "x"},
        "_meta": {"title": "$name"},
    },
    "7": {"class_type": "LoadImage", "inputs": {"image": "cat.png"}},
}
PARAMS: dict[str, Any] = {
    "size": {"bind": ["1.width", "1.height"], "type": "integer", "minimum": 8, "maximum": 4096, "default": 64},
    "color": {"bind": ["EmptyImage.color"], "type": "seed", "default": -1, "maximum": 0xFFFFFF},
    "start": {"bind": ["7.image"], "type": "image"},
}
TEMPLATE = {"workflow": WORKFLOW, "params": PARAMS, "description": "A square"}
START = {"asset": "blake3:" + "0" * 64}


async def put(broker: Broker, name: str = "square", body: Any = None, status: int = 201) -> dict[str, Any]:
    found, answer = await broker.json("PUT", f"/api/templates/{name}", json=TEMPLATE if body is None else body)
    assert found == status, answer
    return dict(answer)


async def submit(broker: Broker, template: str, params: Any = None, status: int = 201, **more: Any) -> dict[str, Any]:
    payload = {"template": template, **({} if params is None else {"params": params}), **more.pop("payload", {})}
    found, answer = await broker.json("POST", "/api/jobs", json={"payload": payload, **more})
    assert found == status, answer
    return dict(answer)


async def payload_of(broker: Broker, job_id: str) -> dict[str, Any]:
    """What the worker gets."""
    worker = broker.worker("taker", nodes=("EmptyImage", "SaveImage", "LoadImage"))
    await worker.register()
    held = await worker.claim(job_id)
    assert held is not None
    await worker.release(held)
    return dict(decode_payload(held.payload))


async def test_a_template_is_stored_with_versions_and_a_schema(broker: Broker) -> None:
    first = await put(broker)
    assert (first["name"], first["version"]) == ("square", 1)
    jsonschema.Draft202012Validator.check_schema(first["schema"])
    assert first["schema"]["required"] == ["start"]
    assert first["params"]["name"] == {
        "bind": ["2.filename_prefix"],
        "type": "string",
        "default": "x",
        "description": "",
    }
    assert first["params"]["color"]["bind"] == ["1.color"]
    assert (await put(broker, status=200))["version"] == 1, "the same again is no new version"
    changed = {**TEMPLATE, "params": {**PARAMS, "size": {**PARAMS["size"], "default": 32}}}
    assert (await put(broker, body=changed))["version"] == 2
    _, shown = await broker.json("GET", "/api/templates/square@1")
    assert shown["workflow"] == WORKFLOW
    assert (shown["version"], shown["versions"], shown["shared"]) == (1, [1, 2], False)
    assert shown["schema"]["properties"]["size"]["default"] == 64
    _, latest = await broker.json("GET", "/api/templates/square")
    assert latest["schema"]["properties"]["size"]["default"] == 32
    _, listed = await broker.json("GET", "/api/templates")
    assert [(each["name"], each["version"], each["description"]) for each in listed["templates"]] == [
        ("square", 2, "A square")
    ]


async def test_versions_count_up_whatever_happens_at_once(broker: Broker) -> None:
    bodies = [{"workflow": WORKFLOW, "description": str(n)} for n in range(20)]
    answers = await asyncio.gather(*(put(broker, "many", body) for body in bodies))
    assert sorted(answer["version"] for answer in answers) == list(range(1, 21))
    status, removed = await broker.json("DELETE", "/api/templates/many@20")
    assert (status, removed["removed"]) == (200, [20])
    assert (await broker.json("GET", "/api/templates/many@20"))[0] == 404
    assert (await broker.json("GET", "/api/templates/many"))[1]["version"] == 19
    assert (await put(broker, "many", bodies[0] | {"description": "new"}))["version"] == 21, "no number is given twice"
    assert len((await broker.json("DELETE", "/api/templates/many"))[1]["removed"]) == 20
    for method, path in (("GET", "many"), ("GET", "many@1"), ("DELETE", "many"), ("POST", "many/test")):
        assert (await broker.json(method, f"/api/templates/{path}"))[0] == 404
    assert (await broker.json("GET", "/api/templates"))[1] == {"templates": []}
    assert (await put(broker, "many", bodies[0]))["version"] == 22


async def test_versions_have_a_limit(broker: Broker) -> None:
    for n in range(MAX_VERSIONS):
        await put(broker, "x", {"workflow": WORKFLOW, "description": str(n)})
    refused = await put(broker, "x", {"workflow": WORKFLOW, "description": "more"}, 409)
    assert (refused["code"], refused["details"]["reason"]) == ("conflict", "limit")
    assert (await broker.json("DELETE", "/api/templates/x@1"))[0] == 200
    assert (await put(broker, "x", {"workflow": WORKFLOW, "description": "more"}))["version"] == MAX_VERSIONS + 1


async def test_a_job_is_made_from_a_template(broker: Broker) -> None:
    await put(broker)
    accepted = await submit(broker, "square@1", {"size": 128, "start": START, "name": "y"})
    assert accepted["template"] == "square@1"
    seed = accepted["params"]["color"]
    assert 0 <= seed <= 0xFFFFFF
    _, record = await broker.json("GET", f"/api/jobs/{accepted['job_id']}")
    expected = {"size": 128, "color": seed, "start": START, "name": "y"}
    assert (record["template"], record["params"]) == ("square@1", expected)
    payload = await payload_of(broker, accepted["job_id"])
    assert payload["workflow"]["1"]["inputs"] == {"width": 128, "height": 128, "batch_size": 1, "color": seed}
    assert payload["workflow"]["2"]["inputs"] == {"images": ["1", 0], "filename_prefix": "y"}
    assert payload["workflow"]["7"] == WORKFLOW["7"]
    assert payload["inputs"] == {"7.image": START}
    again = await submit(broker, record["template"], record["params"])
    assert again["params"] == expected, "what a record says repeats the job"
    assert (await payload_of(broker, again["job_id"]))["workflow"] == payload["workflow"]


async def test_the_latest_version_is_meant_where_none_is_named(broker: Broker) -> None:
    await put(broker)
    assert (await submit(broker, "square", {"start": START}))["template"] == "square@1"
    await put(broker, body={"workflow": WORKFLOW})
    assert (await submit(broker, "square"))["template"] == "square@2"
    assert (await submit(broker, "square@1", {"start": START}))["template"] == "square@1"


async def test_a_repeated_submit_is_the_first_job_with_its_seed(broker: Broker) -> None:
    await put(broker)
    first = await submit(broker, "square", {"start": START}, idempotency_key="k")
    second = await submit(broker, "square", {"start": START}, idempotency_key="k", status=200)
    assert (second["job_id"], second["duplicate"]) == (first["job_id"], True)
    _, record = await broker.json("GET", f"/api/jobs/{first['job_id']}")
    assert record["params"]["color"] == first["params"]["color"]


async def test_bad_parameters_are_told_all_at_once(broker: Broker) -> None:
    await put(broker)
    bad = {"size": 7, "color": "x", "sise": 5}
    answer = await submit(broker, "square", bad, status=400)
    assert answer["code"] == "bad_message"
    assert {each["field"] for each in answer["details"]["errors"]} == {
        f"payload.params.{name}" for name in ("size", "color", "sise", "start")
    }
    broken: list[Any] = [[], "x", 5]
    for params in broken:
        assert (await submit(broker, "square", params, status=400))["code"] == "bad_message"
    assert (await submit(broker, "square@9", {"start": START}, status=404))["code"] == "not_found"
    assert (await submit(broker, "circle", {}, status=404))["code"] == "not_found"
    both = await submit(broker, "square", {"start": START}, status=400, payload={"workflow": WORKFLOW})
    assert "one of them" in both["error"]


async def test_over_the_socket_and_in_bulk(broker: Broker) -> None:
    await put(broker)
    async with broker.client() as client:
        good = {"payload": {"template": "square", "params": {"start": START}}, "subscribe": False}
        one = await client.ask({"type": "submit_job", **good})
        assert (one["type"], one["template"]) == ("job_accepted", "square@1")
        validator("ServerMessage", "job_accepted").validate(one)
        bad = {"payload": {"template": "circle"}}
        many = await client.ask({"type": "submit_jobs", "jobs": [good, bad, good, {"payload": {"template": 5}}]})
        kinds = [each.get("code") or each["template"] for each in many["results"]]
        assert kinds == ["square@1", "not_found", "square@1", "not_found"]
        rehearsed = await client.ask({"type": "submit_job", **good, "dry_run": True})
        assert rehearsed["dry_run"]
        assert set(rehearsed["params"]) == {"size", "color", "start", "name"}


async def test_binding_can_be_tried(broker: Broker) -> None:
    await put(broker)
    status, found = await broker.json(
        "POST", "/api/templates/square/test", json={"params": {"start": START, "color": 5}}
    )
    assert (status, found["template"], found["inputs"]) == (200, "square@1", {"7.image": START})
    assert found["workflow"]["1"]["inputs"]["color"] == 5
    status, refused = await broker.json("POST", "/api/templates/square/test")
    assert (status, refused["details"]["errors"][0]["field"]) == (400, "payload.params.start")
    assert (await broker.json("GET", "/api/jobs"))[1]["jobs"] == [], "nothing was submitted"


def picture(**texts: Any) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, value in texts.items():
        info.add_text(name, json.dumps(value))
    buffer = io.BytesIO()
    Image.new("RGB", (9, 9)).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


async def test_a_picture_is_a_template(broker: Broker) -> None:
    graph = {**WORKFLOW, "1": {**WORKFLOW["1"], "is_changed": [float("nan")], "_meta": {"title": "$color", "x": 1}}}
    status, stored = await broker.json(
        "PUT", "/api/templates/found", data=picture(prompt=graph, workflow={"nodes": []})
    )
    assert status == 201, stored
    assert set(stored["params"]) == {"color", "name"}
    _, shown = await broker.json("GET", "/api/templates/found")
    assert shown["workflow"]["1"] == {**WORKFLOW["1"], "_meta": {"title": "$color"}}
    for body in (picture(), b"\x89PNG\r\n\x1a\njunk", picture(prompt=[])):
        status, refused = await broker.json("PUT", "/api/templates/bad", data=body)
        assert (status, refused["code"]) == (400, "bad_message")


UI = {
    "version": 0.4,
    "nodes": [
        {"id": 1, "type": "EmptyImage", "mode": 0, "widgets_values": [64, 64, 1, 255], "outputs": [{"type": "IMAGE"}]},
        {"id": 2, "type": "SaveImage", "mode": 0, "title": "$name", "widgets_values": ["x"],
         "inputs": [{"name": "images", "type": "IMAGE", "link": 1}]},
    ],
    "links": [[1, 1, 0, 2, 0, "IMAGE"]],
}  # fmt: skip


async def test_an_editor_s_workflow_needs_a_fleet_that_knows_its_nodes(broker: Broker) -> None:
    for path, body in (("/api/templates/ui", {"workflow": UI}), ("/api/jobs", {"payload": {"workflow": UI}})):
        status, refused = await broker.json("PUT" if "templates" in path else "POST", path, json=body)
        assert (status, refused["code"], refused["details"]["reason"]) == (400, "invalid_workflow", "ui_format")
        assert "EmptyImage, SaveImage" in refused["error"]


def binding(place: str, *names: str) -> str:
    return json.dumps({"workflow": WORKFLOW, "params": {name: {"bind": [place]} for name in names}})


HOSTILE: dict[str, tuple[str, str, int]] = {
    "NaN": ("a", '{"workflow":{"1":{"class_type":"A","inputs":{"x":NaN}}}}', 400),
    "a name twice": ("a", '{"workflow":{"1":{"class_type":"A","inputs":{}}},"params":{"x":{},"x":{}}}', 400),
    "too deep": ("a", '{"workflow":{"1":{"class_type":"A","inputs":{"x":' + "[" * 99 + "]" * 99 + "}}}}", 400),
    "too large": ("a", '{"workflow":{"1":{"class_type":"A","inputs":{"x":"' + "y" * 1_100_000 + '"}}}}', 413),
    "no workflow": ("a", '{"params":{}}', 400),
    "an empty workflow": ("a", '{"workflow":{}}', 400),
    "a list": ("a", "[]", 400),
    "proto": ("__proto__", json.dumps(TEMPLATE), 400),
    "a version": ("a@3", json.dumps(TEMPLATE), 400),
    "dots": ("..%2f..", json.dumps(TEMPLATE), 400),
    "a parameter named proto": ("a", binding("1.width", "__proto__"), 400),
    "a bind into nowhere": ("a", binding("1.__class__", "x"), 400),
    "a bind over a link": ("a", binding("2.images", "x"), 400),
    "many parameters": ("a", binding("1.width", *(f"p{i}" for i in range(257))), 400),
}  # fmt: skip


@pytest.mark.parametrize(("name", "body", "status"), HOSTILE.values(), ids=HOSTILE.keys())
async def test_hostile_templates_are_refused(broker: Broker, name: str, body: str, status: int) -> None:
    found, answer = await broker.json("PUT", f"/api/templates/{name}", data=io.BytesIO(body.encode()))
    assert (found, answer["type"]) == (status, "error"), answer
    assert (await broker.json("GET", "/api/templates"))[1] == {"templates": []}


async def test_a_value_is_a_value_and_no_link(broker: Broker) -> None:
    await put(broker)
    for value in (["1", 0], {"class_type": "X"}, None):
        answer = await submit(broker, "square", {"start": START, "name": value}, status=400)
        assert answer["details"]["errors"][0]["field"] == "payload.params.name"
    big = {"start": START, "name": "x" * 1_048_400}
    assert (await submit(broker, "square", big, status=413))["code"] == "payload_too_large"


async def test_a_tenant_has_its_own_and_the_shared(guarded: Guarded) -> None:
    ann, bob = [await guarded.key("submit", "read", tenant=name) for name in ("ann", "bob")]
    admin = await guarded.key("admin", tenant="ops")
    mine = {"workflow": WORKFLOW, "description": "ann's"}
    assert (await guarded.ask(ann, "PUT", "/api/templates/x", json=mine))[0] == 201
    for method, path in (("GET", "x"), ("GET", "x@1"), ("DELETE", "x"), ("POST", "x/test")):
        status, answer = await guarded.ask(bob, method, f"/api/templates/{path}")
        nothing = await guarded.ask(bob, method, f"/api/templates/{path.replace('x', 'nothing', 1)}")
        assert (status, answer["error"].replace("'x", "'nothing")) == (404, nothing[1]["error"])
    job = {"payload": {"template": "x"}}
    assert (await guarded.ask(bob, "POST", "/api/jobs", json=job))[1]["code"] == "not_found"
    assert (await guarded.ask(bob, "GET", "/api/templates"))[1] == {"templates": []}
    assert (await guarded.ask(bob, "PUT", "/api/templates/x?shared=true", json=mine))[0] == 403
    shared = {"workflow": WORKFLOW, "description": "everybody's"}
    assert (await guarded.ask(admin, "PUT", "/api/templates/x?shared=true", json=shared))[0] == 201
    assert (await guarded.ask(admin, "PUT", "/api/templates/y?shared=true", json=shared))[0] == 201
    assert (await guarded.ask(admin, "PUT", "/api/templates/y?shared=maybe", json=shared))[0] == 400
    seen = {}
    for name, key in (("ann", ann), ("bob", bob)):
        _, listed = await guarded.ask(key, "GET", "/api/templates")
        seen[name] = [(each["name"], each["description"], each["shared"]) for each in listed["templates"]]
    assert seen["ann"] == [("x", "ann's", False), ("y", "everybody's", True)], "one's own hides the shared one"
    assert seen["bob"] == [("x", "everybody's", True), ("y", "everybody's", True)]
    assert (await guarded.ask(bob, "POST", "/api/jobs", json=job))[0] == 201
    assert (await guarded.ask(bob, "DELETE", "/api/templates/y"))[0] == 404
    assert (await guarded.ask(bob, "DELETE", "/api/templates/y?shared=true"))[0] == 403
    assert (await guarded.ask(admin, "DELETE", "/api/templates/y?shared=true"))[0] == 200
    assert len((await guarded.ask(ann, "GET", "/api/templates"))[1]["templates"]) == 1


async def test_the_example_in_the_documents_works(broker: Broker) -> None:
    folder = ROOT / "docs/examples"
    example = json.loads((folder / "templates/txt2img.json").read_text())
    assert example["workflow"] == json.loads((folder / "workflows/text-to-image.json").read_text())
    await put(broker, "txt2img", example)
    accepted = await submit(broker, "txt2img@1", {"prompt": "a cat", "steps": 30, "seed": -1})
    assert accepted["params"].keys() == example["params"].keys()


async def command(broker: Broker, *words: str, code: int = 0) -> str:
    """What the command line prints, to stderr when it fails."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        found = await asyncio.to_thread(main, [*words, "--broker", broker.url])
    assert found == code, err.getvalue()
    return (err if code else out).getvalue()


async def test_the_command_line(broker: Broker, tmp_path: Path) -> None:
    file, image = tmp_path / "workflow.json", tmp_path / "made.png"
    file.write_text(json.dumps(WORKFLOW))
    image.write_bytes(picture(prompt=WORKFLOW))
    start = tmp_path / "start.png"
    start.write_bytes(picture())
    binds = ("--param", "size:integer=1.width", "--param", "start:image=LoadImage.image")
    assert "square@1" in await command(
        broker, "templates", "add", "square", str(file), *binds, "--description", "A square"
    )
    assert "found@1" in await command(broker, "templates", "add", "found", str(image))
    listed = await command(broker, "templates", "list")
    assert "square  1" in listed
    assert "A square" in listed
    shown = await command(broker, "templates", "show", "square")
    assert "required" in shown
    given = ("--param", "size=32", "--param", f"start={start}")
    tried = await command(broker, "templates", "test", "square", *given)
    assert '"width": 32' in tried
    assert "waits: " in tried, "nobody is there to run it"
    accepted = await command(broker, "submit", "--template", "square", *given)
    _, record = await broker.json("GET", f"/api/jobs/{accepted.split()[2]}")
    assert (record["template"], record["params"]["size"]) == ("square@1", 32)
    named = {"asset": f"blake3:{blake3(start.read_bytes()).hexdigest()}", "filename": "start.png"}
    assert (await payload_of(broker, record["job_id"]))["inputs"] == {"7.image": named}, "the file was uploaded"
    wrong = await command(broker, "submit", "--template", "square", "--param", "size=big", code=1)
    assert "payload.params.size" in wrong
    assert "payload.params.start" in wrong, "all faults are told"
    assert "1 removed" in await command(broker, "templates", "remove", "square")
    assert "no workflow template" in await command(broker, "templates", "show", "square", code=1)
    await command(broker, "templates", "add", "x", str(tmp_path / "none.json"), code=1)


async def test_files_of_a_workflow_on_the_command_line(broker: Broker, tmp_path: Path) -> None:
    """By path (uploaded first, so it may be larger than a payload), by URL, by hash, or as the message would say it."""
    graph, large = tmp_path / "graph.json", tmp_path / "large.png"
    graph.write_text(json.dumps({**WORKFLOW, "8": WORKFLOW["7"], "9": WORKFLOW["7"]}))
    large.write_bytes(picture() + bytes(3 << 20))
    size = json.dumps({"base64": "aGk=", "size": 2})
    given = (f"7.image={large}", "8.image=http://192.0.2.1/cat.png?a=b", f"9.image={size}")
    accepted = await command(broker, "submit", str(graph), *(word for each in given for word in ("--input", each)))
    digest = f"blake3:{blake3(large.read_bytes()).hexdigest()}"
    payload = await payload_of(broker, accepted.split()[2])
    assert payload["inputs"] == {
        "7.image": {"asset": digest, "filename": "large.png"},
        "8.image": {"url": "http://192.0.2.1/cat.png?a=b"},
        "9.image": {"base64": "aGk=", "size": 2},
    }
    again = await command(broker, "submit", str(graph), "--input", f"7.image={digest}")
    assert (await payload_of(broker, again.split()[2]))["inputs"] == {"7.image": {"asset": digest}}
    for wrong, words in (("7.image", "NODE.INPUT"), ("7.image=/none.png", "No such file"), ("7.image={", "JSON")):
        assert words in await command(broker, "submit", str(graph), "--input", wrong, code=1)
