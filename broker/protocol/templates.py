"""Workflow templates over HTTP: what is stored, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from broker.protocol.base import EpochMs, Incoming, Message, Outgoing, Reply

TEMPLATE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
MAX_PARAMS = 256
ParamName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
ParamType = Literal["string", "integer", "number", "boolean", "choice", "seed", "image", "video", "audio"]
MEDIA = frozenset({"image", "video", "audio"})
"""Types whose value is an input file."""
Text = Annotated[str, StringConstraints(max_length=2000)]
Bind = Annotated[str, StringConstraints(min_length=3, max_length=1024)]


class ParamSpec(Incoming):
    """A parameter of a template; without a `default` it must be given."""

    bind: list[Bind] = Field(
        min_length=1,
        max_length=256,
        description="Node inputs that it sets: `node.input`, the node by id, title or class.",
    )
    type: ParamType = "string"
    default: Any = None
    minimum: float | int | None = None
    maximum: float | int | None = None
    choices: list[str | int | float | bool] | None = Field(None, min_length=1, max_length=1000)
    description: Text = ""


class PutTemplate(Message):
    """``PUT /api/templates/{name}``: a new version. A PNG or WebP with a workflow in it will do as well."""

    type: Literal["put_template"] = "put_template"
    workflow: dict[str, Any] = Field(description="API format, or as ComfyUI's editor saves it.")
    params: dict[ParamName, ParamSpec] = Field(
        default_factory=dict, max_length=MAX_PARAMS, description="Beside those that the graph itself declares."
    )
    description: Text = ""


class TestTemplate(Message):
    """``POST /api/templates/{name}/test``: bind parameters without submitting anything."""

    __test__ = False  # no test of pytest
    type: Literal["test_template"] = "test_template"
    params: dict[str, Any] = Field(default_factory=dict)


class TemplateParam(Outgoing):
    """A parameter as it was understood; `bind` names nodes by id."""

    bind: list[str]
    type: ParamType
    description: str = ""
    default: Any = Field(None, description="Absent: it must be given.")
    minimum: float | int | None = None
    maximum: float | int | None = None
    choices: list[Any] | None = None


class TemplateStored(Reply):
    """A template was stored (201), or its latest version is just this (200)."""

    type: Literal["template_stored"] = "template_stored"
    name: str
    version: int
    shared: bool = False
    params: dict[str, TemplateParam]
    outputs: dict[str, str] = Field(description="Node ids of the outputs that the graph names.")
    json_schema: dict[str, Any] = Field(alias="schema", description="JSON Schema of the parameters.")
    converted: bool = Field(False, description="From the editor's format.")

    def wire(self) -> dict[str, Any]:
        """The parameters without what they do not have."""
        plain = self.model_dump(mode="json", by_alias=True)
        params = {name: param.model_dump(mode="json", exclude_none=True) for name, param in self.params.items()}
        return {**plain, "params": params}


class TemplateSummary(Outgoing):
    """A template in a list."""

    name: str
    version: int = Field(description="The latest one.")
    versions: list[int]
    shared: bool = Field(description="An administrator made it for every tenant.")
    description: str = ""
    created_at: EpochMs = Field(description="Of the latest version.")


class TemplateList(Outgoing):
    """``GET /api/templates``: a tenant's own and the shared ones, by name."""

    templates: list[TemplateSummary]


class Template(TemplateSummary):
    """One version of a template."""

    params: dict[str, TemplateParam]
    outputs: dict[str, str]
    json_schema: dict[str, Any] = Field(alias="schema")
    workflow: dict[str, Any]


class BoundTemplate(Outgoing):
    """What a job of the template would run."""

    template: str
    params: dict[str, Any] = Field(description="With defaults and drawn seeds.")
    workflow: dict[str, Any]
    inputs: dict[str, Any] = Field(description="As in `payload.inputs`.")


class TemplatesRemoved(Outgoing):
    """Versions that were removed; their numbers are not given again."""

    name: str
    removed: list[int]
