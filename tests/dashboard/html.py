"""A page as its elements and its text."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

from tests.api.conftest import Broker

VOID = {"meta", "link", "br", "img", "input", "hr", "polyline", "rect", "line", "circle", "path", "source"}

EVIL = '"><img src=x onerror=alert(1)>{{7*7}}${7*7}\u202e'
"""What must stay text wherever a page shows it."""


@dataclass
class Element:
    """One element: its tag, attributes and all text inside."""

    tag: str
    attrs: dict[str, str]
    inside: list[Element] = field(default_factory=list)
    own: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.own).split())

    def all(self, tag: str = "", **attrs: str) -> list[Element]:
        """The elements inside with this tag and these attributes (``class_`` one of the classes)."""
        wanted = attrs.pop("class_", "")
        return [
            e for e in self.inside
            if (not tag or e.tag == tag) and all(e.attrs.get(name.replace("_", "-")) == v for name, v in attrs.items())
            and (not wanted or wanted in e.attrs.get("class", "").split())
        ]  # fmt: skip

    def one(self, tag: str = "", **attrs: str) -> Element:
        found = self.all(tag, **attrs)
        assert len(found) == 1, f"{len(found)} of {tag} {attrs}"
        return found[0]


class Page(HTMLParser):
    """Reads a page; every element must be closed in order, and no id is there twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open: list[Element] = [self.root]
        self.feed(text)
        self.close()
        assert len(self._open) == 1, [e.tag for e in self._open]
        ids = [e.attrs["id"] for e in self.root.inside if "id" in e.attrs]
        assert len(ids) == len(set(ids)), ids

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        for outer in self._open:
            outer.inside.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for outer in self._open:
            outer.own.append(data)


async def page(broker: Broker, path: str = "/", status: int = 200, **options: object) -> Element:
    """A page of the broker."""
    async with broker.http.get(broker.url + path, **options) as response:  # type: ignore[arg-type]
        assert (response.status, response.content_type) == (status, "text/html")
        assert response.headers["Cache-Control"] == "no-store"
        return Page(await response.text()).root


async def post(broker: Broker, path: str, fields: dict[str, str] | None = None, **headers: str) -> tuple[int, str, str]:
    """What a form's post is answered: status, place, text."""
    async with broker.http.post(
        broker.url + path, data=fields or {}, headers=headers, allow_redirects=False
    ) as response:
        return response.status, response.headers.get("Location", ""), await response.text()
