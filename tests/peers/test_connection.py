"""The ssh under a connection: it hangs, dies, is full, is beside transfers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from plugin.errors import PeerUnreachableError
from plugin.peers import connection
from plugin.peers.channel import PeerChannel
from plugin.peers.connection import StrangerError
from tests.support.etcd import new_address
from tests.support.hanging import STEPS, hanging
from tests.support.host import REPOSITORY, wait_until
from tests.support.peers import COMMAND_DEADLINE_S, PORT, PeerNode, control_sshs
from tests.support.processes import command, descendants, gone, stopped, with_argument

NODES = tuple[PeerNode, PeerNode]
WITHIN_S = COMMAND_DEADLINE_S
MIB = 2**20
# ssh gives a silent side up after six to eight seconds; this machine is a busy one.
SILENCE_MAX_S = 25.0


def hello(first: PeerNode, second: PeerNode, **options: Any) -> Any:
    deadline_s = options.pop("deadline_s", WITHIN_S)
    return first.peers.call(second.id, "hello", options, deadline_s=deadline_s)


@pytest.mark.parametrize("step", STEPS)
def test_a_side_that_hangs_costs_no_more_than_the_deadline(
    nodes: NODES, step: str
) -> None:
    first, second = nodes
    address = new_address()
    channel = PeerChannel(second.record(addresses=(address,)), first.ssh)
    with hanging(address, step, second.keys.host_key) as reached:
        began_s = time.monotonic()
        with pytest.raises(PeerUnreachableError, match=r"no connection|did not answer"):
            channel.call("hello", {}, deadline_s=0.5)
        assert time.monotonic() - began_s < 5
        assert reached.wait(WITHIN_S)
        [ssh] = control_sshs()
        if step in ("greeting", "keys", "login"):
            # It does not try for ever, and tells who did not answer.
            wait_until(lambda: gone([ssh]), timeout_s=SILENCE_MAX_S, what="it gives up")
            wait_until(
                lambda: f"{address} port {PORT}" in fault(channel),
                timeout_s=20,
                what="why is told",
            )
        channel.close()
        wait_until(lambda: control_sshs() == [], timeout_s=20, what="no ssh is left")


def fault(channel: PeerChannel) -> str:
    with pytest.raises(PeerUnreachableError) as error:
        channel.call("hello", {}, deadline_s=0.2)
    return error.value.cause


def test_who_waits_for_a_node_that_is_silent_hears_of_it(nodes: NODES) -> None:
    first, second = nodes
    [listener] = [
        pid
        for pid in with_argument(str(second.peer_directory / "sshd_config"))
        if command(pid) == "sshd"
    ]
    hello(first, second)
    began_s = time.monotonic()
    with (
        stopped([listener, *descendants(listener)]),
        pytest.raises(PeerUnreachableError, match="to node 'beta' has ended"),
    ):
        first.peers.call(second.id, "promise", {"epoch": 1}, deadline_s=WITHIN_S)
    assert time.monotonic() - began_s < SILENCE_MAX_S


def test_an_ssh_that_takes_nothing_costs_no_more_than_the_deadline(
    nodes: NODES,
) -> None:
    first, second = nodes
    hello(first, second)
    errors: list[str] = []

    def ask() -> None:
        began_s = time.monotonic()
        with pytest.raises(PeerUnreachableError) as error:
            hello(first, second, deadline_s=1.0, x="x" * 60_000)
        assert time.monotonic() - began_s < 4
        errors.append(error.value.cause)

    with stopped(control_sshs()):
        threads = [threading.Thread(target=ask) for _ in range(12)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    # Some have filled the socket, others found it full, and no line is half written.
    assert set(errors) == {
        "node 'beta' did not answer 'hello' in time",
        "node 'beta' took no request in time",
    }
    assert len(errors) == 12
    hello(first, second)
    assert len(second.server._sessions) == 1


def test_an_ssh_that_is_killed_is_replaced(nodes: NODES) -> None:
    first, second = nodes
    hello(first, second)
    [ssh] = control_sshs()
    os.kill(ssh, signal.SIGKILL)
    with suppress(PeerUnreachableError):  # it may be the one that finds it dead
        hello(first, second)
    hello(first, second)
    [other] = control_sshs()
    assert other != ssh


def test_nothing_is_left_of_closed_connections(nodes: NODES) -> None:
    first, second = nodes
    hello(first, second)
    first.peers.update([])
    wait_until(lambda: descriptors_and_sshs()[1] == 0, timeout_s=20, what="it ends")
    before = descriptors_and_sshs()
    for _ in range(5):
        first.peers.update([second.record()])
        hello(first, second)
        assert descriptors_and_sshs() > before
        first.peers.update([])
        wait_until(
            lambda: descriptors_and_sshs() == before,
            timeout_s=20,
            what="no descriptor, no process and no zombie is left",
        )


def descriptors_and_sshs() -> tuple[int, int]:
    """Return how many descriptors this process has, and how many sshs, zombies too."""
    sshs = [
        each
        for path in Path("/proc/self/task").glob("*/children")
        for each in path.read_text().split()
        if command(int(each)) == "ssh"
    ]
    return len(list(Path("/proc/self/fd").iterdir())), len(sshs)


DAEMON = """
import sys, time
from pathlib import Path
from plugin.peers.channel import Peers
from plugin.peers.peer import Peer
from plugin.peers.sharing import SharedSsh
directory, sockets, node_id, address, port, host_key = sys.argv[1:]
peers = Peers(SharedSsh(Path(directory), sockets=Path(sockets)))
peers.update([Peer(id=node_id, name="beta", addresses=(address,), port=int(port),
                   host_key=host_key, public_key=host_key)])
peers.call(node_id, "hello", {}, deadline_s=60)
assert "paramiko" not in sys.modules
print("asked", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_that_ends_leaves_no_ssh(nodes: NODES, how: signal.Signals) -> None:
    first, second = nodes
    arguments = (
        *(first.peer_directory, first.run_directory / "ssh", second.id),
        *(second.address, PORT, second.keys.public_host_key),
    )
    with subprocess.Popen(
        [sys.executable, "-c", DAEMON, *map(str, arguments)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"asked\n"
        [ssh] = control_sshs(daemon.pid)
        assert len(second.server._sessions) == 1
        daemon.send_signal(how)
        daemon.wait(20)
    wait_until(lambda: gone([ssh]), timeout_s=20, what="its ssh has ended")
    wait_until(
        lambda: len(second.server._sessions) == 0, timeout_s=20, what="so it is there"
    )


def test_what_ssh_is_told_is_the_same_for_requests_and_for_transfers(
    nodes: NODES,
) -> None:
    first, second = nodes
    peer = second.record()

    def settings(given: list[str]) -> set[str]:
        shown = subprocess.run(
            [given[0], "-G", *given[1:]],
            capture_output=True,
            text=True,
            check=True,
            timeout=WITHIN_S,
        )
        return set(shown.stdout.splitlines())

    transfer = settings([*first.ssh.command(peer), second.address])
    control = settings(first.ssh.control_command(peer, second.address))
    differ = {each.split()[0] for each in transfer ^ control}
    assert differ == {"controlpath", "permitlocalcommand", "localcommand"}
    assert "localcommand echo" in control
    assert "permitlocalcommand no" in transfer


@pytest.fixture
def transfer(nodes: NODES) -> Iterator[list[int]]:
    """Have a transfer go on that fills the line; its exit status is yielded at last."""
    first, second = nodes
    source = first.directory / "source"
    source.mkdir()
    (source / "file").write_bytes(64 * os.urandom(6 * MIB))
    status: list[int] = []
    thread = threading.Thread(
        target=lambda: status.append(first.send(second, source, ["file"]).returncode)
    )
    hello(first, second)
    thread.start()
    wait_until(lambda: staged(second) > MIB, timeout_s=WITHIN_S, what="bytes arrive")
    try:
        yield status
    finally:
        thread.join()


def staged(node: PeerNode) -> int:
    found = [e for e in node.staging.directory.rglob("*") if e.is_file()]
    return sum(each.stat().st_size for each in found)


def wait_ended(transfer: list[int]) -> None:
    wait_until(lambda: transfer != [], timeout_s=WITHIN_S, what="the transfer ends")


def test_a_call_does_not_wait_for_a_transfer(nodes: NODES, transfer: list[int]) -> None:
    first, second = nodes
    [ssh] = control_sshs()
    taken_s = []
    while not transfer:
        began_s = time.monotonic()
        hello(first, second)
        taken_s.append(time.monotonic() - began_s)
        time.sleep(0.01)
    assert transfer == [0]
    assert len(taken_s) > 5
    assert sorted(taken_s)[len(taken_s) // 2] < 0.5
    assert max(taken_s) < 5
    # A line that is full is not a silent one.
    assert control_sshs() == [ssh]


def test_a_transfer_and_a_session_do_not_end_with_each_other(
    nodes: NODES, transfer: list[int]
) -> None:
    first, second = nodes
    [ssh] = control_sshs()
    assert transfer == []
    os.kill(ssh, signal.SIGKILL)
    wait_ended(transfer)
    assert transfer == [0]
    with suppress(PeerUnreachableError):
        hello(first, second)
    hello(first, second)
    sshs = control_sshs()
    first.ssh.close(second.record())
    hello(first, second)
    assert control_sshs() == sshs


def test_a_key_that_becomes_known_is_tried_again(nodes: NODES) -> None:
    first, second = nodes
    second.authorization.write([])
    late = threading.Timer(0.6, second.authorization.write, [[first.record()]])
    late.start()
    assert hello(first, second)["you"] == first.id
    late.join()


def test_the_address_that_worked_last_is_tried_first(
    nodes: NODES, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = nodes
    addresses = (new_address(), second.address)
    first.peers.update([second.record(addresses=addresses)])
    hello(first, second)
    tried: list[str] = []
    control_command = first.ssh.control_command

    def noted(peer: Any, address: str) -> list[str]:
        tried.append(address)
        return control_command(peer, address)

    monkeypatch.setattr(first.ssh, "control_command", noted)
    [ssh] = control_sshs()
    os.kill(ssh, signal.SIGKILL)
    with suppress(PeerUnreachableError):
        hello(first, second)
    hello(first, second)
    assert tried == [second.address]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ssh: connect to host ::1 port 1: Permission denied", "Permission denied"),
        ("ssh: Could not resolve hostname x: No", "Could not resolve hostname x: No"),
        (
            "kex_exchange: read: reset\r\nConnection reset",
            "kex_exchange: read: reset; ",
        ),
        ("", "it hung up or fell silent"),
    ],
)
def test_what_ssh_says_is_passed_on(said: str, told: str) -> None:
    error = connection._fault("node 'x' at y port 7", said)
    assert not isinstance(error, StrangerError)
    assert error.cause.startswith(f"node 'x' at y port 7: {told}")
