"""Sockets handed over and words sent as systemd does it; sd_listen_fds(3)."""

from __future__ import annotations

import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.protocol.node import Node, wait_until

pytestmark = pytest.mark.xdist_group("protocol-start")

# LISTEN_PID must be the daemon's own pid: this process becomes the daemon.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""
WATCH_S = 20.0


@contextmanager
def listening(node: Node) -> Iterator[socket.socket]:
    """Return a socket bound at the plugin socket's path, as systemd binds it."""
    node.plugin_socket.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as ours:
        ours.bind(str(node.plugin_socket))
        ours.listen(128)
        yield ours


def launch_with(
    node: Node, handed: Sequence[socket.socket], **environment: str
) -> None:
    """Start the daemon with *handed* as its descriptors from 3 on."""
    first = str(handed[0].fileno())
    command = [sys.executable, "-c", HAND_OVER, first, *node.remora("serve")]
    node.launch(
        {"LISTEN_FDS": str(len(handed)), "LISTEN_FDNAMES": "remora.socket"}
        | environment,
        command=command,
        pass_fds=[each.fileno() for each in handed],
    )


def test_a_handed_socket_is_served_and_left_in_place(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    with listening(node) as ours:
        inode = node.plugin_socket.stat().st_ino
        for _ in range(2):
            launch_with(node, [ours])
            node.wait_ready()
            assert node.call("Capabilities").status == 200
            assert node.stop() == 0
            # systemd keeps listening: what connects now waits for the next daemon.
            assert node.plugin_socket.stat().st_ino == inode
            assert not node.control_socket.exists()


def test_a_call_made_before_the_daemon_starts_is_answered(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    with listening(node) as ours, socket.socket(socket.AF_UNIX) as early:
        early.connect(str(node.plugin_socket))
        early.sendall(b"POST /VolumeDriver.List HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        launch_with(node, [ours])
        early.settimeout(WATCH_S)
        assert early.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


def test_descriptors_of_another_process_are_not_taken(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    # What a child of a socket-activated service sees in its environment.
    node.start({"LISTEN_FDS": "1", "LISTEN_PID": "1"})
    assert node.plugin_socket.is_socket()
    assert node.stop() == 0
    assert not node.plugin_socket.exists()


def test_anything_but_one_unix_stream_socket_is_refused(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()

    def refused(handed: socket.socket, count: str = "1") -> str:
        with handed:
            launch_with(node, [handed], LISTEN_FDS=count)
            assert node.wait_exit() == 17
        return node.log_tail()

    tcp = socket.create_server(("127.0.0.1", 0))
    assert "is not a Unix stream socket" in refused(tcp)
    datagram = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    assert refused(datagram).count("is not a Unix stream socket") == 2
    assert "2 sockets were handed over" in refused(socket.socket(), count="2")
    assert not node.control_socket.exists()


def test_systemd_socket_activate(make_node: Callable[..., Node]) -> None:
    """The real hand-over: the daemon starts with the first call and answers it."""
    if shutil.which("systemd-socket-activate") is None:
        pytest.skip("needs systemd-socket-activate")
    node = make_node()
    node.plugin_socket.parent.mkdir()
    passed = [f"--setenv={key}={value}" for key, value in node.environment().items()]
    node.launch(
        command=[
            *("systemd-socket-activate", f"--listen={node.plugin_socket}"),
            *passed,
            *node.remora("serve"),
        ]
    )
    wait_until(node.plugin_socket.is_socket, "the socket is there")
    assert not node.control_socket.exists()
    assert node.call("Capabilities").status == 200
    node.create("x")
    assert node.stop() == 0
    assert node.plugin_socket.is_socket()
    assert not node.control_socket.exists()


def words(listener: socket.socket, last: str) -> list[str]:
    """Return the lines sent to *listener* up to one that is *last*."""
    lines: list[str] = []
    while last not in lines:
        lines += listener.recv(4096).decode().split("\n")
    return lines


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_of_readiness_and_stop(
    make_node: Callable[..., Node], abstract: bool
) -> None:
    node = make_node()
    address = f"@{node.directory}" if abstract else str(node.directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(address.replace("@", "\0"))
        listener.settimeout(WATCH_S)
        node.launch({"NOTIFY_SOCKET": address})
        assert words(listener, "READY=1")[0] == "READY=1"
        # Ready means that calls are answered, without another try.
        assert node.call("List").json() == {"Volumes": []}
        assert node.control("GET", "/v1/status").status == 200
        assert node.stop() == 0
        assert words(listener, "STOPPING=1")


def test_readiness_is_not_told_by_a_daemon_that_does_not_start(
    node: Node, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "n"))
        listener.setblocking(False)
        code, _ = node.refused_start({"NOTIFY_SOCKET": str(tmp_path / "n")})
        assert code == 13
        with pytest.raises(BlockingIOError):
            listener.recv(4096)


def test_a_notify_socket_that_is_gone_is_no_reason_to_stop(
    make_node: Callable[..., Node],
) -> None:
    node = make_node()
    node.start({"NOTIFY_SOCKET": str(node.directory / "none")})

    def warnings() -> list[dict[str, Any]]:
        return [each for each in node.log_lines() if each["level"] == "warning"]

    # It answers first, and tells that it does afterwards.
    wait_until(warnings, "the failure is told")
    [warning] = warnings()
    assert "systemd was not told 'READY=1" in warning["event"]
    assert "\n" not in warning["event"]
    assert node.stop() == 0


def test_the_handed_socket_keeps_its_mode(make_node: Callable[..., Node]) -> None:
    node = make_node()
    with listening(node) as ours:
        node.plugin_socket.chmod(0o660)
        launch_with(node, [ours])
        node.wait_ready()
        assert stat.S_IMODE(node.plugin_socket.stat().st_mode) == 0o660
        began_s = time.monotonic()
        assert node.stop() == 0
        assert time.monotonic() - began_s < WATCH_S
