"""The parts of a page that are replaced one by one while it is open."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import TypeVar

from markupsafe import Markup

T = TypeVar("T")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,63}")
_TIME_TEXT = re.compile(r"(<time [^>]*>)[^<]*")


@cache
def _mark() -> str:
    """What stands before a part's name where the part belongs: no text of a page can have it."""
    return f"\0{secrets.token_hex(8)}:"


def joined(pieces: Iterable[str]) -> Markup:
    """HTML of pieces that are HTML."""
    return Markup("".join(pieces))  # noqa: S704 # nosec B704 - of what is escaped


class Parts:
    """Collects what ``{% call part("name") %}…{% endcall %}`` surrounds in a template.

    Each holds exactly one element, with the part's name as its id. A part inside another one is replaced alone when
    only it has changed; when parts come, go or change places, the one around them is replaced.

    ``{% call part("name", this, that) %}`` also says all that the part depends on. When that is what it was in the
    drawing ``before``, the part of then is taken, ages and all: an open page draws only what has changed.
    """

    def __init__(self, before: Parts | None = None) -> None:
        self.bodies: dict[str, str] = {}
        """By name, in the order of the page; marks stand for the parts inside."""
        self.keys: dict[str, tuple[object, ...]] = {}
        """What the parts depend on, of those that say it."""
        self._known, self._keys_known = (before.bodies, before.keys) if before else ({}, {})
        self._inside: dict[str, list[str]] = {}
        self._inside_known = before._inside if before else {}
        self.cost_s = 0.0
        """How long the page kept the processor when it was rendered."""
        self._mark = _mark()
        self._marks = re.compile(re.escape(self._mark) + r"([a-z0-9-]+)\0")

    def __call__(self, name: str, *key: object, caller: Callable[[], str]) -> Markup:
        """Note a part; raises ``ValueError`` for a name that is no id or is there twice."""
        if not _NAME.fullmatch(name) or name in self.bodies:
            raise ValueError(f"{name!r} cannot name a part: it is no id, or there are two of it.")
        if key and self._keys_known.get(name) == key:
            self._again(name)
        else:
            self.bodies[name] = ""  # keeps the order: this one comes before those in it
            self.bodies[name] = caller()
        if key:
            self.keys[name] = key
        return Markup(f"{self._mark}{name}\0")  # noqa: S704 # nosec B704 - the name was checked above

    def each(self, rows: Iterable[tuple[str, tuple[object, ...], T]], draw: Callable[[T], str]) -> Markup:
        """Many parts beside each other, a name, all that it depends on, and what is drawn of each.

        A template goes through hundreds of rows more slowly than this, though most of them are as they were.
        """
        return joined(self(name, *key, caller=partial(draw, about)) for name, key, about in rows)

    def again(self, name: str, *key: object) -> Markup | str:
        """A part with all inside as it was before, if all that it depends on is what it was; else nothing: draw it.

        ``{{ part.again(id, row) or draw(row) }}`` looks at one key where ``draw`` has parts with keys of their own.
        """
        whole = f"{name}*"  # no part has such a name
        self.keys[whole] = key
        if name not in self._known or name in self.bodies or self._keys_known.get(whole) != key:
            return ""
        self._again(name)
        return Markup(f"{self._mark}{name}\0")  # noqa: S704 # nosec B704 - the name of a part

    def _again(self, name: str) -> None:
        """Take a part as it was, with those inside that are not drawn already."""
        body = self.bodies[name] = self._known[name]
        if name in self._keys_known:
            self.keys[name] = self._keys_known[name]
        inside = self._inside_known.get(name)
        if inside is None:
            inside = self._marks.findall(body) if self._mark in body else []
        self._inside[name] = inside
        for child in inside:
            if child not in self.bodies:
                self._again(child)

    def whole(self, text: str) -> str:
        """A text with its parts in their places."""
        if self._mark not in text:
            return text
        return self._marks.sub(lambda found: self.whole(self.bodies[found[1]]), text)

    def inside(self, name: str) -> list[str]:
        """The parts directly inside of one."""
        if name not in self._inside:
            body = self.bodies[name]
            self._inside[name] = self._marks.findall(body) if self._mark in body else []
        return self._inside[name]

    def shape(self, name: str) -> str:
        """What decides whether a part must be replaced: all of it but the parts inside, and the ticking of ages."""
        body = self.bodies[name]
        return _TIME_TEXT.sub(r"\1", body) if "<time " in body else body
