"""
Nodes of one cluster that own volumes: the real daemon, etcd, sshd and guard of each.

All run on this machine, each in a mount namespace of its own (see
`tests/protocol/node.py`). A writer stands for a container: a process in a mount
namespace of its own that shows the volume, and stamps what it writes with the time
since boot, so that the file itself tells when it could write.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from plugin.membership.quarantine_records import QuarantineRecords
from plugin.ownership.heads import Heads
from plugin.ownership.state import CopyState, Head
from plugin.peers.peer import Peer
from plugin.peers.sharing import SharedSsh
from plugin.store.etcd.settings import EtcdSettings
from plugin.store.etcd.store import EtcdStore
from tests.protocol import client
from tests.protocol.node import Node, wait_until
from tests.support import etcd
from tests.support.link import Link
from tests.support.tuning import SHORT

WAIT_S = 60.0
# The shortest that the configuration takes: a lease is over 5 s after it was renewed.
TTL_S = 9.0
MARGIN_S = 4.0
# What the guard promises; stamps have milliseconds.
FENCED_WITHIN_S = 1.0
_WRITE = """
import os, sys, time
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
while True:
    os.write(file, b"%.3f\\n" % time.clock_gettime(time.CLOCK_BOOTTIME))
    time.sleep(0.02)
"""
_ENTER = 'mount --bind "$1" "$2" && exec "$3" -S -c "$4" "$2/stamps"'
# Below the range that the kernel gives away; each process has its own part of it.
_PORTS_FROM, _PORTS_EACH, _PARTS = 12000, 40, 500
_ports = itertools.count()


def now_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def new_port() -> int:
    """Return a port that nothing uses on any address: sshd listens on all."""
    for _ in range(_PORTS_EACH):
        part = os.getpid() % _PARTS * _PORTS_EACH
        port = _PORTS_FROM + part + next(_ports) % _PORTS_EACH
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
            return port
    raise AssertionError("every port of this process is taken")


class Owner(Node):
    """A node of the cluster below *prefix* of the etcd *server*."""

    def __init__(
        self,
        name: str,
        server: etcd.Cluster,
        prefix: str,
        *,
        profiles: str = "",
        daemon: dict[str, Any] | None = None,
        link: Link | None = None,
        tuning: Mapping[str, str] = SHORT,
        **cluster: Any,
    ) -> None:
        self.name = name
        values = {
            "etcd": list((link or server).endpoints),
            "etcd_prefix": prefix,
            "node_name": name,
            "peer_address": etcd.new_address(),
            "peer_port": new_port(),
            "lease_ttl_s": TTL_S,
            # Most tests that are refused do not want to wait for it.
            "mount_wait_s": 0.5,
            **cluster,
        }
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        section = "\n".join(["[cluster]", *lines, profiles])
        super().__init__(profiles=section, **(daemon or {}))
        self.tuning = tuning

    @property
    def id(self) -> str:
        return str(self.status()["id"])

    def status(self) -> Any:
        """Return what the daemon tells of itself as a node."""
        return self.control("GET", "/v1/status").json()["node"]

    def wait_member(self) -> None:
        """Return when the node has its lease."""
        wait_until(
            lambda: self.status()["health"] == "ok",
            f"{self.name} is a member",
            timeout_s=WAIT_S,
        )

    def wait_known(self, name: str, **status: object) -> None:
        """Return when this node knows volume *name* with these facts."""

        def known() -> bool:
            answer = self.call("Get", {"Name": name}).json()
            found = answer.get("Volume", {}).get("Status", {})
            return not answer.get("Err") and found.items() >= status.items()

        wait_until(known, f"{self.name} knows {name} {status}", timeout_s=WAIT_S)

    def wait_unknown(self, name: str) -> None:
        """Return when this node knows no volume *name*."""
        wait_until(
            lambda: name not in self.names(),
            f"{self.name} forgets {name}",
            timeout_s=WAIT_S,
        )

    def wait_drained(self, name: str) -> None:
        """Return when this node knows that the node *name* is drained."""
        wait_until(
            lambda: self.control_ok("GET", f"/v1/nodes/{name}")["drained"],
            f"{self.name} knows that {name} is drained",
            timeout_s=WAIT_S,
        )

    def wait_down(self, name: str) -> None:
        """Return when this node knows that the node *name* is dead."""
        wait_until(
            lambda: not self.control_ok("GET", f"/v1/nodes/{name}")["alive"],
            f"{self.name} knows that {name} is down",
            timeout_s=WAIT_S,
        )

    def mount(self, name: str, mount_id: str = "one") -> Path:
        """Mount the volume; return where."""
        return Path(self.ok("Mount", Name=name, ID=mount_id)["Mountpoint"])

    def mount_at_last(self, name: str) -> Path:
        """Mount the volume as soon as other nodes give it; return where."""
        end_s = time.monotonic() + WAIT_S
        while error := self.call("Mount", {"Name": name, "ID": "one"}).error:
            assert time.monotonic() < end_s, f"{self.name} may not mount: {error}"
            time.sleep(0.2)
        return Path(self.get(name)["Mountpoint"])

    def unmount(self, name: str, mount_id: str = "one") -> None:
        self.ok("Unmount", Name=name, ID=mount_id)

    def copy(self, volume_id: str) -> Path:
        """Return the directory of this node's copy."""
        return self.pool / "volumes" / volume_id

    def replica(self, volume_id: str) -> CopyState:
        """Return what the node has written down of its copy."""
        content = (self.copy(volume_id) / "replica.json").read_bytes()
        return msgspec.json.decode(content, type=CopyState)

    def guard_log(self) -> str:
        path = self.state_dir / "fencing/guard.log"
        return path.read_text() if path.exists() else ""

    def events(self, event: str, volume: str) -> list[dict[str, Any]]:
        """Return the lines that the log has of *event* of *volume*."""
        return [
            each
            for each in self.log_lines()
            if each.get("event") == event and each.get("volume") == volume
        ]

    def logged(self, text: str) -> bool:
        return text in self.log.read_text()

    def as_peer(self) -> Peer:
        """Return the node as the records describe it to others."""
        row = self.control_ok("GET", f"/v1/nodes/{self.name}")
        return Peer(
            id=row["id"],
            name=row["name"],
            addresses=tuple(row["addresses"]),
            port=row["peer_port"],
            host_key=row["host_key"],
            public_key=row["public_key"],
        )

    def send_files(
        self,
        other: Owner,
        source: Path,
        *,
        volume: str,
        commit: tuple[int, int],
        names: bytes | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Send what the daemon would not: *names* of *source*, None for all of it."""
        peer = other.as_peer()
        ssh = SharedSsh(self.state_dir / "peer", sockets=self.directory / "ssh")
        to = peer, peer.addresses[0]
        try:
            if names is None:
                ssh.connect(*to)
                command = ssh.rsync_tree_command(
                    *to, source=source, volume=volume, epoch=commit[0]
                )
            else:
                command = ssh.rsync_command(
                    *to, source=source, volume=volume, commit=commit
                )
            return subprocess.run(
                command,
                input=names or b"",
                capture_output=True,
                timeout=WAIT_S,
                check=False,
            )
        finally:
            ssh.close(peer)

    def sent_bytes(self) -> float:
        """Return what the node has sent on the line so far."""
        text = self.control("GET", "/metrics").body.decode()
        (line,) = [
            each
            for each in text.splitlines()
            if each.startswith('remora_replication_bytes_total{direction="sending"}')
        ]
        return float(line.split()[-1])

    def signal(self, number: int) -> None:
        """Send the daemon a signal."""
        self.process.send_signal(number)

    def control_ok(self, method: str, target: str, body: object = None) -> Any:
        """Return the answer of the control socket, which must be good."""
        answer = self.control(method, target, body)
        assert answer.status == 200, answer.body
        return answer.json()

    def control_refused(self, method: str, target: str, body: object = None) -> str:
        """Return why the control socket refuses."""
        answer = self.control(method, target, body)
        assert answer.status != 200, answer.body
        error = answer.json()["error"]
        return f"{error['cause']} ({error['hint']})"


class Writer:
    """Writes to a volume that *owner* has mounted at *target*, until it is ended."""

    def __init__(self, owner: Owner, target: Path) -> None:
        self._owner = owner
        self._file = owner.copy(target.name) / "live/stamps"
        inside = owner.directory / f"inside-{target.name}"
        inside.mkdir(exist_ok=True)
        program = ["sh", "-c", _ENTER, "sh", str(target), str(inside)]
        self.process = owner.popen(
            [
                *("unshare", "--mount", "--propagation", "private", "--"),
                *program,
                *(sys.executable, _WRITE),
            ]
        )
        self.wait_writing()

    def stamps(self) -> list[float]:
        """Return when each write was made."""
        try:
            lines = self._file.read_text().splitlines()
        except FileNotFoundError:
            return []
        return [float(line) for line in lines]

    def wait_writing(self) -> None:
        """Return when something is written that was not there yet."""
        before = now_s()
        wait_until(
            lambda: max(self.stamps()[-3:], default=0.0) > before,
            f"a write to {self._owner.name}'s copy; {self._owner.guard_log()[-500:]}",
            timeout_s=WAIT_S,
        )

    def wait_still(self) -> float:
        """Return the last stamp, once the writer is stopped and nothing more comes."""

        def still() -> bool:
            before = self.stamps()
            time.sleep(0.5)
            return before == self.stamps()

        wait_until(still, "the writer is stopped", timeout_s=WAIT_S)
        return self.stamps()[-1]

    def wait_killed(self) -> None:
        wait_until(
            lambda: self.process.poll() is not None,
            "the writer is killed",
            timeout_s=WAIT_S,
        )

    def end(self) -> None:
        """End it, as a container that stops."""
        self.process.kill()
        self.process.wait(timeout=WAIT_S)


class Records:
    """The cluster's records, read and written behind the nodes' backs."""

    def __init__(self, server: etcd.Cluster, prefix: str) -> None:
        self.store = EtcdStore(EtcdSettings(server.endpoints, prefix=prefix))
        self.quarantine_records = QuarantineRecords(self.store)
        self.heads = Heads(self.store, self.quarantine_records)

    def head(self, volume_id: str) -> Head:
        head = self.heads.read(volume_id).head
        assert head is not None
        return head

    def change(self, volume_id: str, *operations: Any, **values: Any) -> Head:
        """Write *values* into the head, as if its owner had."""
        state = self.heads.read(volume_id)
        assert state.head is not None
        head = msgspec.structs.replace(state.head, **values)
        assert self.heads.change(state, head, *operations) is not None
        return head

    def close(self) -> None:
        self.store.close()


def timed_call(node: Node, operation: str, **body: object) -> tuple[float, str]:
    """Return how long the call took in seconds, and its error."""
    began_s = time.monotonic()
    answer: client.Answer = node.call(operation, body)
    return time.monotonic() - began_s, answer.error


def pair_on(
    disk: Path, label: str, make_owner: Callable[..., Owner]
) -> tuple[Owner, Owner]:
    """Return two nodes of one cluster with pools on *disk*, named after *label*."""
    made = []
    for name in ("alpha", "beta"):
        pool = disk / f"{label}-{name}"
        owner = make_owner(name, start=False, daemon={"pool": str(pool)})
        owner.pool = pool
        owner.start()
        owner.wait_member()
        made.append(owner)
    return made[0], made[1]
