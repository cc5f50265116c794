"""The doors between nodes: strangers, idle logins and greedy peers keep nobody out."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from plugin.peers.channel import Peers
from plugin.peers.sshd import UNUSED_MAX_S, PeerSshd
from tests.support.peers import COMMAND_DEADLINE_S, PORT, PeerNode

NODES = tuple[PeerNode, PeerNode]
STRANGERS = 100
# Loopback addresses that no node has.
SOURCES = ("127.99.0.1", "127.99.0.2", "127.99.0.3")


@contextmanager
def strangers(address: str, *sources: str) -> Iterator[None]:
    """Hold as many connections to *address* as it takes, without a key."""
    stopping, held = threading.Event(), threading.Semaphore(0)

    def hold(source: str) -> None:
        while not stopping.is_set():
            with (
                suppress(OSError),
                socket.create_connection((address, PORT), 2, (source, 0)) as connection,
            ):
                connection.settimeout(0.2)
                held.release()
                while not stopping.is_set():
                    with suppress(TimeoutError):
                        if not connection.recv(100):
                            break
            stopping.wait(0.1)

    threads = [
        threading.Thread(target=hold, args=(sources[number % len(sources)],))
        for number in range(STRANGERS)
    ]
    for each in threads:
        each.start()
    try:
        for _ in range(STRANGERS):
            assert held.acquire(timeout=COMMAND_DEADLINE_S)
        yield
    finally:
        stopping.set()
        for each in threads:
            each.join()


@pytest.mark.parametrize("count", [1, 3])
def test_strangers_keep_no_node_out(nodes: NODES, count: int) -> None:
    first, second = nodes
    with strangers(second.address, *SOURCES[:count]):
        for _ in range(4):
            # A new connection, as after a restart of the node.
            peers = Peers(first.ssh)
            peers.update([second.record()])
            assert peers.call(second.id, "hello", {}, deadline_s=20)["you"] == first.id
            peers.close()


def test_a_login_without_a_session_ends(nodes: NODES) -> None:
    first, second = nodes
    second.sshd.stop()
    second.sshd = PeerSshd(
        second.peer_directory,
        run_directory=second.run_directory,
        port=PORT,
        addresses=[second.address],
        unused_max_s=1,
    )
    second.sshd.start()
    second.await_sshd()
    # A session that goes on is not one of them.
    first.peers.call(second.id, "hello", {}, deadline_s=COMMAND_DEADLINE_S)
    channel = first.peers.channel(second.id)
    done = first.ssh_to(second, options=("-N",))
    assert done.returncode != 0
    assert channel.is_connected


def test_connections_that_transfers_share_are_used_before_they_are_let_go(
    nodes: NODES,
) -> None:
    command = nodes[0].ssh.command(nodes[1].record())
    [persist] = [each for each in command if each.startswith("ControlPersist=")]
    assert int(persist.partition("=")[2]) < UNUSED_MAX_S


def test_what_an_older_sshd_does_not_know_is_not_in_its_configuration(
    nodes: NODES,
) -> None:
    """It would not start: 9.2 has the option, 8.5 is enough."""
    configuration = nodes[0].sshd.configuration
    assert "UnusedConnectionTimeout 90" in configuration((9, 2))
    assert "UnusedConnectionTimeout" not in configuration((9, 1))
    assert "PerSourceMaxStartups 8" in configuration((8, 5))
    running = (nodes[0].peer_directory / "sshd_config").read_text()
    assert "UnusedConnectionTimeout 90" in running
