"""Which addresses a node finds, in network namespaces with real links and routes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugin.membership.addresses import ADDRESSES_MAX, Addresses

REPOSITORY = Path(__file__).resolve().parents[2]
FIND = """
import json, sys
from plugin.membership.addresses import Addresses
endpoints, peers = json.loads(sys.argv[1])
print(json.dumps(Addresses(endpoints).find(peers)))
"""
WATCH = """
import sys
from plugin.membership.addresses import Addresses, AddressWatcher
found = Addresses(["http://10.1.0.1:2379"])
watcher = AddressWatcher(lambda: print(*found.find(), flush=True))
watcher.start()
print("watching", flush=True)
sys.stdin.readline()
watcher.stop()
print("stopped", flush=True)
"""


class Namespace:
    """A network namespace; its links go with it."""

    def __init__(self) -> None:
        self.name = f"remora-{uuid.uuid4().hex[:8]}"
        self.outside("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def outside(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, timeout=20, capture_output=True)

    def ip(self, *arguments: str) -> None:
        self.outside("-n", self.name, *arguments)

    def link(self, name: str, *addresses: str, kind: str = "veth") -> None:
        """Add a link that is up; of a veth both ends are here."""
        far = ("peer", "name", f"far-{name}") if kind == "veth" else ()
        self.ip("link", "add", name, "type", kind, *far)
        for each in addresses:
            # Without the wait for another host's objection to an IPv6 address.
            self.ip(*("address", "add", each, "dev", name), *nodad(each))
        self.ip("link", "set", name, "up")
        if far:
            self.ip("link", "set", f"far-{name}", "up")

    def command(self, program: str, *arguments: str) -> list[str]:
        inside = ["ip", "netns", "exec", self.name]
        return [*inside, sys.executable, "-c", program, *arguments]

    def find(self, *endpoints: str, peers: tuple[str, ...] = ()) -> list[str]:
        done = subprocess.run(
            self.command(FIND, json.dumps([endpoints, peers])),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def close(self) -> None:
        self.outside("netns", "delete", self.name)


def nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []


@pytest.fixture
def space() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if shutil.which("ip") is None:
        pytest.skip("needs ip")
    made = Namespace()
    try:
        yield made
    finally:
        made.close()


def test_the_address_that_faces_the_endpoint_comes_first(space: Namespace) -> None:
    space.link("lan", "10.1.0.2/24", "fd00:1::2/64")
    space.link("storage", "10.2.0.2/24", "fd00:2::2/64")
    everything = {"10.1.0.2", "10.2.0.2", "fd00:1::2", "fd00:2::2"}
    for endpoint, first in (
        ("http://10.1.0.9:2379", "10.1.0.2"),
        ("https://10.2.0.9:2379", "10.2.0.2"),
        ("http://[fd00:1::9]:2379", "fd00:1::2"),
        ("http://[fd00:2::9]:2379", "fd00:2::2"),
    ):
        found = space.find(endpoint)
        assert found[0] == first
        assert set(found) == everything
    # etcd first, then what faces other nodes.
    found = space.find("http://10.2.0.9:2379", peers=("nonsense", "fd00:1::7"))
    assert found[:2] == ["10.2.0.2", "fd00:1::2"]


def test_a_route_may_lead_out_elsewhere(space: Namespace) -> None:
    space.link("lan", "10.1.0.2/24")
    space.link("wan", "10.2.0.2/24", "10.2.0.3/24")
    space.ip("route", "add", "default", "via", "10.2.0.1", "src", "10.2.0.3")
    assert space.find("http://203.0.113.9:2379")[0] == "10.2.0.3"
    assert space.find("http://10.1.0.9:2379")[0] == "10.1.0.2"


def test_without_a_route_all_that_is_global_is_told(space: Namespace) -> None:
    space.link("lan", "10.1.0.2/24", "fd00:1::2/64")
    space.link("idle", "10.3.0.2/24")
    space.ip("link", "set", "idle", "down")
    assert set(space.find("http://203.0.113.9:2379")) == {"10.1.0.2", "fd00:1::2"}


def test_a_bridge_counts_only_if_a_route_leads_there(space: Namespace) -> None:
    space.link("lan", "10.1.0.2/24")
    space.link("docker0", "172.17.0.1/16", kind="bridge")
    assert space.find("http://10.1.0.9:2379") == ["10.1.0.2"]
    # Some machines have their own address on a bridge.
    assert space.find("http://172.17.0.9:2379") == ["172.17.0.1", "10.1.0.2"]


def test_loopback_counts_only_among_loopback(space: Namespace) -> None:
    assert space.find("http://127.0.0.1:2379") == ["127.0.0.1"]
    space.link("lan", "10.1.0.2/24")
    for endpoint in ("http://127.0.0.1:2379", "http://localhost:2379"):
        # An etcd on every machine: others are out there.
        assert space.find(endpoint)[0] == "10.1.0.2"
    assert space.find("http://127.0.0.1:2379", "http://10.1.0.9:2379") == ["10.1.0.2"]
    # Our own address, by which our own etcd is reached, is as good as any.
    assert space.find("http://10.1.0.2:2379") == ["10.1.0.2"]


def test_a_namespace_without_a_network_has_no_address(space: Namespace) -> None:
    assert space.find("http://203.0.113.9:2379", "http://nowhere.invalid:1") == []


def test_there_are_not_too_many(space: Namespace) -> None:
    space.link("lan", *(f"10.1.0.{number}/24" for number in range(2, 20)))
    found = space.find("http://10.1.0.99:2379")
    assert len(found) == len(set(found)) == ADDRESSES_MAX


def test_changes_are_followed(space: Namespace) -> None:
    with subprocess.Popen(
        space.command(WATCH),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdin is not None

            def until(expected: list[str]) -> None:
                # What comes in between (a link that is up without its address) is
                # told as well; the end of the output fails.
                while (line := program.stdout.readline()).split() != expected:
                    assert line, f"no {expected}"

            until(["watching"])
            space.link("lan", "10.1.0.2/24")
            until(["10.1.0.2"])
            space.ip("address", "add", "10.1.0.5/24", "dev", "lan")
            until(["10.1.0.2", "10.1.0.5"])
            space.link("other", "10.7.0.1/24")
            until(["10.1.0.2", "10.1.0.5", "10.7.0.1"])
            space.ip("link", "delete", "lan")
            until(["10.7.0.1"])
            program.stdin.write("\n")
            program.stdin.flush()
            until(["stopped"])
        finally:
            program.kill()


def test_what_the_configuration_says_is_not_looked_for() -> None:
    found = Addresses(["http://nowhere.invalid:1"], fixed="192.0.2.7").find(
        ["10.0.0.1"]
    )
    assert found == ("192.0.2.7",)
