"""How values read on the pages: ages, times, sizes, names of elements."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any
from urllib.parse import quote, urlencode

from blake3 import blake3
from markupsafe import Markup, escape

_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))
_LINE = {step: f"l1 {step}" for step in range(-15, 16)}
_AGE = re.compile(r'(<time [^<>]*\bdata-at="(\d+)"[^<>]*>)[^<]*')


def span(seconds: float) -> str:
    """A length of time in one unit (two from an hour on): ``12 s``, ``3 min``, ``2 h 5 min``."""
    whole = max(0, int(seconds))
    for index, (size, unit) in enumerate(_UNITS):
        if whole >= size:
            rest = whole % size // _UNITS[index + 1][0] if index < 2 else 0
            return f"{whole // size} {unit}" + (f" {rest} {_UNITS[index + 1][1]}" if rest else "")
    return f"{whole} s"


def duration(ms: float | None) -> str:
    """A measured time: ``340 ms``, ``12.4 s``, ``3 min``; empty when it is not known."""
    if ms is None:
        return ""
    if ms < 1000:
        return f"{round(ms)} ms"
    return f"{ms / 1000:.1f} s" if ms < 60_000 else span(ms / 1000)


def exact(moment_ms: int | None) -> str:
    """A moment to the second, in UTC."""
    return _stamp(moment_ms // 1000)[1] if moment_ms else ""


@lru_cache(1024)
def _stamp(second: int) -> tuple[str, str]:
    """A moment for machines, and for people."""
    moment = datetime.fromtimestamp(second, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}", f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def age(moment_ms: int | None) -> Markup | str:
    """How long ago a moment was, the exact time in its title; the page's script lets it tick."""
    if not moment_ms:
        return ""
    stamp, title = _stamp(moment_ms // 1000)
    return Markup(f'<time datetime="{stamp}" data-at="{int(moment_ms)}" title="{title}">{_ago(moment_ms)}</time>')  # noqa: S704 # nosec B704 - digits and words


def _ago(moment_ms: int) -> str:
    seconds = time.time() - moment_ms / 1000
    return span(seconds) if seconds > -1 else f"in {span(-seconds)}"  # clocks differ a little: what is new is no future


def aged(html: str) -> str:
    """HTML that was made earlier, with the ages in it as they are now."""
    return _AGE.sub(lambda found: f"{found[1]}{_ago(int(found[2]))}", html) if "<time " in html else html


def count(number: float | None) -> str:
    """A whole number with thin groups of digits: ``100 000``."""
    return "\N{EN DASH}" if number is None else f"{round(number):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def megabytes(mb: Any) -> str:
    """An amount of memory that is told in MB."""
    if not isinstance(mb, int | float):
        return ""
    return f"{mb / 1024:.1f} GB" if mb >= 1024 else f"{mb:.0f} MB"


def size(number: Any) -> str:
    """A file's size."""
    value = float(number) if isinstance(number, int | float) else 0.0
    for unit in ("B", "KB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} GB"


@lru_cache(64)  # its keys are long, and each minute brings new ones
def _course(values: tuple[int, ...], most: int) -> str:
    steps = [16 - round(15 * max(0, min(value, most)) / most) for value in values]
    return f"M{60 - len(steps)} {steps[0]}" + "".join([_LINE[b - a] for a, b in pairwise(steps)])


def sparkline(values: Sequence[float], title: str, most: int = 100) -> Markup:
    """Up to 60 numbers as a line; ``most`` is the top of the scale."""
    return Markup(
        '<svg class="spark" viewBox="0 0 60 17" preserveAspectRatio="none" role="img" aria-label="{}"><title>{}</title>'
        '<path d="{}"/></svg>'
    ).format(title, title, _course(tuple(round(value) for value in values), most))


@lru_cache(1024)
def escaped(text: str) -> str:
    """A text for HTML, where rows are drawn by functions: most texts come again."""
    return str(escape(text))


@lru_cache(1024)
def element(kind: str, name: Any) -> str:
    """An element's id for something with any name, fit for selectors."""
    return f"{kind}-{blake3(str(name).encode()).hexdigest()[:12]}"


@lru_cache(1024)
def segment(name: Any) -> str:
    """A name as one segment of a path."""
    return quote(str(name), safe="")


CACHES = (_stamp, _course, escaped, element, segment)
"""What was made of names and moments."""


def term(value: Any, name: str) -> str:
    """A word of a search of jobs, in quotes where it needs them."""
    text = str(value)
    return f'{name}:"{text}"' if not text or any(c.isspace() or c == ":" for c in text) else f"{name}:{text}"


def query(fields: dict[str, Any]) -> str:
    """A query string of the fields that have a value."""
    return urlencode({name: value for name, value in fields.items() if value not in ("", None)})


FILTERS = {
    "age": age, "exact": exact, "span": span, "duration": duration, "count": count, "megabytes": megabytes,
    "size": size, "segment": segment, "sparkline": sparkline, "query": query, "term": term,
}  # fmt: skip
