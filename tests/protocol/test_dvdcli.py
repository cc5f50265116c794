"""
What Mesos sends: `dvdcli`, which its agents call around a task, is an engine of 2015.

Each of its commands begins with a Create, that to unmount, too, and there without any
options; Mount and Unmount have no id. Source: dvdcli 0.2 and 0.3, and the client of
Docker 1.7 to 1.10 in them.
"""

from __future__ import annotations

import json

import pytest

from tests.protocol import client
from tests.protocol.node import Node

pytestmark = pytest.mark.xdist_group("protocol-golden")

# Of Docker 1.7 and 1.8, and of 1.9 and 1.10.
TYPES = (
    "application/vnd.docker.plugins.v1+json",
    "application/vnd.docker.plugins.v1.1+json",
    "application/vnd.docker.plugins.v1.2+json",
)


class Dvdcli:
    """Its commands for the volume *name*; *accept* is what its client asks for."""

    def __init__(self, node: Node, name: str, accept: str = TYPES[0]) -> None:
        self._node, self._name, self._accept = node, name, accept

    def mount(self, **options: str) -> str:
        """Return what `dvdcli mount --volumeopts=KEY=VALUE` prints."""
        self._begin(options)
        return str(self._ask("VolumeDriver.Mount")["Mountpoint"])

    def unmount(self) -> None:
        self._begin(None)
        self._ask("VolumeDriver.Unmount")

    def path(self) -> str:
        self._begin(None)
        return str(self._ask("VolumeDriver.Path")["Mountpoint"])

    def remove(self) -> None:
        """End the volume; this command alone makes none first."""
        self._send("Plugin.Activate", b"")
        self._ask("VolumeDriver.Remove")

    def _begin(self, options: dict[str, str] | None) -> None:
        activated = self._send("Plugin.Activate", b"")
        assert activated.json() == {"Implements": ["VolumeDriver"]}
        self._ask("VolumeDriver.Create", Opts=options)

    def _ask(self, call: str, **more: object) -> dict[str, object]:
        answer = self._send(call, client.go_json({"Name": self._name, **more}))
        assert answer.error == "", f"{call}: {answer.error}"
        return dict(json.loads(answer.body))

    def _send(self, call: str, body: bytes) -> client.Answer:
        request = (
            f"POST /{call} HTTP/1.1\r\nHost: \r\n"
            f"User-Agent: Go 1.1 package http\r\nContent-Length: {len(body)}\r\n"
            f"Accept: {self._accept}\r\nAccept-Encoding: gzip\r\n\r\n"
        ).encode()
        answer = client.parse(self._node.send(request + body))
        assert answer.status == 200
        assert "content-encoding" not in answer.headers
        return answer


@pytest.mark.parametrize("accept", TYPES)
def test_a_task_s_life(node: Node, accept: str) -> None:
    """The volume is made by the first one that mounts it, as the task says."""
    name = f"mesos-{TYPES.index(accept)}"
    dvdcli = Dvdcli(node, name, accept)
    mountpoint = dvdcli.mount(mode="0750", replicas="1")
    assert node.get(name)["Status"]["options"]["mode"] == "0750"
    (node.path(mountpoint) / "row").write_text("kept")
    assert dvdcli.path() == mountpoint
    dvdcli.unmount()
    assert node.mounts() == []
    again = dvdcli.mount(mode="0750", replicas="1")
    assert (node.path(again) / "row").read_text() == "kept"
    dvdcli.unmount()
    dvdcli.remove()
    assert name not in node.names()


def test_each_task_of_an_agent_counts(node: Node) -> None:
    """Without ids, the volume is there until as many have unmounted as mounted."""
    dvdcli = Dvdcli(node, "twice")
    dvdcli.mount()
    dvdcli.mount()
    dvdcli.unmount()
    assert len(node.mounts()) == 1
    dvdcli.unmount()
    assert node.mounts() == []
    # An agent that recovers unmounts once more what it is not sure of.
    dvdcli.unmount()
    dvdcli.remove()


def test_a_task_that_wants_another_volume_is_refused(node: Node) -> None:
    """Only who asks for nothing in particular takes what is there."""
    node.create("wanted", mode="0750")
    for options in ({"mode": "0700"}, {}):
        told = node.refused("Create", Name="wanted", Opts=options)
        assert told.startswith("volume-exists: volume 'wanted' exists with other")
    node.ok("Create", Name="wanted", Opts=None)
