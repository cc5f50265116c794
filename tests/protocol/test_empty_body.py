"""
After a broken connection the engine repeats a call with its body gone.

What it wanted is unknown: nothing may be done, and Get must not even be answered,
because any answer without a volume makes the engine forget the volume's references.
"""

from __future__ import annotations

import pytest

from tests.protocol import client
from tests.protocol.node import Node

pytestmark = pytest.mark.xdist_group("protocol-golden")

BLANK = (b"", b"\n", b" \r\n\t ")


def state(node: Node) -> object:
    """Return everything that a call could have changed."""
    listed = node.control("GET", "/v1/volumes").json()
    return listed, node.mounts(), node.mount_directories(), node.stored()


@pytest.mark.parametrize("body", BLANK)
@pytest.mark.parametrize("call", ["Create", "Mount", "Unmount", "Remove", "Path"])
def test_a_call_without_a_body_does_nothing(node: Node, call: str, body: bytes) -> None:
    node.create("kept")
    node.ok("Mount", Name="kept", ID="a")
    before = state(node)
    sent = client.engine_request(f"VolumeDriver.{call}", body)
    answer = client.parse(node.send(sent))
    assert answer.status == 200
    assert answer.error.startswith("invalid-request: the request had no body")
    assert state(node) == before
    node.ok("Unmount", Name="kept", ID="a")
    node.ok("Remove", Name="kept")


@pytest.mark.parametrize("body", BLANK)
def test_get_without_a_body_is_left_unanswered(node: Node, body: bytes) -> None:
    sent = client.engine_request("VolumeDriver.Get", body)
    assert node.send(sent) == b""
    # dockerd repeats it five times; the volume is still known after all of them.
    node.create("known")
    for _ in range(5):
        assert node.send(sent) == b""
    assert node.get("known")["Name"] == "known"
    node.ok("Remove", Name="known")


def test_a_request_without_content_length_has_no_body_either(node: Node) -> None:
    head = b"POST /VolumeDriver.%s HTTP/1.1\r\nHost: \r\n\r\n"
    assert node.send(head % b"Get") == b""
    assert "no body" in client.parse(node.send(head % b"Create")).error
    assert node.names() == []


def test_get_of_the_empty_name_is_answered_not_found(node: Node) -> None:
    assert node.refused("Get", Name="").startswith("volume-not-found: ")


@pytest.mark.parametrize("body", [b"", b"null\n", b"[]\n"])
def test_list_and_capabilities_need_no_body(node: Node, body: bytes) -> None:
    for call, key in (("List", "Volumes"), ("Capabilities", "Capabilities")):
        sent = client.engine_request(f"VolumeDriver.{call}", body)
        assert key in client.parse(node.send(sent)).json()
