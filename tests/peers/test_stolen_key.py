"""
What a thief of a node's key can do with it: ask for what the node may ask for.

Everything else is refused, is in the log, and changes nothing.
"""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from plugin.peers.receive import RSYNC_OPTIONS
from tests.support.host import wait_until
from tests.support.peers import COMMAND_DEADLINE_S, PORT, VOLUME, PeerNode

NODES = tuple[PeerNode, PeerNode]
SERVER = "--server -lHogDtpAXIRSe.LsfxCIvu -@-1 --numeric-ids"


def tree(directory: Path) -> dict[str, tuple[object, ...]]:
    """Return all there is below *directory*, with what changes when it is touched."""
    found = {}
    for path in [directory, *sorted(directory.rglob("*"))]:
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        found[str(path)] = (status.st_mode, status.st_uid, status.st_ctime_ns, content)
    return found


@contextmanager
def socket_listening(address: str) -> Iterator[tuple[int, list[object]]]:
    """Yield a port that listens at *address*, and who has connected to it."""
    accepted: list[object] = []
    with socket.create_server((address, 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept())
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1], accepted
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def reach(local: str, option: str, target: str, port: int) -> None:
    """Connect to *target* through ssh's port at *local*; return when that ends."""

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((local, PORT + 1)) == 0

    wait_until(listens, timeout_s=20, what="the client listens")
    with socket.create_connection((local, PORT + 1), 20) as connection:
        if option == "-D":  # SOCKS 4
            connection.sendall(
                struct.pack(">BBH", 4, 1, port) + socket.inet_aton(target) + b"\0"
            )
        with suppress(ConnectionResetError):
            while connection.recv(100):
                pass


@pytest.fixture
def victim(nodes: NODES) -> PeerNode:
    """Return the second node, with something to lose."""
    second = nodes[1]
    (second.staging.directory / "file").write_text("before")
    (second.directory / "precious").write_text("kept")
    return second


def told(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(
        text in record.getMessage() and record.levelno >= logging.WARNING
        for record in caplog.records
    )


@pytest.mark.parametrize(
    ("options", "command", "in_log"),
    [
        ((), (), "asked for the command ''"),
        ((), ("bash", "-i"), "asked for the command 'bash -i'"),
        ((), ("remora",), "asked for the command 'remora'"),
        ((), ("remora control; id",), "asked for the command 'remora control; id'"),
        ((), ("remora control\nid",), "asked for the command 'remora control\\nid'"),
        ((), ("x" * 5000,), "asked for the command 'xxx"),
        (("-tt",), ("bash",), "a pty not permitted"),
        (("-s",), ("sftp",), "subsystem request for sftp by user root failed"),
        (
            ("-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:localhost:22"),
            (),
            "tcpip-f",
        ),
        (("-W", "localhost:22"), (), "refused local port forward"),
        (("-w", "0:0"), (), "ctype tun@openssh.com"),
        (
            (
                *("-o", "StreamLocalBindUnlink=yes", "-o", "ExitOnForwardFailure=yes"),
                *("-N", "-R", "/tmp/never:localhost:22"),
            ),
            (),
            "streamlocal-forward",
        ),
    ],
)
def test_a_login_opens_nothing(
    nodes: NODES,
    victim: PeerNode,
    caplog: pytest.LogCaptureFixture,
    options: tuple[str, ...],
    command: tuple[str, ...],
    in_log: str,
) -> None:
    caplog.set_level(logging.INFO)
    before = tree(victim.directory)
    done = nodes[0].ssh_to(victim, *command, options=options)
    assert done.returncode != 0
    assert done.stdout == b""
    wait_until(lambda: told(caplog, in_log), timeout_s=20, what=f"{in_log!r} is logged")
    assert tree(victim.directory) == before
    assert victim.handlers.asked == []


def test_a_forwarded_port_leads_nowhere(
    nodes: NODES, victim: PeerNode, caplog: pytest.LogCaptureFixture
) -> None:
    """-L and -D: the client listens, but what connects there gets nothing."""
    with socket_listening(victim.address) as (wanted, accepted):
        for option in ("-L", "-D"):
            local = f"{nodes[0].address}:{PORT + 1}"
            target = f":{victim.address}:{wanted}" if option == "-L" else ""
            client = subprocess.Popen(
                [
                    *("ssh", "-F", "none", "-N", "-p", str(PORT)),
                    *("-i", str(nodes[0].keys.node_key), "-o", "BatchMode=yes"),
                    *("-o", "StrictHostKeyChecking=no", "-o", "IdentitiesOnly=yes"),
                    *("-o", "UserKnownHostsFile=/dev/null"),
                    *(option, f"{local}{target}", f"root@{victim.address}"),
                ],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                reach(nodes[0].address, option, victim.address, wanted)
            finally:
                client.kill()
                client.wait()
        assert accepted == []
    wait_until(
        lambda: told(caplog, "refused local port forward"),
        timeout_s=20,
        what="it is logged",
    )


def test_an_agent_is_not_forwarded(
    nodes: NODES, victim: PeerNode, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    socket_path = nodes[0].directory / "agent"
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket_path)], stdout=subprocess.DEVNULL
    )
    try:
        wait_until(socket_path.exists, timeout_s=20, what="the agent listens")
        os.environ["SSH_AUTH_SOCK"] = str(socket_path)
        done = nodes[0].ssh_to(victim, "id", options=("-A",))
        assert done.returncode == 3
    finally:
        os.environ.pop("SSH_AUTH_SOCK", None)
        agent.kill()
        agent.wait()
    wait_until(
        lambda: told(caplog, "agent forwarding disabled"),
        timeout_s=20,
        what="it is logged",
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("scp", "-O", "-P"),
        ("scp", "-P"),
        ("sftp", "-b", "/dev/null", "-P"),
    ],
)
def test_no_file_is_copied_with_other_programs(
    nodes: NODES,
    victim: PeerNode,
    arguments: tuple[str, ...],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "evil").write_text("evil")
    before = tree(victim.directory)
    options = [
        *("-i", str(nodes[0].keys.node_key), "-o", "BatchMode=yes"),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
    ]
    target = f"root@{victim.address}"
    paths = (
        [str(tmp_path / "evil"), f"{target}:{victim.directory}/evil"]
        if arguments[0] == "scp"
        else [target]
    )
    done = subprocess.run(
        [*arguments, str(PORT), *options, *paths],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    assert done.returncode != 0
    assert tree(victim.directory) == before
    wait_until(
        lambda: told(caplog, "scp -t") or told(caplog, "subsystem request for sftp"),
        timeout_s=20,
        what="it is logged",
    )


@pytest.mark.parametrize(
    ("command", "in_log"),
    [
        # Another volume, an epoch that is over: the daemon knows.
        (
            f"remora receive {VOLUME.replace('6', '7')} 5 1 {SERVER} . /",
            "no member of volume",
        ),
        (f"remora receive {VOLUME} 4 1 {SERVER} . /", "stale-epoch: epoch 4 is below"),
        # Not to the letter what our sender asks for.
        (f"remora receive {VOLUME} -1 1 {SERVER} . /", "asked for the command"),
        (f"remora receive {VOLUME} 05 1 {SERVER} . /", "asked for the command"),
        (f"remora receive {VOLUME} 5 1 --server --sender . /", "asked for the command"),
        (f"remora receive {VOLUME} 5 1 {SERVER} --delete . /", "asked for the command"),
        (f"remora receive {VOLUME} 5 1 {SERVER} . / /etc", "asked for the command"),
        (f"remora receive {VOLUME} 5 1 {SERVER} .. /", "asked for the command"),
        (f"remora receive ../../etc 5 1 {SERVER} . /", "asked for the command"),
        (
            f"remora receive {VOLUME}/.. 5 1 {SERVER} . /",
            "asked for the command",
        ),
        (
            f"remora receive {VOLUME} 5 1 --server --daemon --config=/x .",
            "asked for the command",
        ),
        (
            f"remora receive {VOLUME} 5 1 {SERVER.replace('RSe', 'RSKe')} . /",
            "asked for the command",
        ),
        (
            f"remora receive {VOLUME} 5 1 {SERVER} --log-file=/x . /",
            "asked for the command",
        ),
    ],
)
def test_only_the_sender_s_own_request_is_received(
    nodes: NODES,
    victim: PeerNode,
    caplog: pytest.LogCaptureFixture,
    command: str,
    in_log: str,
) -> None:
    before = tree(victim.directory)
    done = nodes[0].ssh_to(victim, command)
    assert done.returncode == 3
    assert done.stdout == b""
    assert in_log.encode() in done.stderr
    assert told(caplog, in_log)
    assert any(
        getattr(record, "remora_fields", {}).get("node") == nodes[0].id
        for record in caplog.records
    )
    assert tree(victim.directory) == before
    assert victim.staging.begun == []


def test_a_stale_transfer_is_told_why(nodes: NODES, victim: PeerNode) -> None:
    source = nodes[0].directory / "source"
    source.mkdir()
    (source / "file").write_text("after")
    before = tree(victim.directory)
    done = nodes[0].send(victim, source, ["file"], commit=(4, 9))
    assert done.returncode != 0
    assert b"stale-epoch: epoch 4 is below the promised 5" in done.stderr
    assert tree(victim.directory) == before


@pytest.mark.parametrize("path", ["/etc/", "../../../../tmp/", "~/", "/dev/../"])
def test_where_the_bytes_go_the_sender_does_not_say(
    nodes: NODES, victim: PeerNode, path: str
) -> None:
    source = nodes[0].directory / "source"
    source.mkdir()
    (source / "file").write_text("after")
    command = nodes[0].ssh.rsync_command(
        victim.record(), victim.address, source=source, volume=VOLUME, commit=(5, 1)
    )
    assert set(RSYNC_OPTIONS) <= set(command)
    command[-1] = f"{victim.address}:{path}"
    outside = tree(Path("/etc"))
    done = subprocess.run(
        command,
        input=b"file\0",
        capture_output=True,
        timeout=COMMAND_DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (victim.staging.directory / "file").read_text() == "after"
    assert tree(Path("/etc")) == outside


def test_another_key_is_not_let_in(
    nodes: NODES, victim: PeerNode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    thief = PeerNode("thief")
    try:
        done = thief.ssh_to(victim, "remora", "control")
    finally:
        thief.close()
    assert done.returncode == 255
    assert b"Permission denied" in done.stderr or b"Too many" in done.stderr
    wait_until(
        lambda: told(caplog, "Failed publickey") or told(caplog, "exceeded"),
        timeout_s=20,
        what="it is logged",
    )


@pytest.mark.parametrize("method", ["password", "keyboard-interactive", "none"])
def test_there_is_no_way_in_without_a_key(
    nodes: NODES, victim: PeerNode, method: str
) -> None:
    done = nodes[0].ssh_to(
        victim,
        *("remora", "control"),
        options=("-o", f"PreferredAuthentications={method}", "-v"),
    )
    assert done.returncode == 255
    assert b"Authentications that can continue: publickey\r\n" in done.stderr


def test_a_removed_node_is_out_at_once(nodes: NODES, victim: PeerNode) -> None:
    first, _ = nodes
    first.peers.call(victim.id, "hello", {}, deadline_s=COMMAND_DEADLINE_S)
    channel = first.peers.channel(victim.id)
    assert len(victim.server._sessions) == 1
    victim.knows()
    wait_until(
        lambda: len(victim.server._sessions) == 0, timeout_s=20, what="it has ended"
    )
    assert channel.peer.id == victim.id
    done = first.ssh_to(victim, "remora", "control")
    assert done.returncode == 255
    assert victim.handlers.asked == ["hello"]


def test_an_open_connection_of_a_removed_node_starts_nothing(
    nodes: NODES, victim: PeerNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Its key is not asked for again; so the daemon is."""
    first, _ = nodes
    source = first.directory / "source"
    source.mkdir()
    (source / "one").write_text("1")
    (source / "two").write_text("2")
    assert first.send(victim, source, ["one"]).returncode == 0
    victim.knows()
    done = first.send(victim, source, ["two"], commit=(5, 2))
    assert done.returncode != 0
    assert b"is no member of the cluster" in done.stderr
    assert told(caplog, "is no member of the cluster")
    assert not (victim.staging.directory / "two").exists()
