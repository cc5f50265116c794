"""Many connections, silent ones, slow ones, ones that break: others do not notice."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.protocol import client
from tests.protocol.node import Node, memory_bytes, wait_until

pytestmark = pytest.mark.xdist_group("protocol-connections")

# Generous: on a busy machine an answer may be slow, but it may not wait for the
# time-out (15 s) of somebody else's connection.
PROMPT_S = 8.0
HEAD = b"POST /VolumeDriver.Create HTTP/1.1\r\nHost: \r\nContent-Length: 15\r\n"
KEPT = b'{"Name":"kept"}\n'


@contextmanager
def connections(node: Node, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Hold *count* connections that have sent only *sent*."""
    with ExitStack() as stack:
        held = []
        for _ in range(count):
            each = stack.enter_context(client.connect(node.plugin_socket))
            if sent:
                each.sendall(sent)
            held.append(each)
        yield held


@contextmanager
def killed_at(node: Node, send: int) -> Iterator[None]:
    """Have strace kill the daemon as one of its threads sends for the *send*th time."""
    injection = f"inject=sendto:signal=KILL:when={send}"
    daemon = node.process.pid
    tracer = subprocess.Popen(
        ["strace", "-f", "-q", "-o", "/dev/null", "-e", injection, "-p", str(daemon)]
    )
    try:
        threads = list(Path(f"/proc/{daemon}/task").iterdir())
        attached = f"TracerPid:\t{tracer.pid}\n"
        wait_until(
            lambda: all(
                attached in status_of(each) for each in threads if each.exists()
            ),
            "strace is attached",
        )
        yield
    finally:
        tracer.kill()
        tracer.wait()


def status_of(thread: Path) -> str:
    """Return the status; of one that has ended, what makes it one to ask again."""
    with suppress(OSError):
        return (thread / "status").read_text()
    return ""


def descriptors(node: Node) -> int:
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


def assert_prompt(node: Node) -> None:
    """Fail unless Get, List and a whole volume's life are answered soon."""
    began_s = time.monotonic()
    node.create("prompt")
    assert node.names() == ["prompt"]
    assert node.get("prompt")["Name"] == "prompt"
    node.ok("Mount", Name="prompt", ID="a")
    node.ok("Unmount", Name="prompt", ID="a")
    node.ok("Remove", Name="prompt")
    assert time.monotonic() - began_s < PROMPT_S


@pytest.mark.parametrize(
    ("count", "sent"),
    [
        (200, b""),
        (30, b"POST /VolumeDriver.Cre"),
        (30, HEAD),
        (200, HEAD + b"\r\n" + b'{"Name":"ma'),
        (1000, b""),
        # Above 1,024, where select() ends, and above the length of the queue.
        (1200, b""),
        (1200, b"POST"),
    ],
)
def test_unfinished_requests_delay_nobody(node: Node, count: int, sent: bytes) -> None:
    with connections(node, count, sent):
        assert_prompt(node)
        assert descriptors(node) > count
        assert memory_bytes(node.process.pid) < 150 * 2**20
    assert node.names() == []


def test_held_connections_cost_threads_nothing(node: Node) -> None:
    def threads() -> int:
        return len(list(Path(f"/proc/{node.process.pid}/task").iterdir()))

    before = threads()
    with connections(node, 300, HEAD):
        assert_prompt(node)
        assert threads() <= before + 2


def test_closed_connections_give_their_descriptors_back(node: Node) -> None:
    node.names()
    before = descriptors(node)
    with connections(node, 300, b""):
        node.names()
        assert descriptors(node) >= before + 300
    for _ in range(200):
        node.names()
    wait_until(lambda: descriptors(node) <= before + 2, "descriptors are given back")


def test_20_parallel_connections_are_served(node: Node) -> None:
    def life(number: int) -> str:
        name = f"p{number}"
        node.create(name)
        for _ in range(3):
            node.ok("Mount", Name=name, ID="a")
            assert node.get(name)["Mountpoint"]
            node.ok("Unmount", Name=name, ID="a")
        node.ok("Remove", Name=name)
        return name

    with ThreadPoolExecutor(20) as threads:
        assert len(set(threads.map(life, range(20)))) == 20
    assert node.names() == []
    assert node.stored() == []
    assert node.mount_directories() == []


def test_every_connection_is_closed_after_its_answer(node: Node) -> None:
    sent = client.engine_request("VolumeDriver.List", b"{}\n")
    with client.connect(node.plugin_socket) as kept:
        kept.sendall(sent.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
        # read_all returns when the server closes, not when we do.
        answer = client.parse(client.read_all(kept))
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("send", [1, 2])
def test_a_killed_daemon_leaves_no_half_answer(
    make_node: Callable[..., Node], send: int
) -> None:
    """An engine that gets a header alone takes the volume for gone, and forgets it."""
    node = make_node()
    node.start()
    node.create("kept")
    with killed_at(node, send):
        answer = node.send(client.engine_request("VolumeDriver.Get", KEPT))
    if send == 1:
        assert answer == b""
    else:
        assert client.parse(answer).json()["Volume"]["Name"] == "kept"


def test_of_pipelined_requests_only_the_first_is_done(node: Node) -> None:
    both = b"".join(
        client.engine_request("VolumeDriver.Create", b'{"Name":"%s"}\n' % name)
        for name in (b"first", b"second")
    )
    assert client.parse(node.send(both)).json() == {}
    node.create("third")
    assert node.names() == ["first", "third"]
    for name in ("first", "third"):
        node.ok("Remove", Name=name)


def test_a_request_may_come_byte_by_byte(node: Node) -> None:
    sent = client.engine_request("VolumeDriver.Get", client.go_json({"Name": "none"}))
    with client.connect(node.plugin_socket) as slow:
        for byte in sent:
            slow.sendall(bytes([byte]))
            time.sleep(0.001)
        answer = client.parse(client.read_all(slow))
    assert answer.error.startswith("volume-not-found")


def test_answers_that_nobody_reads(node: Node) -> None:
    """More than a socket's buffer holds, asked for by clients that do not read."""
    members = ",".join(f"n{number:04}" for number in range(680))
    names = [f"big{number}" for number in range(60)]
    for name in names:
        node.ok("Create", Name=name, Opts={"members": members})
    sent = client.control_request("GET", "/v1/volumes")
    with ExitStack() as stack:
        held = []
        for _ in range(30):
            held.append(stack.enter_context(client.connect(node.control_socket)))
            held[-1].sendall(sent)
        began_s = time.monotonic()
        rows = node.control("GET", "/v1/volumes").json()
        assert time.monotonic() - began_s < PROMPT_S
        assert sorted(each["name"] for each in rows) == sorted(names)
        # One of them reads after all, and gets the whole of it.
        answer = client.parse(client.read_all(held[0]))
        assert len(answer.body) > 250_000
        assert answer.json() == rows
    for name in names:
        node.ok("Remove", Name=name)


def test_callers_that_hang_up_leave_no_error_behind(node: Node) -> None:
    node.create("left")
    bodies = {
        "Plugin.Activate": b"",
        "VolumeDriver.List": b"{}\n",
        "VolumeDriver.Get": b'{"Name":"left"}\n',
        "VolumeDriver.Capabilities": b"{}\n",
    }
    for call, body in bodies.items():
        for _ in range(30):
            with client.connect(node.plugin_socket) as leaving:
                leaving.sendall(client.engine_request(call, body))
    assert node.names() == ["left"]
    node.ok("Remove", Name="left")
    # The fixture holds us to it: no line of level `error`.


def test_the_control_socket_withstands_the_same(node: Node) -> None:
    with ExitStack() as stack:
        for _ in range(300):
            held = stack.enter_context(client.connect(node.control_socket))
            held.sendall(b"GET /v1/volumes HT")
        assert node.control("GET", "/v1/status").status == 200
        body = b'{"name":"x","options":' + b"[" * 200_000
        sent = client.control_request("POST", "/v1/volumes", body)
        answer = client.parse(client.exchange(node.control_socket, sent))
        assert answer.status == 400
        assert json.loads(answer.body)["error"]["code"] == "invalid-request"
    assert_prompt(node)


def test_both_sockets_are_for_root_alone(node: Node) -> None:
    for path in (node.plugin_socket, node.control_socket):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_uid == 0


@pytest.mark.long
def test_silent_clients_are_sent_away(node: Node) -> None:
    with connections(node, 200, HEAD) as held:
        for each in held:
            each.settimeout(60)
            assert client.read_all(each) == b""
