"""Which URLs input files may come from: tricky addresses, names that lie, rules."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver
from aiohttp.test_utils import TestServer

from comfyui_emq_node.urls import UrlRefused, UrlRule, is_public, open_session

LOCAL = [
    "127.0.0.1", "127.1", "0x7f000001", "0x7f.1", "2130706433", "0177.0.0.1", "0", "0.0.0.0", "10.0.0.1", "172.16.0.1",
    "192.168.1.1", "169.254.169.254", "2852039166", "0xa9fea9fe", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1",
    "198.51.100.7", "203.0.113.7", "224.0.0.1", "240.0.0.1", "255.255.255.255", "127.0.0.1.", "192.88.99.1",
    "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:169.254.169.254]", "[::ffff:8.8.8.8]", "[::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]", "[64:ff9b:1::1]", "[2002:a9fe:a9fe::]", "[2001:0:53aa:64c:0:5efe:a9fe:a9fe]", "[fe80::1]",
    "[fc00::1]", "[fd12:3456::1]", "[ff02::1]", "[fec0::1]", "[2001:db8::1]", "[100::1]",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "[2606:4700::1111]", "93.184.216.34", "0x08080808"]
BAD = [
    "ftp://8.8.8.8/x", "file:///etc/passwd", "gopher://8.8.8.8/", "//8.8.8.8/x", "http:///x", "http://", "x",
    "http://user@8.8.8.8/", "http://user:pass@8.8.8.8/", "http://:@8.8.8.8/", "http://8.8.8.8\\@127.0.0.1/",
    "http://8.8.8.8 /", "http://8.8.8.8/\r\nHost: x", "http://[::1%25eth0]/", "http://[::1", "http://8.8.8.8:99999/",
    "http://8.8.8.8:22/", "http://8.8.8.8:6379/", "http://%31%32%37.0.0.1/", "http://8.8.8.8\x00/",
    "http://8.8.8.8/" + "x" * 9000,
]  # fmt: skip


@pytest.mark.parametrize("host", LOCAL)
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(UrlRefused, match="no public address"):
        UrlRule("public").check(f"http://{host}/cat.png")


@pytest.mark.parametrize("host", PUBLIC)
def test_public_addresses_are_fetched_from(host: str) -> None:
    assert UrlRule("public").check(f"https://{host}/cat.png").path == "/cat.png"


@pytest.mark.parametrize("url", BAD)
@pytest.mark.parametrize("rule", ["public", "allow:8.8.8.9"])
def test_urls_that_mean_something_else_are_refused(url: str, rule: str) -> None:
    with pytest.raises(UrlRefused):
        UrlRule(rule).check(url)


def test_what_python_calls_global_is_not_always_public() -> None:
    for text in ("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "224.0.0.1", "192.0.0.8", "::ffff:8.8.8.8"):
        assert not is_public(ipaddress.ip_address(text))


def test_a_list_names_hosts_exactly() -> None:
    rule = UrlRule("allow:Files.example.com, minio.local:9000,10.0.0.5")
    for good in ("https://files.example.com/a", "http://FILES.example.com.:8080/", "http://minio.local:9000/b/c",
                 "http://10.0.0.5/x"):  # fmt: skip
        rule.check(good)
    for bad in ("http://minio.local/", "https://files.example.com.evil.org/", "https://evilfiles.example.com/",
                "http://10.0.0.6/", "https://sub.files.example.com/"):  # fmt: skip
        with pytest.raises(UrlRefused, match="list"):
            rule.check(bad)


def test_off_takes_nothing_and_any_takes_all() -> None:
    with pytest.raises(UrlRefused, match="off"):
        UrlRule("off").check("https://8.8.8.8/")
    UrlRule("any").check("http://127.0.0.1:1234/x")


class Names(AbstractResolver):
    """A name server of a test: gives its answers one after the other, the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.asked = list(answers), 0

    async def resolve(self, host: str, port: int = 0, family: Any = socket.AF_INET) -> list[Any]:
        found = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return [{"hostname": host, "host": each, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
                for each in found]  # fmt: skip

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "answers", [["127.0.0.1"], ["8.8.8.8", "169.254.169.254"], ["10.1.2.3"], ["192.168.0.1", "1.1.1.1"]]
)
async def test_one_private_address_among_several_is_enough_to_refuse(answers: list[str]) -> None:
    rule = UrlRule("public")
    async with open_session(rule, lambda: Names(answers)) as session:
        with pytest.raises(UrlRefused, match=r"cdn\.example"):
            await session.get(rule.check("http://cdn.example/x"))


async def test_the_address_that_was_judged_is_the_one_connected_to() -> None:
    """A name that is public when it is asked for and local a moment later leads nowhere: it is asked for once."""
    reached: list[str] = []

    async def serve(request: web.Request) -> web.Response:
        reached.append(request.host)
        return web.Response()

    app = web.Application()
    app.router.add_get("/", serve)
    names = Names(["192.0.2.1"], ["127.0.0.1"])  # the first one is nobody's
    rule = UrlRule("allow:rebinding.example")
    async with TestServer(app) as server, open_session(rule, lambda: names) as session:
        timeout = aiohttp.ClientTimeout(total=1)
        with pytest.raises((aiohttp.ClientError, TimeoutError)):
            await session.get(rule.check(f"http://rebinding.example:{server.port}/"), timeout=timeout)
    assert (names.asked, reached) == (1, [])


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def serve(_: web.Request) -> web.Response:
        return web.Response(text="itself")

    app = web.Application()
    app.router.add_get("/", serve)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1/")
    monkeypatch.delenv("no_proxy", raising=False)
    rule = UrlRule("any")
    async with TestServer(app) as server, open_session(rule) as session:
        answer = await session.get(rule.check(str(server.make_url("/"))))
        assert await answer.text() == "itself"
