"""The timeline's rows as HTML: by functions, because a thousand bars are drawn each second."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from markupsafe import Markup, escape

from broker.dashboard.parts import joined
from broker.dashboard.words import duration, escaped, query, segment, term

ROW, LABEL, TOP, WIDTH = 22, 150, 18, 1000
"""In the picture's units."""


def lanes(rows: Iterable[dict[str, Any]]) -> Markup:
    """A lane for each worker, with what is known of its load, and its executions."""
    return joined(_lane(row, TOP + number * ROW) for number, row in enumerate(rows))


def _lane(row: dict[str, Any], y: int) -> str:
    loads = "".join(
        f'<rect class="load l{level}" x="{x}" y="{y + 7}" width="{wide}" height="{ROW - 14}"/>'
        for x, wide, level in row["loads"]
    )
    bars = "".join(_bar(bar, y) for bar in row["bars"])
    return (
        f'<a href="/workers/{segment(row["worker_id"])}"><text class="name" x="0" y="{y + 15}">'
        f"{_short(row['worker_id'])}</text></a>"
        f'<rect class="lane" x="{LABEL}" y="{y + 2}" width="{WIDTH - LABEL}" height="{ROW - 4}"/>{loads}{bars}\n'
    )


def _bar(bar: Any, y: int) -> str:
    words = f"k{bar.colour}{' failed' if bar.status == 'failed' else ''}{'' if bar.mine else ' other'}"
    drawn = (
        f'<rect class="{words}" x="{bar.x}" y="{y + 3}" width="{bar.width}" height="{ROW - 6}">'
        f"<title>{escaped(bar.kind)}, {duration(bar.ms)}, {bar.status}</title></rect>"
    )
    if bar.job_id:
        drawn = f'<a href="/jobs/{segment(bar.job_id)}">{drawn}</a>'
    if bar.swap:
        drawn += f'<line class="swap" x1="{bar.x}" x2="{bar.x}" y1="{y + 1}" y2="{y + ROW - 1}"/>'
    return drawn


@lru_cache(1024)
def _short(name: str) -> str:
    return str(escape(name if len(name) <= 20 else f"{name[:17]}..."))


def table(rows: Iterable[dict[str, Any]], minutes: int) -> Markup:
    """The same in numbers: a row for each worker."""
    return joined(_row(row, minutes) for row in rows)


def _row(row: dict[str, Any], minutes: int) -> str:
    name, jobs, failures = _links(row["worker_id"], 1 if minutes <= 60 else 24)
    failed = sum(bar.status == "failed" for bar in row["bars"])
    return (
        f'<tr><th scope="row">{name}</th><td class="num">{row["busy"]} %</td>'
        f'<td class="num"><a href="{jobs}">{len(row["bars"])}</a></td>'
        f'<td class="num"><a href="{failures}">{failed}</a></td><td class="num">{row["swaps"]}</td></tr>'
    )


@lru_cache(1024)
def _links(worker: str, hours: int) -> tuple[str, str, str]:
    name = f'<a class="name" href="/workers/{segment(worker)}">{escape(worker)}</a>'
    failures = query({"span": hours, "worker": worker})
    return name, str(escape(f"/jobs?{query({'q': term(worker, 'worker')})}")), str(escape(f"/failures?{failures}"))


GLOBALS = {"lanes": lanes, "lane_rows": table}
