"""The URL forms of ``EMQ_REDIS_URL``, and the older REDIS_… names."""

from __future__ import annotations

import pytest

from broker.errors import ConfigurationError
from broker.queue.address import parse, url_from
from broker.queue.connection import Connection
from broker.settings import Settings


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "service", "db"),
    [
        ("redis://h", "single", (), "", 0),
        ("rediss://user:p%40ss@h:7000/3?ssl_cert_reqs=none", "single", (), "", 3),
        ("unix:///run/redis.sock?db=2", "single", (), "", 0),
        ("redis+sentinel://:pw@a:1,b,[::1]:3/main/4", "sentinel", (("a", 1), ("b", 26379), ("::1", 3)), "main", 4),
        ("redis+sentinel://a/main", "sentinel", (("a", 26379),), "main", 0),
        ("rediss+cluster://u:p@a:1,b:2", "cluster", (("a", 1), ("b", 2)), "", 0),
        ("redis+cluster://a/0", "cluster", (("a", 6379),), "", 0),
    ],
)
def test_forms(url: str, kind: str, nodes: object, service: str, db: int) -> None:
    address = parse(url)
    assert (address.kind, address.nodes, address.service, address.db) == (kind, nodes, service, db)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("localhost:6379", "no scheme"),
        ("http://h", "http:// is not known"),
        ("redis+other://h", "not known"),
        ("redis://", "no host"),
        ("redis://h:99999", "port"),
        ("redis://h:x", "port"),
        ("redis://h/one", "database 'one'"),
        ("unix://relative.sock", "full path"),
        ("redis+sentinel://a:1", "service"),
        ("redis+sentinel:///main", "no host"),
        ("redis+sentinel://a:x/main", "not host:port"),
        ("redis+cluster://a/1", "database 0 only"),
    ],
)
def test_bad_urls_say_why_and_what_there_is(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as caught:
        parse(url)
    assert "redis+sentinel://host:port" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["redis://u:SECRET@h:x", "redis+cluster://:SECRET@h/7", "foo://:SECRET@h", "redis://h:x?password=SECRET"]
)
def test_errors_keep_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://u:SECRET@h:1/2?password=SECRET", "redis://h:1/2"),
        ("unix:///a/b.sock?password=SECRET", "unix:///a/b.sock"),
        ("redis+sentinel://:SECRET@a,b/main", "redis+sentinel://a:26379,b:26379/main/0"),
    ],
)
def test_shown_address_has_no_secret(url: str, shown: str) -> None:
    assert parse(url).shown == shown


async def test_unknown_option_is_named() -> None:
    with pytest.raises(ConfigurationError, match="colour"):
        Connection("redis://h?colour=red")


def test_redis_host_port_db_and_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EMQ_REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    assert url_from(Settings()) is None
    monkeypatch.setenv("REDIS_HOST", "db.example")
    assert url_from(Settings()) == "redis://db.example:6379/0"
    monkeypatch.setenv("REDIS_PORT", "7001")
    monkeypatch.setenv("REDIS_DB", "5")
    monkeypatch.setenv("REDIS_PASSWORD", "p@ss/w:rd")
    assert url_from(Settings()) == "redis://:p%40ss%2Fw%3Ard@db.example:7001/5"
    monkeypatch.setenv("REDIS_HOST", "::1")
    assert str(url_from(Settings())).startswith("redis://:p%40ss%2Fw%3Ard@[::1]:7001/")
    monkeypatch.setenv("EMQ_REDIS_URL", "redis://wins")
    assert url_from(Settings()) == "redis://wins"
