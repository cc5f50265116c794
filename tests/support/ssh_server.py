"""
A real OpenSSH server of Debian's kind, for root with a key of the test's.

It has a /run of its own, because sshd wants a directory there, and ends with this
process, as its sessions do.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.etcd import new_address
from tests.support.host import wait_until

PORT = 7422
COMMAND_DEADLINE_S = 30.0
START_DEADLINE_S = 30.0
PROGRAMS = ("sshd", "ssh-keygen", "unshare", "setpriv")
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
CONFIGURATION = """\
ListenAddress {address}:{port}
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/authorized_keys
StrictModes no
PidFile none
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
"""
START = """
mount -t tmpfs tmpfs /run
mkdir -m 0755 /run/sshd
exec /usr/sbin/sshd -D -e -f "$1"
"""


@dataclass(frozen=True, slots=True)
class SshServer:
    """A server at *address*; whoever has *identity* is let in as root."""

    address: str
    directory: Path
    port: int = PORT

    @property
    def identity(self) -> Path:
        return self.directory / "id_ed25519"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def host_key(self) -> str:
        """Return the public host key, as in known_hosts."""
        kind, key, *_ = (self.directory / "host_key.pub").read_text().split()
        return f"{kind} {key}"

    def known_as(self) -> str:
        """Return the server's name in known_hosts."""
        return f"[{self.address}]:{self.port}"

    def fingerprint(self) -> str:
        """Return the host key's fingerprint, as ssh-keygen -l prints it."""
        done = subprocess.run(
            ["ssh-keygen", "-lf", str(self.directory / "host_key.pub")],
            capture_output=True,
            text=True,
            check=True,
            timeout=COMMAND_DEADLINE_S,
        )
        return done.stdout.split()[1]


def make_key(path: Path, *, passphrase: str = "") -> None:
    """Make the ed25519 key *path*, and its public half beside it."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", str(path)],
        check=True,
        timeout=COMMAND_DEADLINE_S,
        capture_output=True,
    )


@contextmanager
def ssh_server(directory: Path) -> Iterator[SshServer]:
    """Yield a server with its files in *directory*."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for program in PROGRAMS:
        if shutil.which(program, path=SYSTEM_PATH) is None:
            pytest.skip(f"needs {program}")
    directory.mkdir(parents=True)
    server = SshServer(new_address(), directory)
    make_key(directory / "host_key")
    make_key(server.identity)
    public = (directory / "id_ed25519.pub").read_text()
    (directory / "authorized_keys").write_text(public)
    settings = {"address": server.address, "port": PORT, "directory": directory}
    configuration = directory / "sshd_config"
    configuration.write_text(CONFIGURATION.format(**settings))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                *("setpriv", "--pdeathsig", "KILL", "--"),
                *("unshare", "--mount", "--propagation", "private"),
                *("--pid", "--fork", "--kill-child", "--mount-proc", "--"),
                *("sh", "-euc", START),
                *("sshd", str(configuration)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": SYSTEM_PATH},
        )
    try:
        wait_until(
            lambda: _answers(server, process),
            timeout_s=START_DEADLINE_S,
            what="sshd answers",
        )
        yield server
    finally:
        process.kill()
        process.wait(timeout=START_DEADLINE_S)


def _answers(server: SshServer, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, server.log
    try:
        with socket.create_connection((server.address, server.port), 5) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
