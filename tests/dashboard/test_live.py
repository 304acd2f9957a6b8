"""The live changes of open pages, as the stream tells them."""

from __future__ import annotations

import gc
import time
import weakref
import zlib

import jinja2
import pytest
from markupsafe import Markup

from broker.access.identity import Role
from broker.dashboard import live
from broker.dashboard.frame import View, environment
from broker.dashboard.live import GZIP_HEAD, Feed, Feeds
from broker.dashboard.parts import Parts
from tests.access.conftest import Guarded, bearer, guarded, own_valkey
from tests.api.conftest import Broker, start_broker, submit
from tests.support.pages import page_stream
from tests.support.waiting import wait_until

__all__ = ["guarded", "own_valkey", "start_broker"]

TABLE = jinja2.Environment(autoescape=True).from_string(
    '{% call part("all") %}<p id="all">{% for name, text in rows %}{% call part(name) %}<b id="{{ name }}">'
    "{{ text }}</b>{% endcall %}{% endfor %}</p>{% endcall %}{% call part('end') %}<i id=end>{{ end }}</i>{% endcall %}"
)

AGED = environment().from_string('{% call part("p", *key) %}<p id="p">{{ moment | age }}</p>{% endcall %}')


def rendered(*rows: tuple[str, str], end: str = "") -> Parts:
    parts = Parts()
    TABLE.render(part=parts, rows=rows, end=end)
    return parts


VIEW = View("p", (), "", "", Role.VIEWER, False, "")


def feed() -> Feed:
    async def never(view: View, before: Parts | None) -> Parts:
        raise NotImplementedError

    return Feed(VIEW, never, never, 1)


def sent(feed: Feed, since: int) -> str:
    """The data of the message."""
    lines = feed.since(since).decode().splitlines()
    return "".join(line.removeprefix("data: ") for line in lines if line.startswith("data: "))


def partial(name: str, html: str) -> str:
    return f'<hx-partial hx-target="#{name}" hx-swap="outerMorph">{html}</hx-partial>'


A1, A2, B1 = '<b id="a">1</b>', '<b id="a">2</b>', '<b id="b">1</b>'


async def test_what_a_page_showed_goes_with_its_last_tab(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once: Python looks for what holds itself at its leisure."""
    monkeypatch.setattr(live, "LINGER_S", 0.0)
    drawn: list[weakref.ref[Parts]] = []

    async def draw(view: View, before: Parts | None) -> Parts:
        parts = rendered(("a", "1"))
        drawn.append(weakref.ref(parts))
        return parts

    feeds = Feeds(draw, draw)
    gc.disable()
    try:
        async with feeds.join(VIEW, 60.0):
            await wait_until(lambda: bool(drawn), what="it is drawn")
        await wait_until(lambda: all(parts() is None for parts in drawn), what="it is gone")
    finally:
        gc.enable()


def test_only_the_row_that_changed_is_sent() -> None:
    it = feed()
    it.take(rendered(("a", "1"), ("b", "1")))
    assert sent(it, 0) == partial("all", f'<p id="all">{A1}{B1}</p>') + partial("end", "<i id=end></i>")
    it.take(rendered(("a", "2"), ("b", "1")))
    assert sent(it, 1) == partial("a", A2)
    assert sent(it, 0) == partial("all", f'<p id="all">{A2}{B1}</p>') + partial("end", "<i id=end></i>")


def test_a_glance_changes_its_part_alone() -> None:
    it = feed()
    it.take(rendered(("a", "1"), end="1"))
    seen = Parts()
    seen("end", caller=lambda: "<i id=end>2</i>")
    it.take(seen, whole=False)
    assert sent(it, 1) == partial("end", "<i id=end>2</i>")
    assert sent(it, 0) == partial("all", f'<p id="all">{A1}</p>') + partial("end", "<i id=end>2</i>")
    it.take(rendered(("a", "1"), end="2"))
    assert it.version == 2, "what was seen already is nothing new"


def test_what_changed_twice_is_sent_once_and_what_changed_back_not_lost() -> None:
    it = feed()
    for text in ("1", "2", "1"):
        it.take(rendered(("a", text)))
    assert it.version == 3
    assert sent(it, 1) == partial("a", A1)


def test_a_row_that_comes_goes_or_moves_brings_the_part_around_it() -> None:
    it = feed()
    it.take(rendered(("a", "1"), ("b", "1")))
    for rows in ([("a", "2")], [("b", "1"), ("a", "2")], [("a", "2"), ("b", "1")]):
        before = it.version
        it.take(rendered(*rows))
        inner = "".join(f'<b id="{name}">{text}</b>' for name, text in rows)
        assert sent(it, before) == partial("all", f'<p id="all">{inner}</p>')


def test_nothing_new_is_no_message_and_an_age_that_ticks_is_nothing_new(monkeypatch: pytest.MonkeyPatch) -> None:
    it, now = feed(), time.time()
    moment = round((now - 1) * 1000)
    for later_s in (0, 90):
        monkeypatch.setattr(time, "time", lambda later_s=later_s: now + later_s)
        parts = Parts(it.latest)
        AGED.render(part=parts, moment=moment, key=())
        it.take(parts)
    assert it.version == 1
    assert ">1 min</time>" in sent(it, 0), "who comes now gets the age of now"


def test_what_was_drawn_before_is_sent_with_ages_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    it, now = feed(), time.time()
    moment, drawn = round((now - 1) * 1000), []
    for later_s in (0, 90):
        monkeypatch.setattr(time, "time", lambda later_s=later_s: now + later_s)
        parts = Parts(it.latest)
        AGED.render(part=parts, moment=moment, key=("same",))
        drawn.append(parts.bodies["p"])
        it.take(parts)
    assert drawn[0] is drawn[1], "not drawn again"
    assert ">1 min</time>" in sent(it, 0)


def keyed(before: Parts | None, rows: dict[str, tuple[str, str]], drawn: list[str]) -> Parts:
    """Rows of a name and a text, each with a part for the text; ``drawn`` is told of each drawing."""
    parts = Parts(before)

    def row(name: str, label: str, text: str) -> Markup:
        def cell() -> str:
            drawn.append(f"{name} cell")
            return f'<i id="{name}-c">{text}</i>'

        inner = parts(f"{name}-c", text, caller=cell)

        def line() -> str:
            drawn.append(name)
            return f'<b id="{name}">{label}{inner}</b>'

        return parts(name, label, caller=line)

    parts("all", caller=lambda: "".join(
        parts.again(name, (label, text)) or row(name, label, text) for name, (label, text) in rows.items()
    ))  # fmt: skip
    return parts


def test_only_what_depends_on_something_that_changed_is_drawn_again() -> None:
    it, drawn = feed(), list[str]()

    def shows(**rows: tuple[str, str]) -> str:
        drawn.clear()
        it.take(keyed(it.latest, rows, drawn))
        return it.latest.whole(it.latest.bodies["all"])

    def line(name: str, label: str, text: str) -> str:
        return f'<b id="{name}">{label}<i id="{name}-c">{text}</i></b>'

    assert shows(a=("A", "1"), b=("B", "1")) == line("a", "A", "1") + line("b", "B", "1")
    assert drawn == ["a cell", "a", "b cell", "b"]
    shows(a=("A", "1"), b=("B", "1"))
    assert drawn == []
    assert shows(a=("A", "2"), b=("B", "1")) == line("a", "A", "2") + line("b", "B", "1")
    assert drawn == ["a cell"]
    assert sent(it, it.version - 1) == partial("a-c", '<i id="a-c">2</i>')
    assert shows(b=("X", "1"), a=("A", "2")) == line("b", "X", "1") + line("a", "A", "2")
    assert drawn == ["b"]
    assert shows(b=("X", "1")) == line("b", "X", "1")
    assert drawn == []
    assert set(it.latest.bodies) == {"all", "b", "b-c"}, "what is not shown any more is not kept"
    shows(a=("A", "2"), b=("X", "1"))
    assert drawn == ["a cell", "a"]


def test_a_tab_goes_on_where_it_was_and_from_another_feed_from_nothing() -> None:
    it = feed()
    it.take(rendered(("a", "1")))
    it.take(rendered(("a", "2")))
    assert it.seen(f"{it.epoch}.1") == 1
    assert it.seen(f"{it.epoch}.99") == 2
    for foreign in ("", "x", f"{it.epoch}.", f"{it.epoch}.-1", f"{it.epoch}.x", "0123456789ab.1"):
        assert it.seen(foreign) == 0


def test_one_packed_message_fits_into_the_stream_of_any_tab() -> None:
    it = feed()
    it.take(rendered(("a", "1")))
    first = it.since(0, packed=True)
    it.take(rendered(("a", "2")))
    later, whole = it.since(1, packed=True), it.since(0, packed=True)
    for messages, text in (((first, later), b"2</b>"), ((whole,), b"2</b>")):
        stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
        read = stream.decompress(GZIP_HEAD)
        for message in messages:
            read += stream.decompress(message)
        assert text in read
        assert read.endswith(b"\n\n"), "nothing is held back"


@pytest.mark.parametrize("name", ["", "A", "a b", "a\0", "1", 'a"'])
def test_a_part_must_be_named_by_an_id(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a part"):
        Parts()(name, caller=str)


def test_two_parts_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="there are two"):
        rendered(("a", "1"), ("a", "1"))


async def test_an_open_page_hears_what_changes(broker: Broker) -> None:
    worker = broker.worker("gpu-7")
    await worker.register()
    async with page_stream(broker) as one, page_stream(broker) as two:
        for each in (one, two):
            await each.until(lambda _, __, data: "gpu-7" in data)
        await broker.json("POST", "/api/jobs", json=submit())
        held = await worker.claim()
        assert held is not None
        await worker.report(held, 40, node={"id": "3", "class_type": "KSampler", "value": 12, "max": 20})
        messages = [await each.until(lambda _, __, data: "12/20" in data) for each in (one, two)]
        assert messages[0] == messages[1], "rendered once for both"
        assert 'hx-target="#fleet"' not in messages[0][2], "the card, not the fleet"
        seen = messages[0][1]
    async with page_stream(broker, **{"Last-Event-ID": seen}) as again:
        await worker.report(held, 60, node={"id": "3", "class_type": "KSampler", "value": 15, "max": 20})
        await again.until(lambda _, __, data: "15/20" in data)
        assert all('hx-target="#fleet"' not in data for _, __, data in again.heard), "it goes on where it was"


async def test_an_open_gallery_shows_what_is_made_and_what_goes(broker: Broker) -> None:
    worker = broker.worker("gpu-7")
    await worker.register()

    async def made(text: str) -> str:
        _, job = await broker.json("POST", "/api/jobs", json=submit())
        held = await worker.claim()
        assert held is not None
        await worker.finish(held, {"outputs": [{"node_id": "1", "kind": "text", "text": text}], "timings": {}})
        return str(job["job_id"])

    async with page_stream(broker, "gallery") as open_page:
        first = await made("the first words")
        await open_page.until(lambda _, __, data: "the first words" in data)
        await made("other words")
        _, _, data = await open_page.until(lambda _, __, data: "other words" in data)
        assert data.index("other words") < data.index("the first words"), "the latest first"
        await broker.json("DELETE", f"/api/jobs/{first}")
        _, _, data = await open_page.until(lambda _, __, data: 'id="gallery"' in data and "the first" not in data)
        assert "other words" in data


async def test_an_open_admin_page_hears_what_is_decided(broker: Broker) -> None:
    async with page_stream(broker, "admin") as open_page:
        await open_page.until(lambda _, __, data: "hx-partial" in data)
        await broker.json("PUT", "/api/tenants/k8", json={"max_queued": 4711})
        await open_page.until(lambda _, __, data: "k8" in data)


@pytest.mark.parametrize(("accepts", "encoding"), [("gzip, br", "gzip"), ("identity", None)])
async def test_a_quiet_page_hears_a_beat(broker: Broker, accepts: str, encoding: str | None) -> None:
    async with page_stream(broker, **{"Accept-Encoding": accepts}) as quiet:
        assert quiet.response.headers.get("Content-Encoding") == encoding
        await quiet.until(lambda event, *_: event == "beat")


async def test_a_session_that_ends_is_told(guarded: Guarded) -> None:
    text = await guarded.key("read")
    async with page_stream(guarded.broker, **bearer(text)) as open_tab:
        await open_tab.until(lambda _, __, data: 'id="strip"' in data)
        await guarded.store.revoke(guarded.keys[0].key_id)
        await open_tab.until(lambda event, *_: event == "bye")


async def test_streams_answer_nothing_that_htmx_would_hammer_at(guarded: Guarded) -> None:
    """Neither a redirect nor a page: 401, 403, 429 and 503 it retries more and more slowly."""
    html = {"Accept": "text/html, text/event-stream"}
    broker = guarded.broker
    key = await guarded.key("read")
    worker = await guarded.key("worker")
    for query, headers, status in (
        ("?page=fleet", html, 401),
        ("?page=fleet", {**html, **bearer(worker)}, 403),
        ("?page=nothing", {**html, **bearer(key)}, 403),
        ("", {**html, **bearer(key)}, 403),
    ):
        async with broker.http.get(
            f"{broker.url}/ui/events{query}", headers={"HX-Request": "true", **headers}, allow_redirects=False
        ) as response:
            assert response.status == status


def test_pages_are_read_at_the_same_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    for now, every_s, rest_s, then in (
        (10.1, 0.5, 0, 10.5),
        (10.5, 0.5, 0, 11),
        (10.1, 0.75, 0, 10.5),
        (10.6, 0.25, 0.3, 11),
    ):
        monkeypatch.setattr(time, "monotonic", lambda now=now: now)
        assert live.beat(every_s, rest_s) == then


def test_rows_that_did_not_change_are_not_drawn() -> None:
    drawn: list[str] = []

    def draw(text: str) -> str:
        drawn.append(text)
        return f"<b>{text}</b>"

    first = Parts()
    first.each([("a", (1,), "A1"), ("b", (1,), "B1")], draw)
    second = Parts(first)
    marks = second.each([("b", (1,), "B1"), ("a", (2,), "A2")], draw)
    assert drawn == ["A1", "B1", "A2"]
    assert second.whole(str(marks)) == "<b>B1</b><b>A2</b>"
