"""The sshd that the daemon supervises: it is there, comes back, and goes with it."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from plugin.peers import sshd
from plugin.peers.sshd import PeerSshd
from tests.support.host import REPOSITORY, wait_until
from tests.support.namespaces import enter_private_mounts
from tests.support.peers import PORT, VOLUME, PeerNode, require_programs
from tests.support.processes import (
    command,
    descendants,
    gone,
    signal_all,
    with_argument,
)

NODES = tuple[PeerNode, PeerNode]
SERVER = "--server -lHogDtpAXIRSe.LsfxCIvu -@-1 --numeric-ids"
# A node whose daemon can be killed: it prints where it is and waits.
DAEMON = """
import sys, time
from plugin.peers.peer import Peer
from tests.support.peers import PeerNode
node = PeerNode("victim")
node_id, name, address, port, host_key, public_key = sys.argv[1:]
node.knows(Peer(id=node_id, name=name, addresses=(address,), port=int(port),
                host_key=host_key, public_key=public_key))
node.start()
print(node.address, node.directory, flush=True)
time.sleep(600)
"""


def answers(address: str) -> bool:
    try:
        with socket.create_connection((address, PORT), 5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def listener_of(node: PeerNode) -> int:
    """Return the process id of *node*'s sshd itself."""
    [pid] = [each for each in processes(node) if command(each) == "sshd"]
    return pid


def processes(node: PeerNode) -> list[int]:
    """Return *node*'s sshd and what it was started through."""
    return with_argument(str(node.peer_directory / "sshd_config"))


@pytest.fixture
def node() -> Iterator[PeerNode]:
    require_programs()
    made = PeerNode("alpha")
    yield made
    made.close()


@contextmanager
def killable_daemon(node: PeerNode) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Yield a process that is *node*'s peer, and its address."""
    own = node.record()
    with subprocess.Popen(
        [
            *(sys.executable, "-c", DAEMON, own.id, own.name, *own.addresses),
            *(str(own.port), own.host_key, own.public_key),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as daemon:
        assert daemon.stdout is not None
        address, directory = daemon.stdout.readline().split()
        try:
            yield daemon, address
        finally:
            daemon.kill()
            shutil.rmtree(directory)


def test_a_killed_daemon_takes_its_sshd_and_the_sessions_along(node: PeerNode) -> None:
    with killable_daemon(node) as (daemon, address):
        assert answers(address)
        client = subprocess.Popen(
            [
                *("ssh", "-F", "none", "-p", str(PORT), "-i", str(node.keys.node_key)),
                *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"),
                *("-o", "UserKnownHostsFile=/dev/null", f"root@{address}"),
                f"remora receive {VOLUME} 5 1 {SERVER} . /",
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(
                lambda: "rsync" in map(command, descendants(daemon.pid)),
                timeout_s=30,
                what="rsync waits for files",
            )
            below = descendants(daemon.pid)
            assert {"unshare", "sshd", "rsync"} <= {command(pid) for pid in below}
            daemon.kill()
            wait_until(partial(gone, below), timeout_s=20, what="all have ended")
            assert not answers(address)
        finally:
            client.kill()
            client.communicate()


def test_stopping_ends_it(node: PeerNode) -> None:
    assert "not been started" in node.sshd.fault()
    node.start()
    assert answers(node.address)
    below = processes(node)
    assert below
    node.sshd.stop()
    assert not answers(node.address)
    # Killed, but on a busy machine the kernel may still be at it.
    wait_until(partial(gone, below), timeout_s=20, what="all have ended")
    assert node.sshd.fault() == "it has been stopped"


def test_one_that_dies_is_started_again(
    node: PeerNode, caplog: pytest.LogCaptureFixture
) -> None:
    node.start()
    for _ in range(2):
        before = processes(node)
        signal_all(before, signal.SIGKILL)
        wait_until(partial(gone, before), timeout_s=20, what="it is dead")
        wait_until(lambda: answers(node.address), timeout_s=30, what="it is back")
        node.await_sshd()
    assert "the sshd for peers has ended" in caplog.text


def test_why_it_does_not_run_is_told(node: PeerNode) -> None:
    with socket.create_server((node.address, PORT)):
        node.server.start()
        node.sshd.start()
        wait_until(
            lambda: "Cannot bind any address" in node.sshd.fault(),
            timeout_s=30,
            what="the fault is told",
        )
    node.await_sshd()
    assert answers(node.address)


def test_without_the_program_the_fault_names_the_package(
    node: PeerNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sshd, "find_program", lambda name: None)
    node.sshd.start()
    wait_until(
        lambda: "(openssh-server)" in node.sshd.fault(),
        timeout_s=20,
        what="the fault is told",
    )


def test_it_sees_nothing_of_the_machines_accounts(nodes: NODES) -> None:
    """A locked root, another shell, hosts.deny: sshd has an /etc of its own."""
    _, second = nodes
    root = Path(f"/proc/{listener_of(second)}/root")
    assert sorted(each.name for each in (root / "etc").iterdir()) == [
        *("group", "ld.so.cache", "nsswitch.conf", "passwd", "shadow"),
    ]
    assert (root / "etc/shadow").read_text().startswith("root:*:")
    assert [each.name for each in (root / "run").iterdir()] == ["sshd"]
    assert (root / "var/lib/dpkg/status").exists()
    # All of it stays in there.
    assert Path("/etc/hostname").exists()
    assert "remora" not in Path("/etc/passwd").read_text()


def test_a_directory_with_odd_letters_in_its_name(tmp_path: Path) -> None:
    require_programs()
    node = PeerNode("alpha")
    odd = node.directory / "a b%h"
    shutil.copytree(node.peer_directory, odd)
    node.peer_directory = odd
    node.sshd = node.new_sshd()
    try:
        node.start()
        node.authorization._directory = odd
        node.authorization.write([node.record()])
        node.server.set_members([node.id])
        done = node.ssh_to(node, "remora", "control")
        assert done.returncode == 0, done.stderr
    finally:
        node.close()


def test_knocking_strangers_do_not_fill_the_log(
    node: PeerNode, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sshd, "_LINES_MAX", 5)
    monkeypatch.setattr(sshd, "_LINES_WINDOW_S", 5.0)
    node.start()

    def knock() -> None:
        with socket.create_connection((node.address, PORT), 20) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            connection.recv(1000)

    def shown() -> int:
        return sum(each.getMessage().startswith("sshd: ") for each in caplog.records)

    knockers = [threading.Thread(target=knock) for _ in range(10)]
    for each in knockers:
        each.start()
    for each in knockers:
        each.join()
    time.sleep(1)
    assert 3 <= shown() <= 5

    def told() -> bool:
        knock()
        return "lines not shown" in caplog.text

    wait_until(told, timeout_s=30, what="how many there were is told")


def test_its_configuration_is_as_sshd_understands_it(node: PeerNode) -> None:
    node.start()
    node.sshd._addresses = ("127.0.0.1", "::1")
    path = node.directory / "other_config"
    path.write_text(node.sshd.configuration(sshd.version_of("/usr/sbin/sshd")))
    shown = subprocess.run(
        # In its enclosure: sshd wants its user and its empty directory even for this.
        [
            *("nsenter", "--mount", "--target", str(listener_of(node)), "--"),
            *("/usr/sbin/sshd", "-T", "-f", str(path)),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert shown.stderr == ""
    lines = shown.stdout.splitlines()
    for name in (
        *("passwordauthentication", "kbdinteractiveauthentication", "permittty"),
        *("permituserrc", "allowtcpforwarding", "allowagentforwarding", "permittunnel"),
        *("x11forwarding", "allowstreamlocalforwarding", "permituserenvironment"),
        *("usepam", "hostbasedauthentication", "gatewayports"),
    ):
        assert f"{name} no" in lines
    assert {
        *("disableforwarding yes", "permitrootlogin forced-commands-only"),
        *("authenticationmethods publickey", f"port {sshd.DEFAULT_PORT}"),
        *("listenaddress 127.0.0.1:7424", "listenaddress [::1]:7424"),
        *("maxstartups 64:50:128", "persourcemaxstartups 8"),
        "persourcenetblocksize 32:64",
    } <= set(lines)
    assert not [line for line in lines if line.startswith("subsystem")]


def test_it_does_not_hold_the_daemons_mounts(node: PeerNode) -> None:
    """Else a share that was unmounted would stay mounted in its namespace."""
    enter_private_mounts()
    volumes = node.directory / "mounts"
    point = volumes / "a b"
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", point], check=True, timeout=30)
    try:
        for let_go in ([], [volumes]):
            node.sshd = PeerSshd(
                node.peer_directory,
                run_directory=node.run_directory,
                addresses=[node.address],
                let_go=let_go,
            )
            node.sshd.start()
            node.await_sshd()
            table = Path(f"/proc/{listener_of(node)}/mountinfo").read_text()
            assert (str(volumes) in table) == (let_go == [])
            node.sshd.stop()
    finally:
        subprocess.run(["umount", point], check=True, timeout=30)
