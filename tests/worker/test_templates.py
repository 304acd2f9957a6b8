"""Templates on a real ComfyUI: the pack's own nodes, the editor's format, a picture that was made."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image
from playwright.async_api import Page

from broker.trial.picture import paper_cut
from broker.trial.workflows import text_to_image
from tests.support.browser import browser_page, open_comfyui
from tests.support.comfyui import Client, ComfyProcess, node
from tests.support.files import picture

GRAPH: dict[str, Any] = {
    "1": node("EMQTextInput", name="prompt", value="a cat", description="What to draw"),
    "2": node("EMQNumberInput", name="size", value=64.0, minimum=16.0, maximum=256.0, whole=True),
    "3": node("EMQSeedInput", name="seed", value=-1),
    "4": node("EMQChoiceInput", name="sampler", value="euler", choices="euler\nheun"),
    "5": node("CheckpointLoaderSimple", ckpt_name="emq-tiny.safetensors"),
    "6": node("CLIPTextEncode", clip=["5", 1], text=["1", 0]),
    "7": node("EmptySD3LatentImage", width=["2", 1], height=["2", 1], batch_size=1),
    "8": node(
        "KSampler", model=["5", 0], positive=["6", 0], negative=["6", 0], latent_image=["7", 0], seed=["3", 0], steps=1,
        cfg=1.0, sampler_name=["4", 0], scheduler="simple", denoise=1.0,
    ),
    "9": node("VAEDecode", samples=["8", 0], vae=["5", 2]),
    "10": node("EMQOutput", name="picture", images=["9", 0], text=["1", 0]),
}  # fmt: skip


async def put(client: Client, name: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = await client.json("PUT", f"/api/templates/{name}", body)
    assert status in (200, 201), answer
    return dict(answer)


async def run(client: Client, comfy: ComfyProcess, payload: dict[str, Any]) -> dict[str, Any]:
    await client.until_counted_with(comfy)
    body = {"payload": payload, "requirements": {"tags": [comfy.worker_id]}, "max_attempts": 1}
    status, answer = await client.json("POST", "/api/jobs", body)
    assert status == 201, answer
    assert answer["waiting_for"] == []
    record = await client.until(answer["job_id"])
    assert record["status"] == "completed", record
    return record


async def image_of(client: Client, record: dict[str, Any]) -> Image.Image:
    (made,) = [each for each in record["result"]["outputs"] if each["kind"] == "image"]
    return Image.open(io.BytesIO(await client.fetch(made)))


async def test_the_pack_s_nodes_make_a_template_that_runs(client: Client, comfy: ComfyProcess) -> None:
    stored = await put(client, "own-nodes", {"workflow": GRAPH})
    assert {name: (p["type"], p["default"]) for name, p in stored["params"].items()} == {
        "prompt": ("string", "a cat"), "size": ("integer", 64), "seed": ("seed", -1), "sampler": ("choice", "euler"),
    }  # fmt: skip
    assert stored["outputs"] == {"picture": "10"}
    params = {"prompt": "a dog", "size": 32, "seed": -1, "sampler": "heun"}
    record = await run(client, comfy, {"template": "own-nodes", "params": params})
    assert record["params"] == {**params, "seed": record["params"]["seed"]}
    image = await image_of(client, record)
    assert image.size == (32, 32)
    assert {each["node_id"] for each in record["result"]["outputs"]} == {"10"}
    assert [each["text"] for each in record["result"]["outputs"] if each["kind"] == "text"] == ["a dog"]
    again = await run(client, comfy, {"template": record["template"], "params": record["params"]})
    assert (await image_of(client, again)).tobytes() == image.tobytes(), "the recorded seed repeats the picture"
    status, refused = await client.json(
        "POST", "/api/jobs", {"payload": {"template": "own-nodes", "params": {"size": 5}}}
    )
    assert (status, refused["details"]["errors"][0]["field"]) == (400, "payload.params.size")


async def test_the_pack_s_nodes_work_without_a_template(client: Client, comfy: ComfyProcess) -> None:
    await run(client, comfy, {"workflow": GRAPH})
    for number, change in (("4", {"value": "dpm"}), ("2", {"value": 8.0})):
        wrong = {**GRAPH, number: node(GRAPH[number]["class_type"], **{**GRAPH[number]["inputs"], **change})}
        record = await client.run(wrong, worker=comfy, max_attempts=1)
        assert (record["status"], record["error"]["code"]) == ("failed", "validation_failed"), change


async def test_a_picture_is_a_parameter(client: Client, comfy: ComfyProcess) -> None:
    graph = {
        "1": node("EMQImageInput", name="start", image="none.png"),
        "2": node("ImageInvert", image=["1", 0]),
        "3": node("EMQOutput", name="inverted", images=["2", 0]),
    }
    stored = await put(client, "invert", {"workflow": graph})
    assert stored["schema"]["required"] == ["start"]
    start = {"base64": base64.b64encode(picture((255, 0, 10))).decode(), "filename": "a.png"}
    record = await run(client, comfy, {"template": "invert", "params": {"start": start}})
    assert record["params"] == {"start": {"filename": "a.png"}}
    assert (await image_of(client, record)).getpixel((1, 1)) == (0, 255, 245)


def slot(name: str, kind: str, link: int | None, *, widget: bool = False) -> dict[str, Any]:
    return {"name": name, "type": kind, "link": link, **({"widget": {"name": name}} if widget else {})}


def ui(number: int, kind: str, values: list[Any], *inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"id": number, "type": kind, "mode": 0, "widgets_values": values, "inputs": list(inputs), **more}


UI: dict[str, Any] = {
    "version": 0.4,
    "nodes": [
        ui(4, "CheckpointLoaderSimple", ["emq-tiny.safetensors"]),
        ui(5, "EmptySD3LatentImage", [512, 512, 1], slot("width", "INT", 11, widget=True),
           slot("height", "INT", 12, widget=True)),
        ui(6, "CLIPTextEncode", ["a cat"], slot("clip", "CLIP", 1), title="$prompt"),
        ui(7, "CLIPTextEncode", [""], slot("clip", "CLIP", 2)),
        ui(3, "KSampler", [5, "randomize", 1, 1, "euler", "simple", 1], slot("model", "MODEL", 3),
           slot("positive", "C", 4), slot("negative", "C", 5), slot("latent_image", "LATENT", 6),
           title="$seed $sampler.sampler_name"),
        ui(8, "VAEDecode", [], slot("samples", "LATENT", 7), slot("vae", "VAE", 8)),
        ui(12, "ImageInvert", [], slot("image", "IMAGE", 9), mode=4, outputs=[{"name": "IMAGE", "type": "IMAGE"}]),
        ui(9, "SaveImage", ["ui"], slot("images", "IMAGE", 10)),
        ui(10, "PrimitiveNode", [48, "fixed"]),
        ui(11, "Reroute", [], slot("", "*", 13)),
        ui(13, "PreviewImage", [], slot("images", "IMAGE", 14), mode=2),
        ui(14, "Note", ["a note"]),
    ],
    "links": [
        [1, 4, 1, 6, 0, "CLIP"], [2, 4, 1, 7, 0, "CLIP"], [3, 4, 0, 3, 0, "MODEL"], [4, 6, 0, 3, 1, "C"],
        [5, 7, 0, 3, 2, "C"], [6, 5, 0, 3, 3, "LATENT"], [7, 3, 0, 8, 0, "LATENT"], [8, 11, 0, 8, 1, "VAE"],
        [9, 8, 0, 12, 0, "IMAGE"], [10, 12, 0, 9, 0, "IMAGE"], [11, 10, 0, 5, 0, "INT"], [12, 10, 0, 5, 1, "INT"],
        [13, 4, 2, 11, 0, "VAE"], [14, 8, 0, 13, 0, "IMAGE"],
    ],
}  # fmt: skip


async def test_an_editor_s_workflow_is_converted_and_runs(client: Client, comfy: ComfyProcess) -> None:
    stored = await put(client, "from-the-editor", {"workflow": UI})
    assert stored["converted"]
    assert {name: p["type"] for name, p in stored["params"].items()} == {
        "prompt": "string", "seed": "seed", "sampler": "choice",
    }  # fmt: skip
    _, shown = await client.json("GET", "/api/templates/from-the-editor")
    graph = {n: {"class_type": each["class_type"], "inputs": each["inputs"]} for n, each in shown["workflow"].items()}
    expected = text_to_image(seed=5, steps=1, size=48)
    expected["6"]["inputs"]["text"], expected["9"]["inputs"]["filename_prefix"] = "a cat", "ui"
    assert graph == expected, "as ComfyUI's own page would have exported it"
    record = await run(client, comfy, {"template": "from-the-editor", "params": {"sampler": "heun"}})
    assert (await image_of(client, record)).size == (48, 48)
    made = await run(client, comfy, {"workflow": UI})
    image = await image_of(client, made)
    assert "workflow" in image.info, "the picture opens in the editor again"
    (output,) = made["result"]["outputs"]
    async with client.session.put("/api/templates/from-a-picture", data=await client.fetch(output)) as answer:
        stored = await answer.json()
        assert answer.status == 201, stored
    assert set(stored["params"]) == {"prompt", "seed", "sampler"}, "the titles are in the picture too"
    record = await run(client, comfy, {"template": "from-a-picture", "params": {"seed": 5}})
    assert (await image_of(client, record)).tobytes() == image.tobytes()


SUBGRAPH = """() => {
  const graph = window.app.graph, types = ["KSampler", "EmptySD3LatentImage", "VAEDecode"];
  graph.convertToSubgraph(new Set(graph.nodes.filter(n => types.includes(n.type))));
}"""
PROMOTE = """() => {
  const node = window.app.graph.nodes.find(n => n.subgraph);
  const sampler = node.subgraph.nodes.find(n => n.type === "KSampler");
  node.subgraph.inputNode.emptySlot.connect(sampler.inputs[sampler.inputs.findIndex(i => i.name === "steps")], sampler);
  node.widgets.find(w => w.name === "steps").value = 33;
}"""
CLONE = """() => {
  const graph = window.app.graph, node = graph.nodes.find(n => n.subgraph), copy = node.clone();
  graph.add(copy);
  copy.widgets.find(w => w.name === "steps").value = 44;
}"""
EXPORT = """async () => {
  const made = await window.app.graphToPrompt();
  return JSON.parse(JSON.stringify({ workflow: made.workflow, output: made.output }));
}"""


async def test_what_the_page_saves_becomes_what_the_page_exports(client: Client, comfy: ComfyProcess) -> None:
    """ComfyUI's own page is the authority: it saves each graph in both formats."""

    async def same(page: Page, what: str) -> None:
        made = await page.evaluate(EXPORT)
        await put(client, "saved", {"workflow": made["workflow"]})
        _, shown = await client.json("GET", "/api/templates/saved")
        mine = {n: (each["class_type"], each["inputs"]) for n, each in shown["workflow"].items()}
        assert mine == {n: (each["class_type"], each["inputs"]) for n, each in made["output"].items()}, what

    await comfy.post("/settings", {"Comfy.TutorialCompleted": True})
    faults: list[str] = []
    async with browser_page(faults) as page:
        await open_comfyui(page, comfy.url, faults)
        await page.evaluate("graph => window.app.loadGraphData(graph)", UI)
        await same(page, "primitive, reroute, muted, bypassed")
        for graph in (GRAPH, paper_cut(7), text_to_image(5)):
            await page.evaluate("graph => window.app.loadApiJson(graph, 'test')", graph)
            await same(page, "a graph from the API format")
        for script in (SUBGRAPH, PROMOTE, CLONE):
            await page.evaluate(script)
            await same(page, script)
