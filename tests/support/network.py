"""Hosts with a network of their own (namespaces of the kernel), between which packets can be made to vanish.

Every packet between two hosts, or between one and the tests, passes a router; what it is told to swallow is gone
without a word, as on a network that broke: nobody gets a reset or is told that the host cannot be reached.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


class NoNetwork(RuntimeError):
    """This machine cannot make networks; the message says what is missing."""


@dataclass(frozen=True)
class Host:
    """One host: its address, and what a command is preceded by that runs there."""

    address: str
    through: tuple[str, ...]


class Network:
    """A router and its hosts. The tests themselves are at :attr:`home`."""

    def __init__(self) -> None:
        number = random.SystemRandom().randrange(64 * 256)
        self._net = f"10.{64 + number // 256}.{number % 256}"
        self._name = f"emq{number:x}"
        self._router = f"{self._name}r"
        self._spaces: list[str] = []
        self._swallowed: list[tuple[str, ...]] = []
        self._numbers = itertools.count(1)
        self.home = ""

    def open(self) -> None:
        """Make the router and the tests' way to it. Raises ``NoNetwork``."""
        if shutil.which("ip") is None:
            raise NoNetwork("networks for tests need ip: apt-get install iproute2")
        if os.geteuid() != 0:
            raise NoNetwork("networks for tests need root, who may make namespaces")
        self._space(self._router)
        forwarding = "echo 1 > /proc/sys/net/ipv4/ip_forward"
        _run("ip", "netns", "exec", self._router, "sh", "-c", forwarding)
        self.home = self._link(None)
        _run("ip", "route", "add", f"{self._net}.0/24", "via", self._beside(self.home))

    def close(self) -> None:
        """Take everything away; links go with their namespaces."""
        for name in reversed(self._spaces):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
        self._spaces.clear()

    def host(self) -> Host:
        """A new host. What runs there must have ended when the network closes."""
        name = f"{self._name}h{len(self._spaces)}"
        self._space(name)
        address = self._link(name)
        _run("ip", "-n", name, "route", "add", "default", "via", self._beside(address))
        return Host(address, ("ip", "netns", "exec", name))

    def cut(self, *hosts: Host, off: str | Host = "") -> None:
        """Swallow everything between these hosts and another (``off``; everybody)."""
        for host in hosts:
            self.swallow(host.address, off)
            self.swallow(off, host.address)

    def swallow(self, source: str | Host, to: str | Host) -> None:
        """Swallow what goes one way only; either end may be empty, for anybody."""
        ends = [end.address if isinstance(end, Host) else end for end in (source, to)]
        rule = tuple(word for name, end in zip(("from", "to"), ends, strict=True) if end for word in (name, end))
        _run("ip", "-n", self._router, "rule", "add", *rule, "blackhole")
        self._swallowed.append(rule)

    def heal(self) -> None:
        """Let everything through again."""
        for rule in self._swallowed:
            _run("ip", "-n", self._router, "rule", "del", *rule, "blackhole")
        self._swallowed.clear()

    def _space(self, name: str) -> None:
        _run("ip", "netns", "add", name)
        self._spaces.append(name)
        _run("ip", "-n", name, "link", "set", "lo", "up")

    def _link(self, space: str | None) -> str:
        """Join a namespace (``None``: the tests' own) to the router; answers its address."""
        number = next(self._numbers)
        near, far = f"{self._name}n{number}", f"{self._name}f{number}"
        inside = ("-n", space) if space else ()
        _run("ip", "-n", self._router, "link", "add", near, "type", "veth", "peer", "name", far)
        _run("ip", "-n", self._router, "link", "set", far, "netns", space or str(os.getpid()))
        address = f"{self._net}.{4 * number + 2}"
        for at, link, mine in ((("-n", self._router), near, self._beside(address)), (inside, far, address)):
            _run("ip", *at, "addr", "add", f"{mine}/30", "dev", link)
            _run("ip", *at, "link", "set", link, "up")
        return address

    def _beside(self, address: str) -> str:
        """The router's address on a host's link."""
        return f"{self._net}.{int(address.rpartition('.')[2]) - 1}"


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NoNetwork(f"the kernel refuses {' '.join(command)}: {done.stderr.strip()}")


@contextmanager
def network() -> Iterator[Network]:
    """A network for a test's time. Raises ``NoNetwork``."""
    made = Network()
    try:
        made.open()
        yield made
    finally:
        made.close()
