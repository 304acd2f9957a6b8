"""A template's parameters: their types, what values they take, and the JSON Schema that says so."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from pydantic import ValidationError

from broker.errors import BadMessage
from broker.jobs import strict
from broker.protocol.messages import InputFile
from broker.protocol.templates import MEDIA

Place = tuple[str, str]
"""A node's id and the name of its input."""

MAX_SEED = 2**64 - 1
DRAWN_BELOW = 2**53
"""Seeds are drawn below this, so that no reader of JSON rounds them."""
MAX_FAULTS = 50


class _Nothing:
    """In place of a default that was not given."""


NOTHING: Final = _Nothing()


class Faults:
    """Everything that is wrong with a request, each with its path."""

    def __init__(self) -> None:
        self.found: list[dict[str, str]] = []

    def add(self, field: str, problem: str) -> None:
        """Note one."""
        self.found.append({"field": field[:200], "problem": problem[:500]})

    def check(self) -> None:
        """Raise ``BadMessage`` with all of them, if there is any."""
        if self.found:
            first = self.found[0]
            more = f" ({len(self.found) - 1} more in details.errors.)" if len(self.found) > 1 else ""
            raise BadMessage(f"{first['field']}: {first['problem']}{more}", errors=self.found[:MAX_FAULTS])


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter. Without a default it must be given."""

    kind: str
    places: tuple[Place, ...]
    default: Any = NOTHING
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[Any, ...] = ()
    description: str = ""

    @property
    def is_file(self) -> bool:
        """Whether its value is an input file."""
        return self.kind in MEDIA

    def read(self, value: Any) -> Any:
        """The value as it is bound, a seed of -1 as that; raises ``ValueError`` with what is wrong."""
        if self.is_file:
            return _file(value)
        if self.kind == "choice":
            return self._choice(value)
        if self.kind == "string":
            if not isinstance(value, str):
                raise ValueError(f"it must be a text, not {_shown(value)}.")
            return value
        if self.kind == "boolean":
            if not isinstance(value, bool):
                raise ValueError(f"it must be true or false, not {_shown(value)}.")
            return value
        return self._number(value)

    def _choice(self, value: Any) -> Any:
        for choice in self.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        names = [each for each in self.choices if isinstance(each, str)]
        near = get_close_matches(str(value)[:200], names, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(map(_shown, self.choices[:10]))}."
        raise ValueError(f"{_shown(value)} is not one of its choices; {hint}")

    def _number(self, value: Any) -> float | int:
        whole = self.kind != "number"
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"it must be {'an integer' if whole else 'a number'}, not {_shown(value)}.")
        if whole:
            if isinstance(value, float) and not (value.is_integer() and abs(value) < DRAWN_BELOW):
                raise ValueError(f"it must be an integer, not {_shown(value)}.")
            number: float | int = int(value)
        else:
            number = value
        low, high = self.bounds()
        if self.kind == "seed" and number == -1:
            return number
        if low is not None and number < low:
            raise ValueError(f"it is {number}; the least is {low}.")
        if high is not None and number > high:
            raise ValueError(f"it is {number}; the most is {high}.")
        return number

    def bounds(self) -> tuple[float | None, float | None]:
        """The least and the most of a number; a seed's are those of ComfyUI where none are given."""
        if self.kind != "seed":
            return self.minimum, self.maximum
        return self.minimum or 0, MAX_SEED if self.maximum is None else self.maximum

    def draw(self, value: Any) -> Any:
        """The value, or a random one in place of a seed of -1."""
        if self.kind != "seed" or value != -1:
            return value
        low, high = (int(bound or 0) for bound in self.bounds())
        top = max(low, min(high, DRAWN_BELOW - 1))
        return low + secrets.randbelow(top - low + 1)

    def schema(self) -> dict[str, Any]:
        """Its JSON Schema."""
        found: dict[str, Any] = {}
        if self.is_file:
            found["$ref"] = "#/$defs/InputFile"
        elif self.kind == "choice":
            found["enum"] = list(self.choices)
        else:
            found["type"] = "integer" if self.kind == "seed" else self.kind
            low, high = self.bounds()
            if self.kind == "seed":
                found["anyOf"] = [{"const": -1}, {"minimum": low, "maximum": high}]
            else:
                found.update({k: v for k, v in (("minimum", low), ("maximum", high)) if v is not None})
        if self.default is not NOTHING:
            found["default"] = self.default
        text = self.description or ("-1 draws one." if self.kind == "seed" else "")
        return {**found, "description": text} if text else found

    def public(self) -> dict[str, Any]:
        """As it is shown and stored; ``places`` are told as ``bind``."""
        found: dict[str, Any] = {"bind": [f"{node}.{name}" for node, name in self.places], "type": self.kind}
        if self.default is not NOTHING:
            found["default"] = self.default
        rest = {"minimum": self.minimum, "maximum": self.maximum, "choices": list(self.choices) or None}
        return {**found, **{k: v for k, v in rest.items() if v is not None}, "description": self.description}


def stored(parameter: Parameter) -> dict[str, Any]:
    """As the template's document has it: what is shown, and where exactly it goes."""
    return {**parameter.public(), "places": [list(place) for place in parameter.places]}


def restored(about: Mapping[str, Any]) -> Parameter:
    """A parameter from the template's document."""
    return Parameter(
        kind=about["type"],
        places=tuple((node, name) for node, name in about["places"]),
        default=about.get("default", NOTHING),
        minimum=about.get("minimum"),
        maximum=about.get("maximum"),
        choices=tuple(about.get("choices") or ()),
        description=about.get("description") or "",
    )


def check(parameter: Parameter, path: str, faults: Faults) -> None:
    """Note what makes no sense in a parameter itself."""
    low, high = parameter.minimum, parameter.maximum
    if parameter.kind not in ("integer", "number", "seed") and (low is not None or high is not None):
        faults.add(path, f"minimum and maximum are for numbers; this is of type {parameter.kind}.")
    elif low is not None and high is not None and low > high:
        faults.add(f"{path}.minimum", f"it is {low}, above the maximum of {high}.")
    elif parameter.kind == "seed" and not all(bound is None or 0 <= bound <= MAX_SEED for bound in (low, high)):
        faults.add(f"{path}.minimum", f"seeds lie between 0 and {MAX_SEED}.")
    elif (parameter.kind == "choice") != bool(parameter.choices):
        faults.add(f"{path}.choices", "a choice needs choices, other types have none.")
    elif parameter.default is not NOTHING:
        try:
            parameter.read(parameter.default)
        except ValueError as error:
            faults.add(f"{path}.default", str(error))


def values(parameters: Mapping[str, Parameter], given: Any) -> dict[str, Any]:
    """What each parameter is set to: the given values, defaults, drawn seeds.

    Raises ``BadMessage`` with every fault and its path.
    """
    faults = Faults()
    if not isinstance(given, dict):
        raise BadMessage("payload.params must be an object: a value for each parameter by its name.")
    for name in given:
        if name not in parameters:
            near = get_close_matches(name[:64], list(parameters), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(list(parameters)[:20]) or 'none'}."
            faults.add(f"payload.params.{name}", f"the template has no such parameter; {hint}")
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        value = given.get(name, parameter.default)
        if value is NOTHING:
            faults.add(f"payload.params.{name}", f"it is missing (a parameter of type {parameter.kind}).")
            continue
        try:
            found[name] = parameter.draw(parameter.read(value))
        except ValueError as error:
            faults.add(f"payload.params.{name}", str(error))
    faults.check()
    return found


def schema(parameters: Mapping[str, Parameter]) -> dict[str, Any]:
    """The JSON Schema of ``payload.params``."""
    document: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {name: parameter.schema() for name, parameter in parameters.items()},
        "required": [name for name, parameter in parameters.items() if parameter.default is NOTHING],
        "additionalProperties": False,
    }
    if any(parameter.is_file for parameter in parameters.values()):
        file = InputFile.model_json_schema()
        sources = ("url", "asset", "base64", "output")
        document["$defs"] = {**file.pop("$defs"), "InputFile": file}
        file["oneOf"] = [{"required": [name], "properties": {name: {"not": {"type": "null"}}}} for name in sources]
    return document


def _file(value: Any) -> dict[str, Any]:
    try:
        return InputFile.model_validate(value).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        text = first["msg"].removeprefix("Value error, ")
        raise ValueError(f"it must be an input file: {where + ': ' if where else ''}{text}.") from None


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = strict.dumps(value)
    return text if len(text) <= 60 else text[:60] + "…"
