"""What a transfer may take: bandwidth, and the processor's and disk's time."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from plugin.peers.sharing import SharedSsh
from tests.support.host import wait_until
from tests.support.peers import COMMAND_DEADLINE_S, PeerNode
from tests.support.processes import command, descendants

NODES = tuple[PeerNode, PeerNode]
MIB = 2**20
SENDERS_NICE, RECEIVERS_NICE = 7, 9


@pytest.fixture
def source(nodes: NODES) -> Path:
    directory = nodes[0].directory / "source"
    directory.mkdir()
    (directory / "file").write_bytes(os.urandom(8 * MIB))
    return directory


def limited(node: PeerNode, limit_bytes: int) -> SharedSsh:
    return SharedSsh(
        node.peer_directory,
        sockets=node.run_directory / "ssh",
        bandwidth_limit_bytes=limit_bytes,
        nice=SENDERS_NICE,
    )


def seconds_of_a_transfer(nodes: NODES, source: Path, seq: int) -> float:
    began_s = time.monotonic()
    done = nodes[0].send(nodes[1], source, ["file"], commit=(5, seq))
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began_s


def test_a_limit_makes_a_transfer_slower(nodes: NODES, source: Path) -> None:
    """At 1 MiB in a second 8 MiB take eight; without, a fraction of one."""
    first, second = nodes
    assert first.send(second, source, []).returncode == 0  # the connection is there
    without_s = seconds_of_a_transfer(nodes, source, 1)
    (second.staging.directory / "file").unlink()
    first.ssh = limited(first, MIB)
    with_s = seconds_of_a_transfer(nodes, source, 2)
    assert with_s > 4
    assert with_s > 3 * without_s


def niceness(process: int) -> int:
    """Return a process's nice value. Source: proc_pid_stat(5), field 19."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[16])


def nice_of_rsyncs() -> dict[bool, int]:
    """Return the nice values of our rsyncs, by whether it is the receiving side."""
    found = {}
    for process in descendants(os.getpid()):
        with suppress(FileNotFoundError, ProcessLookupError):
            if command(process) == "rsync":
                arguments = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
                found[b"--server" in arguments] = niceness(process)
    return found


def test_both_rsyncs_stand_back(nodes: NODES, source: Path) -> None:
    first, second = nodes
    first.ssh = limited(first, MIB)
    second.staging.nice = RECEIVERS_NICE
    transfer = threading.Thread(target=first.send, args=(second, source, ["file"]))
    transfer.start()
    try:
        wait_until(
            lambda: len(nice_of_rsyncs()) == 2,
            timeout_s=COMMAND_DEADLINE_S,
            what="both sides run",
        )
        assert nice_of_rsyncs() == {False: SENDERS_NICE, True: RECEIVERS_NICE}
    finally:
        transfer.join()
