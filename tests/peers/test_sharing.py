"""rsync's connection: opened once, opened again when it breaks, never waited for."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plugin.errors import ConfigError
from plugin.ownership.state import Commit
from plugin.peers.sharing import SharedSsh
from plugin.replication.progress import Progress
from plugin.replication.transfer import RsyncTransfer, _carried_bytes
from tests.support.host import wait_until
from tests.support.peers import COMMAND_DEADLINE_S, VOLUME, PeerNode
from tests.support.processes import command, descendants, gone, stopped, with_argument

NODES = tuple[PeerNode, PeerNode]


@pytest.fixture
def source(nodes: NODES) -> Path:
    directory = nodes[0].directory / "source"
    directory.mkdir()
    (directory / "file").write_text("content")
    return directory


def master(first: PeerNode, second: PeerNode) -> int:
    """Return the process that holds the shared connection."""
    socket = first.ssh._socket(second.id)
    done = subprocess.run(
        [*first.ssh.command(second.record()), "-O", "check", second.address],
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, (done.stderr, socket)
    return int(done.stderr.split("pid=")[1].split(")")[0])


def test_a_second_transfer_shares_the_first_ones_connection(
    nodes: NODES, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, second = nodes
    assert first.send(second, source, ["file"]).returncode == 0
    holder = master(first, second)
    for number in range(3):
        done = first.send(second, source, ["file"], commit=(5, number))
        assert done.returncode == 0
    assert master(first, second) == holder
    assert caplog.text.count("Accepted publickey") == 1
    assert second.staging.ended == [0] * 4


def test_many_that_connect_at_once_open_one_connection(
    nodes: NODES, caplog: pytest.LogCaptureFixture
) -> None:
    """An ssh that finds the connection of another one would be refused."""
    caplog.set_level(logging.INFO)
    first, second = nodes
    with ThreadPoolExecutor(8) as pool:
        ends = [
            pool.submit(first.ssh.connect, second.record(), second.address)
            for _ in range(8)
        ]
        for each in ends:
            each.result()
    assert master(first, second)
    assert caplog.text.count("Accepted publickey") == 1
    assert "refused" not in caplog.text


def test_many_transfers_that_begin_at_once_open_one_connection(
    nodes: NODES, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else more than the other sshd takes from one address would be refused."""
    caplog.set_level(logging.INFO)
    first, second = nodes
    transfer = RsyncTransfer(first.peers, Progress())
    first.peers.call(second.id, "hello", {}, deadline_s=COMMAND_DEADLINE_S)
    about: dict[str, Any] = {"volume_id": VOLUME, "source": source}

    def send(seq: int) -> int:
        commit = Commit(5, seq)
        return transfer.send(second.id, commit=commit, names=[b"file\0"], **about)

    with ThreadPoolExecutor(20) as pool:
        assert len(list(pool.map(send, range(1, 21)))) == 20
    # That of requests, and that of transfers.
    assert caplog.text.count("Accepted publickey") == 2


def test_a_killed_connection_is_replaced(nodes: NODES, source: Path) -> None:
    first, second = nodes
    assert first.send(second, source, ["file"]).returncode == 0
    holder = master(first, second)
    os.kill(holder, signal.SIGKILL)
    wait_until(lambda: gone([holder]), timeout_s=20, what="it is dead")
    assert first.send(second, source, ["file"]).returncode == 0
    assert master(first, second) != holder


@contextmanager
def frozen(node: PeerNode) -> Iterator[None]:
    """Stop *node*'s sshd and all its sessions, as a stopped machine would."""
    [listener] = [
        pid
        for pid in with_argument(str(node.peer_directory / "sshd_config"))
        if command(pid) == "sshd"
    ]
    with stopped([listener, *descendants(listener)]):
        yield


def test_a_frozen_node_does_not_hold_a_transfer(nodes: NODES, source: Path) -> None:
    first, second = nodes
    assert first.send(second, source, ["file"]).returncode == 0
    with frozen(second):
        # `send` waits for a minute; ssh gives up after six seconds.
        assert first.send(second, source, ["file"]).returncode != 0
    assert first.send(second, source, ["file"]).returncode == 0


def test_a_frozen_node_does_not_hold_a_first_transfer(
    nodes: NODES, source: Path
) -> None:
    first, second = nodes
    with frozen(second):
        done = first.send(second, source, ["file"])
    assert done.returncode != 0
    assert b"timed out" in done.stderr


def test_closing_ends_the_connection(nodes: NODES, source: Path) -> None:
    first, second = nodes
    first.ssh.close(second.record())  # there is none yet
    assert first.send(second, source, ["file"]).returncode == 0
    holder = master(first, second)
    first.ssh.close(second.record())
    wait_until(lambda: gone([holder]), timeout_s=20, what="it has ended")
    assert list((first.run_directory / "ssh").iterdir()) == []


def test_only_the_known_host_key_is_taken(nodes: NODES, source: Path) -> None:
    first, second = nodes
    first.authorization.write([second.record(host_key=first.keys.public_host_key)])
    done = first.send(second, source, ["file"])
    assert done.returncode != 0
    assert b"Host key verification failed" in done.stderr
    first.authorization.write([])
    assert first.send(second, source, ["file"]).returncode != 0
    assert second.staging.begun == []


def test_nothing_of_the_users_ssh_is_used(nodes: NODES, source: Path) -> None:
    first, second = nodes
    shown = subprocess.run(
        [*first.ssh.command(second.record()), "-G", second.address],
        capture_output=True,
        text=True,
        timeout=COMMAND_DEADLINE_S,
        check=True,
    ).stdout.splitlines()
    assert f"identityfile {first.keys.node_key}" in shown
    assert [each for each in shown if each.startswith("identityfile")] == [
        f"identityfile {first.keys.node_key}"
    ]
    known_hosts = first.peer_directory / "known_hosts"
    assert f"userknownhostsfile {known_hosts}" in shown
    for option in (
        *("user root", "batchmode yes", "stricthostkeychecking true"),
        *("identitiesonly yes", "identityagent none", "forwardagent no"),
        *("ciphers aes128-gcm@openssh.com,aes256-gcm@openssh.com",),
        *("controlmaster auto", "controlpersist 60", "serveraliveinterval 2"),
    ):
        assert option in shown


def test_a_path_that_is_too_long_for_sockets_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long for ssh's sockets"):
        SharedSsh(tmp_path, sockets=tmp_path / ("x" * 90))


def test_an_ipv6_address_is_put_in_brackets(nodes: NODES, source: Path) -> None:
    first, second = nodes
    shown = first.ssh.rsync_command(
        second.record(), "fd00::1", source=source, volume=VOLUME, commit=(1, 2)
    )
    assert shown[-1] == "[fd00::1]:."
    assert shown[-2] == f"{source}/"


def test_of_what_the_copy_has_only_the_difference_is_sent(
    nodes: NODES, source: Path
) -> None:
    """Though size and time are the same, as after a restored backup."""
    first, second = nodes
    content = os.urandom(4 << 20)
    basis, staging = second.staging.basis, second.staging.directory
    (basis / "file").write_bytes(content)
    tree = source / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(content[:-1] + b"x")
    for each in (basis, tree):
        os.utime(each / "file", ns=(0, 1_000_000_000))
    command = first.ssh.rsync_command(
        second.record(), second.address, source=source, volume=VOLUME, commit=(5, 1)
    )
    log = first.directory / "log"
    subprocess.run(
        [command[0], f"--log-file={log}", "--log-file-format=sent %b", *command[1:]],
        input=b"tree/file\0",
        capture_output=True,
        timeout=COMMAND_DEADLINE_S,
        check=True,
    )
    assert (staging / "tree/file").read_bytes() == (tree / "file").read_bytes()
    assert (basis / "file").read_bytes() == content
    sent = re.search(r" sent ([0-9]+)\n", log.read_text())
    assert sent is not None
    assert int(sent[1]) < 100_000


def send_tree(
    nodes: NODES, source: Path, script: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Send all of *source* from its jail; or do *script* there, in rsync's place."""
    first, second = nodes
    record = second.record()
    first.ssh.connect(record, second.address)
    log = first.directory / "log"
    log.touch()
    command = first.ssh.rsync_tree_command(
        record,
        second.address,
        source=source,
        volume=VOLUME,
        epoch=5,
        options=("--log-file=/log",),
        log=log,
    )
    if script:
        request = json.loads(command[-1])
        request["command"] = ["sh", "-c", script]
        command[-1] = json.dumps(request)
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )


def test_a_tree_is_sent_from_a_jail(nodes: NODES, source: Path) -> None:
    (source / "big").write_bytes(content := os.urandom(2 << 20))
    done = send_tree(nodes, source)
    staging = nodes[1].staging
    assert (done.returncode, done.stderr) == (0, b"")
    assert (staging.directory / "tree/big").read_bytes() == content
    assert staging.begun == [(VOLUME, 5, 0)]
    assert staging.ended == [0]
    carried = re.search(r" sent ([0-9]+) bytes ", (source / "../log").read_text())
    assert carried is not None
    assert int(carried[1]) > len(content)


def test_a_node_that_refuses_a_tree_is_quoted(nodes: NODES, source: Path) -> None:
    nodes[1].staging.epoch = 6
    done = send_tree(nodes, source)
    assert done.returncode not in (0, 23, 24)
    assert b"stale-epoch: epoch 5 is below the promised 6" in done.stderr


def test_who_takes_over_what_sends_a_tree_finds_no_ssh(
    nodes: NODES, source: Path
) -> None:
    """With its socket they would ask any node anything, and listen on this one."""
    done = send_tree(nodes, source, "ls /; find / -path /usr -prune -o -type s")
    lines = done.stdout.decode().split()
    assert {"source", "log", "usr"} <= set(lines)
    assert not [each for each in lines if each.startswith("/ssh")], lines
    # What it has is the one transfer that was asked for, which never began.
    assert nodes[1].staging.begun in ([], [(VOLUME, 5, 0)])


def test_what_is_left_in_a_senders_log_is_read_in_part(
    nodes: NODES, source: Path
) -> None:
    """It is one file of ours, whoever has taken the sender over."""
    log = nodes[0].directory / "log"
    taken_over = "rm /log; mkfifo /pipe; ln -sf /usr/bin/sh /log; truncate -s 1G /log"
    send_tree(nodes, source, taken_over)
    assert [each.name for each in log.parent.glob("log*")] == ["log"]
    with log.open("rb") as file:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert _carried_bytes(file) == 0
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert log.is_file()
    assert log.stat().st_size == 1 << 30
    assert after - before < 100_000  # KiB
