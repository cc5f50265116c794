"""
A node of a cluster of one, and a new machine that it reaches over a wire of its own.

The node is a `Host` with etcd and the daemon; the machine is a Debian that a real
systemd has booted, with its sshd. Each has an address at its end of a veth pair, which
nobody else sees.
"""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import certifi

from tests.support import booted
from tests.support.booted import BootedMachine
from tests.support.daemon import PROGRAM, Daemon
from tests.support.host import REPOSITORY, Host, wait_until
from tests.support.ssh_server import make_key

HERE, THERE = "10.99.0.1", "10.99.0.2"
ENDPOINT = f"http://{HERE}:2379"
PASSWORD = "correct horse"
NAME = "beta"
DEADLINE_S = 300.0
START_DEADLINE_S = 60.0


def missing() -> str:
    """Return what this machine lacks, or ''."""
    for program in ("ip", "etcd", "etcdctl", "ssh-keygen", "setsid"):
        if shutil.which(program) is None:
            return program
    return booted.missing()


@dataclass
class Site:
    """The node, `daemon` in `host`, and the new `machine`."""

    host: Host
    daemon: Daemon
    machine: BootedMachine

    @property
    def fingerprint(self) -> str:
        """The machine's host key, as its administrator sees it."""
        path = "/etc/ssh/ssh_host_ed25519_key.pub"
        return self.machine.out("ssh-keygen", "-lf", path).split()[1]

    def enroll(
        self, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Return the outcome of `remora node enroll` for the machine's right key."""
        return self.host.run(
            [*self.command(*arguments), "--host-key-fingerprint", self.fingerprint],
            timeout_s=DEADLINE_S,
            check=check,
            env=self.environment(),
        )

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of `remora node enroll`."""
        return [sys.executable, "-c", PROGRAM, "node", "enroll", THERE, *arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment of the node's administrator."""
        return {
            "PYTHONPATH": str(REPOSITORY),
            **{f"REMORA_{key.upper()}": text for key, text in CLUSTER.items()},
        }

    def at_terminal(
        self, dialogue: Sequence[tuple[str, str]], *arguments: str
    ) -> tuple[int, str]:
        """
        Return exit code and screen of `remora node enroll` at a terminal.

        *dialogue* is what is waited for, and what is typed then.
        """
        return _talk(self.host, self.command(*arguments), self.environment(), dialogue)

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the cluster's nodes, by name, as this node sees them."""
        return {each["name"]: each for each in self.daemon.cli_json("node", "ls")}


CLUSTER = {
    "etcd": ENDPOINT,
    "etcd_insecure": "true",
    "node_name": "alpha",
    "etcd_prefix": "/enrolling/",
    # A file to copy; there is no TLS here that would use it.
    "etcd_ca_file": certifi.where(),
}


@contextmanager
def site() -> Iterator[Site]:
    """Yield a node that runs, and a machine where nothing of Remora is."""
    with Host("alpha") as host, BootedMachine() as machine:
        make_key_of(host, machine)
        machine.boot()
        add_wire(host.pid, machine.pid)
        machine.run(["useradd", "-m", "-G", "sudo", "-s", "/bin/sh", "admin"])
        machine.run(["chpasswd"], stdin=f"admin:{PASSWORD}".encode())
        start_etcd(host)
        daemon = Daemon(host, **CLUSTER)
        daemon.start()
        try:
            yield Site(host, daemon, machine)
        finally:
            if daemon.running:
                daemon.stop()


def make_key_of(host: Host, machine: BootedMachine) -> None:
    """Let the node's administrator be root on the machine, which is named."""
    keys = host.work / "home/.ssh"
    keys.mkdir(mode=0o700)
    make_key(keys / "id_ed25519")
    there = machine.root / "root/.ssh"
    there.mkdir(parents=True, mode=0o700)
    shutil.copy(keys / "id_ed25519.pub", there / "authorized_keys")
    (machine.root / "etc/hostname").write_text(f"{NAME}\n")


def add_wire(here: int, there: int) -> None:
    """Connect the network namespaces of the two processes."""
    ends = ((here, "wire", HERE), (there, "wire", THERE))
    _ip(
        *("link", "add", "wire", "netns", str(here)),
        *("type", "veth", "peer", "name", "wire", "netns", str(there)),
    )
    for pid, name, address in ends:
        inside = ("nsenter", f"--net=/proc/{pid}/ns/net", "--")
        _ip("address", "add", f"{address}/24", "dev", name, inside=inside)
        _ip("link", "set", name, "up", inside=inside)


def _ip(*arguments: str, inside: Sequence[str] = ()) -> None:
    subprocess.run([*inside, "ip", *arguments], check=True, timeout=30)


def start_etcd(host: Host) -> None:
    """Start an etcd in *host* that both ends of the wire reach."""
    host.popen(
        [
            *("etcd", "--data-dir", str(host.work / "etcd")),
            *("--listen-client-urls", ENDPOINT, "--advertise-client-urls", ENDPOINT),
            *("--listen-peer-urls", "http://127.0.0.1:2380"),
        ],
        log=host.log_path("etcd"),
    )
    health = ["etcdctl", "--endpoints", ENDPOINT, "endpoint", "health"]
    wait_until(
        lambda: host.run(health, check=False).returncode == 0,
        timeout_s=START_DEADLINE_S,
        what="etcd answers",
    )


def _talk(
    host: Host,
    command: Sequence[str],
    environment: Mapping[str, str],
    dialogue: Sequence[tuple[str, str]],
) -> tuple[int, str]:
    master, slave = pty.openpty()
    screen = b""
    waiting = [(clue.encode(), text.encode()) for clue, text in dialogue]
    seen = 0
    process = host.popen(
        # Passwords are asked for at the controlling terminal.
        ["setsid", "--ctty", "--wait", "sh", "-c", 'exec "$@" 2>&1', "sh", *command],
        env=environment,
        stdin=slave,
        stdout=slave,
    )
    os.close(slave)
    try:
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            if waiting and (at := screen.find(waiting[0][0], seen)) >= 0:
                seen = at + len(waiting[0][0])
                os.write(master, waiting.pop(0)[1] + b"\n")
            if select.select([master], [], [], 1.0)[0]:
                with suppress(OSError):  # EIO: the other end is closed
                    if chunk := os.read(master, 65536):
                        screen += chunk
                        continue
                break
        code = process.wait(timeout=30)
    finally:
        os.close(master)
        if process.poll() is None:
            process.kill()
            process.wait(timeout=30)
        if process.stderr is not None:
            process.stderr.close()
        host.forget(process)
    text = screen.decode(errors="replace").replace("\r", "")
    assert not waiting, f"never asked for {waiting}:\n{text}"
    return code, text
