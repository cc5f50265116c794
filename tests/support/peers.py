"""
Nodes that have only their peer channel: keys, sshd, socket and clients, all real.

Each node has a loopback address of its own, so that no two want one port, and short
paths, because sockets lie below them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from backends.errors import RemoraError
from plugin.daemon.sockets import bind_socket
from plugin.errors import PeerRefusedError
from plugin.peers.authorization import Authorization
from plugin.peers.channel import Peers
from plugin.peers.keys import ensure_keys
from plugin.peers.peer import Peer
from plugin.peers.server import PeerServer, StagingPlace
from plugin.peers.sharing import AHEAD_SEQ, SharedSsh
from plugin.peers.sshd import PeerSshd
from tests.support.etcd import new_address
from tests.support.host import wait_until
from tests.support.processes import command, descendants, with_argument

PORT = 7424
VOLUME = "6fa459ea-ee8a-4ca4-894e-db77e160355e"
COMMAND_DEADLINE_S = 60.0
PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "unshare", "setpriv")


def require_programs() -> None:
    """Skip the test where the peer channel cannot run."""
    for program in PROGRAMS:
        if shutil.which(program, path="/usr/sbin:/usr/bin:/sbin:/bin") is None:
            pytest.skip(f"needs {program}")
    if os.geteuid() != 0:
        pytest.skip("needs root")


def control_sshs(pid: int | None = None) -> list[int]:
    """Return the ssh processes of control sessions below *pid*, or this process."""
    ours = set(descendants(pid or os.getpid()))
    asked = with_argument("remora control")
    return [each for each in asked if each in ours and command(each) == "ssh"]


class Staging:
    """A receiver that lets *sender* send to `VOLUME` from *epoch* on."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # What the copy has already.
        self.basis = directory.with_name("basis")
        self.basis.mkdir(parents=True, exist_ok=True)
        self.lock = directory.with_name("receiving")
        self.epoch = 5
        self.nice = 0
        self.begun: list[tuple[str, int, int]] = []
        self.ended: list[int | None] = []

    def begin(
        self,
        node_id: str,
        *,
        volume: str,
        epoch: int,
        seq: int,
        hang_up: Callable[[], None],
    ) -> StagingPlace:
        if volume != VOLUME:
            raise PeerRefusedError(f"node {node_id} is no member of volume {volume}")
        if epoch < self.epoch:
            refused = RemoraError(f"epoch {epoch} is below the promised {self.epoch}")
            refused.code = "stale-epoch"
            raise refused
        self.begun.append((volume, epoch, seq))
        self.hang_up = hang_up
        return StagingPlace(
            self.directory, self.basis, self.lock, self.nice, is_tree=seq == AHEAD_SEQ
        )

    def end(
        self,
        node_id: str,
        *,
        volume: str,
        epoch: int,
        seq: int,
        exit_status: int | None,
    ) -> None:
        self.ended.append(exit_status)


class Handlers:
    """What the nodes of these tests answer."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.asked: list[str] = []

    def hello(self, node_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append("hello")
        return {"you": node_id, **body}

    def promise(self, node_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append("promise")
        assert self.go_on.wait(COMMAND_DEADLINE_S)
        return {"promised": body["epoch"], "commit": [0, 0]}

    def refuse(self, node_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        raise PeerRefusedError("not today", hint="tomorrow")

    def broken(self, node_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        raise ZeroDivisionError

    def big(self, node_id: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"text": "x" * 70_000}

    def all(self) -> dict[str, Any]:
        return {
            each: getattr(self, each)
            for each in ("hello", "promise", "refuse", "broken", "big")
        }


class PeerNode:
    """One node's peer channel, in this process."""

    def __init__(self, name: str) -> None:
        self.id = str(uuid.uuid4())
        self.name = name
        self.directory = Path(tempfile.mkdtemp(prefix="rp-", dir="/tmp"))
        self.address = new_address()
        self.run_directory = self.directory / "run"
        self.peer_directory = self.directory / "peer"
        self.keys = ensure_keys(self.peer_directory)
        self.staging = Staging(self.directory / "staging")
        self.staging.directory.mkdir()
        self.handlers = Handlers()
        socket_path = self.run_directory / "peer.sock"
        self.authorization = Authorization(self.peer_directory, peer_socket=socket_path)
        self.server = PeerServer(
            bind_socket(socket_path),
            handlers=self.handlers.all(),
            receiver=self.staging,
        )
        self.sshd = self.new_sshd()
        self.ssh = SharedSsh(self.peer_directory, sockets=self.run_directory / "ssh")
        self.peers = Peers(self.ssh)

    def new_sshd(self) -> PeerSshd:
        return PeerSshd(
            self.peer_directory,
            run_directory=self.run_directory,
            port=PORT,
            addresses=[self.address],
        )

    def record(self, **changes: Any) -> Peer:
        fields: dict[str, Any] = {
            "id": self.id,
            "name": self.name,
            "addresses": (self.address,),
            "port": PORT,
            "host_key": self.keys.public_host_key,
            "public_key": self.keys.public_node_key,
        }
        return Peer(**{**fields, **changes})

    def knows(self, *others: Peer) -> None:
        """Have *others* as the cluster's other nodes, and no more."""
        self.authorization.write(others)
        self.server.set_members([each.id for each in others])
        self.peers.update(others)

    def start(self) -> None:
        self.server.start()
        self.sshd.start()
        self.await_sshd()

    def await_sshd(self) -> None:
        wait_until(
            lambda: self.sshd.fault() == "",
            timeout_s=COMMAND_DEADLINE_S,
            what=f"sshd of {self.name} listens ({self.sshd.fault()})",
        )

    def restart_sshd(self) -> None:
        self.sshd.stop()
        self.sshd = self.new_sshd()
        self.sshd.start()
        self.await_sshd()

    def ssh_to(
        self, other: PeerNode, *arguments: str, options: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        """Return what a thief of this node's key gets from *other*, with plain ssh."""
        return subprocess.run(
            [
                *("ssh", "-F", "none", "-p", str(PORT)),
                *("-i", str(self.keys.node_key), "-o", "IdentitiesOnly=yes"),
                *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"),
                *("-o", "UserKnownHostsFile=/dev/null"),
                *(*options, f"root@{other.address}", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )

    def send(
        self,
        other: PeerNode,
        source: Path,
        names: list[str],
        commit: tuple[int, int] = (5, 1),
        volume: str = VOLUME,
    ) -> subprocess.CompletedProcess[bytes]:
        """Send files as the daemon will."""
        command = self.ssh.rsync_command(
            other.record(),
            other.address,
            source=source,
            volume=volume,
            commit=commit,
        )
        return subprocess.run(
            command,
            input=b"".join(os.fsencode(name) + b"\0" for name in names),
            capture_output=True,
            timeout=COMMAND_DEADLINE_S,
            check=False,
        )

    def close(self) -> None:
        self.handlers.go_on.set()
        self.peers.close()
        self.sshd.stop()
        self.server.stop()
        shutil.rmtree(self.directory)
