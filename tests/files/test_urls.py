"""A signed URL opens one file of one tenant for an hour, and nothing else."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from broker.errors import ConfigurationError, Forbidden
from broker.files.secret import Secrets, configured_secrets, own_secret, refuse_another
from broker.files.urls import UrlSigner, is_signed

OLD, NEW = "old-secret-0123456789", "new-secret-0123456789"
PATH = "/api/jobs/j/outputs/1-0.png"


class Clock:
    now = 1_700_000_000.5

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def signer(clock: Clock, *secrets: str, url: str | None = None) -> UrlSigner:
    return UrlSigner(Secrets(list(secrets or [NEW])), url, clock=clock)


def parts(url: str) -> tuple[str, dict[str, str]]:
    split = urlsplit(url)
    return unquote(split.path), dict(parse_qsl(split.query))


def test_a_signed_url_names_its_tenant(clock: Clock) -> None:
    url = signer(clock).sign(PATH, "acme")
    path, query = parts(url)
    assert url.startswith("/api/")
    assert is_signed(query)
    assert signer(clock).verify(path, query) == "acme"


def test_a_public_url_makes_it_absolute(clock: Clock) -> None:
    url = signer(clock, url="https://emq.example/").output_url("t", "j", "1-0.png")
    assert url.startswith("https://emq.example/api/jobs/j/outputs/1-0.png?")


def test_it_ends_after_an_hour(clock: Clock) -> None:
    path, query = parts(signer(clock).sign(PATH, "t", age_s=10**9))
    clock.now += 3599
    assert signer(clock).verify(path, query) == "t"
    clock.now += 2
    with pytest.raises(Forbidden, match="expired"):
        signer(clock).verify(path, query)


@pytest.mark.parametrize(
    ("field", "value"),
    [("t", "other"), ("t", ""), ("e", "1999999999"), ("e", ""), ("e", "x"), ("e", "1700003600.0"), ("k", "00000000"),
     ("k", "é"), ("k", ""), ("s", "0" * 64), ("s", ""), ("s", "é"), ("s", "\ud800")],
)  # fmt: skip
def test_a_changed_field_is_refused(clock: Clock, field: str, value: str) -> None:
    path, query = parts(signer(clock).sign(PATH, "t"))
    with pytest.raises(Forbidden):
        signer(clock).verify(path, {**query, field: value})


def test_it_opens_no_other_path(clock: Clock) -> None:
    _, query = parts(signer(clock).sign(PATH, "t"))
    for path in ("/api/jobs/j/outputs/1-1.png", "/api/jobs/k/outputs/1-0.png", PATH + "/", "/"):
        with pytest.raises(Forbidden):
            signer(clock).verify(path, query)


def test_fields_cannot_be_shifted_into_each_other(clock: Clock) -> None:
    path, query = parts(signer(clock).sign("/a", "t\n1"))
    with pytest.raises(Forbidden):
        signer(clock).verify(path + "\nt", {**query, "t": "1"})


def test_a_new_secret_in_front_keeps_old_urls_alive(clock: Clock) -> None:
    path, query = parts(signer(clock, OLD).sign(PATH, "t"))
    assert signer(clock, NEW, OLD).verify(path, query) == "t"
    with pytest.raises(Forbidden):
        signer(clock, NEW).verify(path, query)
    _, fresh = parts(signer(clock, NEW, OLD).sign(PATH, "t"))
    assert signer(clock, NEW).verify(PATH, fresh) == "t"


def test_keys_differ_by_purpose() -> None:
    secrets = Secrets([NEW])
    assert secrets.signing_key("a")[1] != secrets.signing_key("b")[1]


def test_a_short_secret_is_refused() -> None:
    for configured in ("short", f"{NEW},short"):
        with pytest.raises(ConfigurationError, match="16 characters"):
            configured_secrets(configured)


def test_a_secret_is_made_once_also_by_many_at_once(tmp_path: Path) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def load() -> None:
        start.wait()
        found.append(own_secret(tmp_path / "data"))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["secret"]
    assert stat.S_IMODE((tmp_path / "data" / "secret").stat().st_mode) == 0o600


def test_a_pool_whose_secret_is_unknown_is_refused() -> None:
    new, old, both = (configured_secrets(text) for text in (NEW, OLD, f"{NEW}, {OLD}"))
    for mine, pool in ((new, ""), (new, new.key_id), (both, old.key_id)):
        refuse_another(mine, pool, True)
    for configured in (True, False):
        with pytest.raises(ConfigurationError, match="Set the same EMQ_SECRET"):
            refuse_another(new, old.key_id, configured)
