"""Templates: what a graph declares, where a bind leads, and what a parameter takes."""

from __future__ import annotations

import copy
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import BadMessage, PayloadTooLarge
from broker.jobs import strict
from broker.jobs.ranges import ClassRanges
from broker.jobs.templates import Bound, Loaded, Templates, _parameters, parse_reference
from broker.jobs.templates_graph import bound, declared, places
from broker.jobs.templates_params import NOTHING, Faults, Parameter, restored, schema, stored, values
from broker.jobs.workflow import check
from broker.protocol.messages import InputFile
from broker.protocol.templates import PutTemplate

SAMPLER = ClassRanges(
    required=frozenset(),
    numbers={"steps": ("INT", 1, 100), "cfg": ("FLOAT", 0.0, 100.0), "seed": ("INT", 0, 2**64 - 1)},
    choices={"sampler_name": ["euler", "heun"]},
    is_output=False,
    widgets=("seed", "steps", "cfg", "sampler_name", "denoise"),
)


def known(class_type: str) -> list[ClassRanges] | None:
    return [SAMPLER] if class_type == "KSampler" else None


def node(class_type: str, title: str | None = None, **inputs: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"class_type": class_type, "inputs": inputs}
    return {**made, "_meta": {"title": title}} if title else made


GRAPH: dict[str, Any] = {
    "3": node("KSampler", seed=7, steps=20, cfg=7, sampler_name="euler", model=["4", 0]),
    "4": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
    "6": node("CLIPTextEncode", "The prompt", text="a cat", clip=["4", 1]),
    "7": node("CLIPTextEncode", "v1.5 negative", text="", clip=["4", 1]),
    "8": node("LoadImage", image="cat.png"),
}


def parameters(graph: dict[str, Any], **params: Any) -> dict[str, Parameter]:
    """What a stored template would have."""
    found, _ = _parameters(check(graph), PutTemplate.model_validate({"workflow": graph, "params": params}), known)
    return found


def refused(graph: dict[str, Any], **params: Any) -> dict[str, str]:
    with pytest.raises(BadMessage) as caught:
        parameters(graph, **params)
    return {each["field"]: each["problem"] for each in caught.value.details["errors"]}


# -- where a bind leads ---------------------------------------------------------------------------------------------


def test_a_bind_names_a_node_by_id_title_or_class() -> None:
    assert places("6.text", GRAPH, known) == [("6", "text")]
    assert places("The prompt.text", GRAPH, known) == [("6", "text")]
    assert places("v1.5 negative.text", GRAPH, known) == [("7", "text")]
    assert places("CLIPTextEncode.text", GRAPH, known) == [("6", "text"), ("7", "text")]
    assert places("3.denoise", GRAPH, known) == [("3", "denoise")], "left out of the graph, known to the fleet"
    for bind, words in (
        ("6.txt", "did you mean text"), ("6.clip", "comes from another node"), ("9.text", "leads nowhere"),
        ("text", "leads nowhere"), ("6.", "leads nowhere"), ("__proto__.x", "leads nowhere"),
        ("." * 900, "leads nowhere"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            places(bind, GRAPH, known)


def test_all_faults_of_a_template_are_told_at_once() -> None:
    found = refused(
        GRAPH,
        a={"bind": ["6.txt", "6.text"]},
        b={"bind": ["6.text"], "type": "integer", "default": "x"},
        c={"bind": ["3.steps"], "type": "choice"},
        d={"bind": ["3.cfg"], "type": "number", "minimum": 5, "maximum": 1},
        e={"bind": ["7.text"], "minimum": 5},
        f={"bind": ["3.seed"], "type": "seed", "maximum": 2**65},
        g={"bind": ["3.sampler_name"], "type": "choice", "choices": ["a", "b"], "default": "c"},
    )
    assert set(found) == {
        "params.a.bind.0", "params.b", "params.b.default", "params.c.choices", "params.d.minimum", "params.e",
        "params.f.minimum", "params.g.default",
    }  # fmt: skip
    assert "bound to a" in found["params.b"]


@pytest.mark.parametrize("name", ["__proto__", "constructor()", "a b", "", "1a", "x" * 65, "ä", "a.b"])
def test_names_of_parameters_are_plain(name: str) -> None:
    with pytest.raises(ValueError, match=r"pattern|String"):
        PutTemplate.model_validate({"workflow": GRAPH, "params": {name: {"bind": ["6.text"]}}})


# -- what a graph declares ------------------------------------------------------------------------------------------


def test_titles_declare_parameters() -> None:
    graph = copy.deepcopy(GRAPH)
    graph["3"]["_meta"] = {"title": "$seed $steps, $strength.cfg $sampler.sampler_name"}
    graph["6"]["_meta"] = {"title": "$prompt"}
    graph["8"]["_meta"] = {"title": "$picture"}
    found = parameters(graph)
    assert found == {
        "seed": Parameter("seed", (("3", "seed"),), 7, 0, 2**64 - 1),
        "steps": Parameter("integer", (("3", "steps"),), 20, 1, 100),
        "strength": Parameter("number", (("3", "cfg"),), 7, 0.0, 100.0),
        "sampler": Parameter("choice", (("3", "sampler_name"),), "euler", choices=("euler", "heun")),
        "prompt": Parameter("string", (("6", "text"),), "a cat"),
        "picture": Parameter("image", (("8", "image"),)),
    }
    assert parameters(graph, prompt={"bind": ["7.text"]})["prompt"] == Parameter("string", (("7", "text"),))


def test_one_name_may_stand_at_several_nodes_that_agree() -> None:
    graph = {"1": node("A", "$size", width=8), "2": node("B", "$size", height=8)}
    assert parameters(graph)["size"].places == (("1", "width"), ("2", "height"))
    graph["2"]["inputs"]["height"] = 9
    assert refused(graph) == {"workflow.2": "the parameter size is declared twice, and differently."}


def test_titles_that_say_too_little_are_refused() -> None:
    graph = {
        "1": node("A", "$x", a=1, b=2), "2": node("A", "$", a=1), "3": node("A", "$y.c", a=1),
        "4": node("A", "$z", a=["1", 0]), "5": node("A", "$w", a=None), "6": node("A", "$__proto__", a=1),
    }  # fmt: skip
    assert set(refused(graph)) == {f"workflow.{n}" for n in range(1, 7)}
    assert parameters({"1": node("A", "costs $5", a=1), "2": node("A", None, a="$x")}) == {}


def test_the_pack_s_nodes_declare_parameters() -> None:
    graph = {
        "1": node("EMQTextInput", name="prompt", value="a cat", description="What to draw"),
        "2": node("EMQNumberInput", name="cfg", value=7.5, minimum=1.0, maximum=1e9, whole=False),
        "3": node("EMQNumberInput", name="steps", value=20.0, minimum=1.0, maximum=50.0, whole=True),
        "4": node("EMQSeedInput", name="seed", value=-1),
        "5": node("EMQChoiceInput", name="size", value="small", choices="small\n\n large \nsmall"),
        "6": node("EMQImageInput", name="start", image="x.png"),
        "7": node("EMQOutput", name="picture", images=["6", 0]),
    }
    faults = Faults()
    found = declared(graph, known, faults)
    faults.check()
    assert found.outputs == {"picture": "7"}
    assert found.params == {
        "prompt": Parameter("string", (("1", "value"),), "a cat", description="What to draw"),
        "cfg": Parameter("number", (("2", "value"),), 7.5, minimum=1.0),
        "steps": Parameter("integer", (("3", "value"),), 20.0, minimum=1, maximum=50),
        "seed": Parameter("seed", (("4", "value"),), -1),
        "size": Parameter("choice", (("5", "value"),), "small", choices=("small", "large")),
        "start": Parameter("image", (("6", "image"),)),
    }


def test_the_pack_s_nodes_with_faults_are_refused() -> None:
    graph = {
        "1": node("EMQTextInput", name="", value="x"),
        "2": node("EMQTextInput", name=["1", 0], value="x"),
        "3": node("EMQTextInput", name="linked", value=["1", 0]),
        "4": node("EMQChoiceInput", name="size", value="x", choices=""),
        "5": node("EMQNumberInput", name="n", value=5, minimum=10.0),
        "6": node("EMQOutput", name="__proto__"),
        "7": node("EMQSeedInput", name="s", value="x"),
    }
    assert set(refused(graph)) == {
        "workflow.1", "workflow.2", "workflow.3", "workflow.6", "params.size.choices", "params.n.default",
        "params.s.default",
    }  # fmt: skip


# -- what a parameter takes -----------------------------------------------------------------------------------------

numbers = st.integers(-(2**40), 2**40) | st.floats(-1e6, 1e6)
scalars = st.none() | st.booleans() | numbers | st.text(max_size=4)
SOURCES: list[Any] = [
    {"url": "https://x/y.png"}, {"asset": "blake3:" + "0" * 64}, {"base64": "aGk="}, {"url": 5},
    {"output": {"job_id": "j", "node_id": "1"}}, {"url": "https://x/y", "base64": "aGk="},
]  # fmt: skip
anything = st.recursive(
    scalars | st.sampled_from(SOURCES),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@st.composite
def any_parameter(draw: st.DrawFn) -> Parameter:
    kind = draw(st.sampled_from(["string", "integer", "number", "boolean", "choice", "seed", "image"]))
    low = high = None
    if kind in ("integer", "number", "seed"):
        span = st.integers(0, 2**40) if kind == "seed" else st.integers(-50, 50)
        low, high = draw(st.none() | span), draw(st.none() | span)
        if low is not None and high is not None and low > high:
            low, high = high, low
    choices = tuple(draw(st.lists(st.booleans() | st.integers() | st.text(max_size=3), min_size=1, max_size=4)))
    return Parameter(kind, (("1", "a"),), NOTHING, low, high, choices if kind == "choice" else ())


@given(any_parameter(), anything)
def test_a_value_is_taken_just_when_the_schema_takes_it(parameter: Parameter, value: Any) -> None:
    document = schema({"p": parameter})
    jsonschema.Draft202012Validator.check_schema(document)
    fits = jsonschema.Draft202012Validator(document).is_valid({"p": value})
    if not fits:
        with pytest.raises(BadMessage) as refusal:
            values({"p": parameter}, {"p": value})
        assert [each["field"] for each in refusal.value.details["errors"]] == ["payload.params.p"]
        return
    taken = values({"p": parameter}, {"p": value})["p"]
    if parameter.kind == "seed" and value == -1:
        assert (parameter.minimum or 0) <= taken <= (parameter.maximum or 2**53)
    elif not parameter.is_file:
        assert taken == value
    else:
        assert InputFile.model_validate(taken)


@given(st.sets(st.sampled_from(["a", "b", "c", "d"]), min_size=1), st.data())
def test_a_graph_differs_just_where_parameters_are_bound(names: set[str], data: st.DataObject) -> None:
    graph = {str(n): node("X", i="old", j="old", k=["1", 0]) for n in range(4)}
    every = [(str(n), name) for n in range(4) for name in "ij"]
    params: dict[str, Parameter] = {}
    for name in sorted(names):
        taken = [place for p in params.values() for place in p.places]
        free = [place for place in every if place not in taken]
        params[name] = Parameter(
            "string", tuple(data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=2, unique=True)))
        )
    given_values = {name: data.draw(st.text(min_size=4, max_size=6)) for name in params}
    before = copy.deepcopy(graph)
    made, files = bound(graph, params, given_values)
    assert graph == before, "the stored graph is not touched"
    assert files == {}
    for node_id, each in made.items():
        for name, value in each["inputs"].items():
            owner = next((key for key, p in params.items() if (node_id, name) in p.places), None)
            assert value == (before[node_id]["inputs"][name] if owner is None else given_values[owner])
    assert list(made) == list(before)
    assert {n: list(each["inputs"]) for n, each in made.items()} == {
        n: list(each["inputs"]) for n, each in before.items()
    }


def test_files_go_to_the_inputs_and_leave_the_graph_alone() -> None:
    params = {"start": Parameter("image", (("8", "image"), ("9", "image")))}
    source = {"url": "https://example.com/a.png"}
    made, files = bound(GRAPH, params, {"start": source})
    assert made == GRAPH
    assert files == {"8.image": source, "9.image": source}


def test_every_bad_parameter_is_told_with_its_path() -> None:
    params = {
        "prompt": Parameter("string", (("6", "text"),)),
        "steps": Parameter("integer", (("3", "steps"),), 20, 1, 100),
        "size": Parameter("choice", (("1", "a"),), "small", choices=("small", "large")),
        "start": Parameter("image", (("8", "image"),)),
    }
    bad = {"steps": 0, "size": "lagre", "start": {"url": "ftp://x"}, "stesp": 5, "__proto__": {}}
    with pytest.raises(BadMessage) as caught:
        values(params, bad)
    errors = {each["field"]: each["problem"] for each in caught.value.details["errors"]}
    assert set(errors) == {
        f"payload.params.{name}" for name in ("prompt", "steps", "size", "start", "stesp", "__proto__")
    }
    assert "missing" in errors["payload.params.prompt"]
    assert "'large'" in errors["payload.params.size"]
    assert "steps" in errors["payload.params.stesp"]
    broken: list[Any] = [[], "x", 5]
    for wrong in broken:
        with pytest.raises(BadMessage):
            values(params, wrong)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "5", None, [5], 5.5, 2**70])
def test_what_is_no_integer_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="it "):
        Parameter("integer", (), maximum=2**64).read(value)


def test_a_seed_is_drawn_within_its_limits_and_differs() -> None:
    parameter = Parameter("seed", (), NOTHING)
    drawn = {parameter.draw(-1) for _ in range(20)}
    assert len(drawn) == 20
    assert all(0 <= seed < 2**53 for seed in drawn)
    assert {Parameter("seed", (), NOTHING, 5, 7).draw(-1) for _ in range(200)} == {5, 6, 7}
    assert parameter.draw(2**64 - 1) == 2**64 - 1


def test_a_parameter_comes_back_from_its_document() -> None:
    for parameter in parameters(GRAPH, a={"bind": ["3.steps"], "type": "integer", "default": 5, "maximum": 9}).values():
        assert restored(strict.parse(strict.dumps(stored(parameter)))) == parameter


# -- bounds ---------------------------------------------------------------------------------------------------------


def loaded(params: dict[str, Parameter]) -> Loaded:
    return Loaded("t", "x", 3, GRAPH, params, {})


def test_what_is_bound_many_times_is_counted_many_times() -> None:
    templates = Templates(None, None, 100_000)  # type: ignore[arg-type]
    params = {"text": Parameter("string", tuple((str(n), "a") for n in range(100)))}
    with pytest.raises(PayloadTooLarge):
        templates.bind({"params": {"text": "x" * 1000}}, loaded(params))
    for other in ("workflow", "prompt"):
        with pytest.raises(BadMessage, match="one of them"):
            templates.bind({other: {}, "params": {}}, loaded({}))


def test_a_record_keeps_short_parameters_and_no_content_of_files() -> None:
    params = {"long": "x" * 9000, "seed": 5, "short": "y", "file": {"base64": "aGk=", "filename": "a.png"}}
    assert Bound({}, "x@1", params).recorded() == {"seed": 5, "short": "y", "file": {"filename": "a.png"}}
    small = {"prompt": "a cat", "seed": 5}
    assert Bound({}, "x@1", small).recorded() == small


@pytest.mark.parametrize(
    "text", ["", "@1", "a@", "a@0", "a@-1", "a@1@2", "__proto__", "../a", "a/b", "a@99999999999", "a" * 65, "a\n"]
)
def test_references_are_plain(text: str) -> None:
    from broker.errors import NotFound

    with pytest.raises(NotFound):
        parse_reference(text)
    assert parse_reference("txt2img@3") == ("txt2img", 3)
    assert parse_reference("a.b-c_d") == ("a.b-c_d", None)
