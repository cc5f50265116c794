"""
A share that nobody has read since the start: what is on it, Get must not deny.

Docker takes any answer without the volume for "no", and makes a local one in its place.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import pytest

from plugin.limits import GET_WAIT_S, GETS_WAITING_MAX
from tests.protocol import client
from tests.protocol.node import Node, running, wait_until

PROFILE = """
[profiles.nas]
server = "127.0.0.1"
share = "/export"
mountOptions = "port={port}"
"""
# What a Get takes that waits for nothing.
AT_ONCE_S = 2.0


@pytest.fixture
def node() -> Iterator[Node]:
    """Yield a node whose share's server refuses all connections."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        profile = PROFILE.format(port=free.getsockname()[1])
    with running(profiles=profile) as node:
        wait_until(lambda: "unreachable" in node.log_tail(), "the share was looked at")
        yield node


def timed(node: Node, operation: str, name: str) -> float:
    began_s = time.monotonic()
    assert node.call(operation, {"Name": name, "ID": "id"}).status == 200
    return time.monotonic() - began_s


def test_a_name_that_may_be_on_the_share_is_not_denied(node: Node) -> None:
    get = client.engine_request("VolumeDriver.Get", client.go_json({"Name": "rows"}))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(node.send, get, timeout_s=GET_WAIT_S)
        wait_until(lambda: "waits for an answer" in node.log_tail(), "the Get waits")
        # Meanwhile others are answered at once, and about what is known, too.
        assert node.call("Create", {"Name": "here"}).json() == {}
        assert timed(node, "Get", "here") < AT_ONCE_S
        assert timed(node, "List", "") < AT_ONCE_S
        assert timed(node, "Mount", "rows") < AT_ONCE_S
        assert timed(node, "Get", "no/name") < AT_ONCE_S
        # Docker asks for each name that it makes up for a volume without one.
        assert timed(node, "Get", 16 * "0fe1") < AT_ONCE_S
        assert not asking.done()
        # It is left unanswered, whatever ends the wait.
        assert node.stop(signal.SIGTERM) == 0
        assert asking.result(5) == b""


def test_a_mount_of_such_a_name_says_so(node: Node) -> None:
    error = node.call("Mount", {"Name": "rows", "ID": "i"}).error
    assert error.startswith("not-known-yet: whether there is a volume 'rows'")


def test_no_more_gets_wait_than_leave_room_for_others(node: Node) -> None:
    get = client.engine_request("VolumeDriver.Get", client.go_json({"Name": "rows"}))
    with ThreadPoolExecutor(GETS_WAITING_MAX + 1) as pool:
        asking = [
            pool.submit(node.send, get, timeout_s=GET_WAIT_S)
            for _ in range(GETS_WAITING_MAX + 1)
        ]
        [ended] = wait(asking, 5, FIRST_COMPLETED).done
        assert ended.result() == b""
        node.stop(signal.SIGTERM)


def test_people_hear_at_once_that_nobody_knows(node: Node) -> None:
    began_s = time.monotonic()
    answer = node.control("GET", "/v1/volumes/rows")
    assert answer.status == 503
    assert "nobody has read 127.0.0.1" in answer.json()["error"]["cause"]
    assert time.monotonic() - began_s < AT_ONCE_S
