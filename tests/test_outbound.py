"""Which URLs of clients are called, and how."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import httpx
import pytest
import respx
from aiohttp import web
from aiohttp.test_utils import TestServer

from broker.errors import ConfigurationError
from broker.outbound import ANSWER_BYTES, Outbound, UrlRefused, UrlRule
from tests.support.servers import free_port

REFUSED = [
    "http://example.com/", "https://example.com:8080/", "ftp://example.com/", "https://", "example.com",
    "https://user:word@example.com/", "https://user@example.com/", "https://exa mple.com/", "https://example.com\\@x/",
    "https://127.0.0.1/", "https://127.1/", "https://0x7f000001/", "https://2130706433/", "https://0177.0.0.1/",
    "https://0/", "https://0.0.0.0/", "https://10.0.0.1/", "https://172.16.0.1/", "https://192.168.1.1/",
    "https://169.254.169.254/latest/meta-data", "https://100.64.0.1/", "https://192.0.0.8/", "https://198.18.0.1/",
    "https://224.0.0.1/", "https://255.255.255.255/", "https://[::1]/", "https://[::]/", "https://[fe80::1]/",
    "https://[fc00::1]/", "https://[::ffff:169.254.169.254]/", "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::a9fe:a9fe]/", "https://[2002:a9fe:a9fe::]/", "https://[2001::1]/", "https://[ff02::1]/",
    "https://%6c%6f%63alhost/", "https://example.com\r\nX: y/", "https://example.com\x00/",
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_what_public_refuses(url: str) -> None:
    with pytest.raises(UrlRefused):
        UrlRule("public").check(url)


@pytest.mark.parametrize("url", ["https://example.com/", "https://93.184.216.34/x?y=1", "https://EXAMPLE.com.:443/"])
def test_what_public_takes(url: str) -> None:
    assert UrlRule("public").check(url).scheme == "https"


def test_the_other_rules() -> None:
    assert UrlRule("any").check("http://127.0.0.1:9/").port == 9
    assert UrlRule("public", "443,8443").check("https://example.com:8443/").port == 8443
    allowed = UrlRule("allow:hooks.example.com, other.example:9000")
    assert allowed.check("http://hooks.example.com/").host == "hooks.example.com"
    assert allowed.check("https://OTHER.example:9000/x").port == 9000
    for url in ("https://example.com/", "https://other.example/", "https://hooks.example.com.evil.example/"):
        with pytest.raises(UrlRefused):
            allowed.check(url)
    with pytest.raises(UrlRefused):
        UrlRule("off").check("https://example.com/")
    for text in ("allow:", "some", "", "public:x", "off,any"):
        with pytest.raises(ConfigurationError):
            UrlRule(text)
    with pytest.raises(ConfigurationError):
        UrlRule("public", "443,x")


def resolves(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names resolve to these addresses, one answer after another; gives the list of what was asked."""
    asked: list[str] = []
    left = list(answers)

    async def getaddrinfo(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        found = left.pop(0) if len(left) > 1 else left[0]
        kinds = {4: socket.AF_INET, 6: socket.AF_INET6}
        return [(kinds[ipaddress.ip_address(a).version], socket.SOCK_STREAM, 6, "", (a, port)) for a in found]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["93.184.216.34", "10.0.0.1"], ["::ffff:10.0.0.1"]])
async def test_every_address_of_a_name_is_judged(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    resolves(monkeypatch, addresses)
    outbound = Outbound(UrlRule("public"))
    with pytest.raises(UrlRefused, match="no public address"):
        await outbound.post("https://hooks.example/", b"", {})
    await outbound.close()


@respx.mock
async def test_the_judged_address_is_the_one_that_is_called(
    monkeypatch: pytest.MonkeyPatch, respx_mock: respx.Router
) -> None:
    asked = resolves(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    route = respx_mock.post("https://93.184.216.34/hook").respond(204)
    outbound = Outbound(UrlRule("public"))
    posted = await outbound.post("https://hooks.example/hook", b"body", {"webhook-id": "1"})
    await outbound.close()
    request = route.calls.last.request
    assert (posted.status, asked) == (204, ["hooks.example"])
    assert request.headers["host"] == "hooks.example"
    assert request.extensions["sni_hostname"] == "hooks.example"
    assert request.content == b"body"


async def test_no_redirect_and_not_more_than_a_little_is_read() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path == "/away":
            raise web.HTTPFound("/endless")
        response = web.StreamResponse()
        await response.prepare(request)
        sent = 0
        while sent < 100 * ANSWER_BYTES:
            try:
                await response.write(b"x" * 65536)
            except ConnectionError:
                break
            sent += 65536
        request.app[SENT].append(sent)
        return response

    app = web.Application()
    app[SENT] = []
    app.router.add_post("/{any}", handler)
    async with TestServer(app, host="127.0.0.1") as server:
        outbound = Outbound(UrlRule("any"))
        assert (await outbound.post(str(server.make_url("/away")), b"", {})).status == 302
        assert app[SENT] == []
        assert (await outbound.post(str(server.make_url("/endless")), b"", {})).status == 200
        with pytest.raises(httpx.TransportError):
            await outbound.post(f"http://127.0.0.1:{free_port()}/", b"", {})
        await outbound.close()


SENT = web.AppKey("sent", list[int])
