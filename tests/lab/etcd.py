"""
A real etcd cluster in the lab: one member in each of some nodes.

The members may run on the nodes that also run the daemon, as our users will have it, or
on nodes of their own. A member's data lies on its node's disk, so that it comes back
after a power failure with what it had promised; nothing is left unflushed. A node does
not start its member at boot: the test does, so that it can also leave it out.

`EtcdCluster` looks at the members from the lab's own network, as a machine that is no
node of it: a node that is cut off looks dead to it, and is a member all the same.
"""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING, Final

from tests.support.host import wait_until

from .commands import text_of
from .services import Service

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .lab import Lab
    from .node import Node

PROGRAM: Final = "/usr/bin/etcd"
CLIENT_PORT: Final = 2379
PEER_PORT: Final = 2380
# On the node's disk itself, and not through the overlay: etcd syncs and maps its files.
DATA: Final = "/data/etcd"
# A node has a share of two processors and a kernel that is slow at switching: with
# etcd's own 100 ms and 1 s a busy machine would hold elections all the time.
HEARTBEAT_MS: Final = 300
ELECTION_MS: Final = 3000
QUOTA_BYTES: Final = 256 * 2**20
# An election may fail twice before it succeeds, on a busy machine.
HEALTH_DEADLINE_S: Final = 90.0
COMMAND_TIMEOUT: Final = "5s"
# Shorter, because whoever waits for health asks again and again.
HEALTH_TIMEOUT: Final = "2s"
READY: Final = "ready to serve client requests"


def client_url(node: Node) -> str:
    """Return where the member on *node* answers clients."""
    return f"http://{node.ipv4}:{CLIENT_PORT}"


def peer_url(node: Node) -> str:
    """Return where the member on *node* answers the other members."""
    return f"http://{node.ipv4}:{PEER_PORT}"


class Etcd(Service):
    """One member, in *node*; ready once it has joined the others and found a leader."""

    def __init__(self, node: Node, peers: Sequence[Node]) -> None:
        super().__init__(node, "etcd")
        self._peers = peers
        self._log_mark = 0

    def launch(self) -> None:
        """Start it without waiting for it; it waits for a majority itself."""
        self._log_mark = self.log.stat().st_size if self.log.exists() else 0
        super().launch()

    @property
    def identity(self) -> list[str]:
        """Who it is and who the others are, as etcd and etcdctl are told it."""
        members = ",".join(f"{each.name}={peer_url(each)}" for each in self._peers)
        return [
            *("--name", self.node.name),
            *("--initial-advertise-peer-urls", peer_url(self.node)),
            *("--initial-cluster", members, "--initial-cluster-token", "lab"),
        ]

    def _argv(self) -> list[str]:
        client, peer = client_url(self.node), peer_url(self.node)
        return [
            *(PROGRAM, *self.identity, "--data-dir", DATA),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer),
            *("--heartbeat-interval", str(HEARTBEAT_MS)),
            *("--election-timeout", str(ELECTION_MS)),
            *("--quota-backend-bytes", str(QUOTA_BYTES)),
            # Watchers are to meet compaction.
            *("--auto-compaction-mode", "revision"),
            *("--auto-compaction-retention", "1000"),
            *("--logger", "zap"),
        ]

    def _ready(self) -> bool:
        # The log, because it can be read whatever happens to the network.
        return READY in text_of(self.log)[self._log_mark :]


class EtcdCluster:
    """The members on the nodes *names* of *lab*; see the module's text."""

    def __init__(self, lab: Lab, names: Sequence[str]) -> None:
        self.lab = lab
        nodes = [lab[name] for name in names]
        self.members: Mapping[str, Etcd] = {
            node.name: Etcd(node, nodes) for node in nodes
        }
        self._frozen: set[str] = set()

    @property
    def endpoints(self) -> str:
        """The members' addresses for clients, as the daemon and etcdctl take them."""
        return ",".join(client_url(each.node) for each in self.members.values())

    # Life

    def start_all(self) -> None:
        """Start every member that does not run; return when all work."""
        for name in self.members:
            self.launch(name)
        self.await_health()

    def stop_all(self) -> None:
        """Kill every member: etcd is wholly down, its data stays."""
        for name in self.members:
            self.kill(name)

    def launch(self, name: str) -> None:
        """Start the member *name*, if it does not run and its node is on."""
        member = self.members[name]
        if member.node.powered and not member.running:
            self._frozen.discard(name)
            member.launch()

    def kill(self, name: str) -> None:
        """Kill the member *name*, if it runs."""
        self._frozen.discard(name)
        if self.members[name].running:
            self.members[name].kill()

    def freeze(self, name: str) -> None:
        """Stop the member *name* with all its connections open."""
        self.members[name].freeze()
        self._frozen.add(name)

    def thaw(self, name: str) -> None:
        """Let the member *name* run on, if it is frozen."""
        if name in self._frozen:
            self._frozen.discard(name)
            if self.members[name].running:
                self.members[name].thaw()

    def restore(self) -> None:
        """Thaw and start whatever needs it; return when every member works."""
        for name in self.members:
            self.thaw(name)
        self.start_all()

    # Backups

    def back_up(self) -> Path:
        """Return a file with everything that the members have."""
        path = self.lab.work / f"backup-{time.monotonic_ns()}"
        first = next(iter(self.members))
        self.ctl("snapshot", "save", str(path), member=first)
        return path

    def load(self, backup: Path) -> None:
        """Give the members, which do not run, what *backup* has, and nothing else."""
        for member in self.members.values():
            member.node.put(backup, "/data/backup")
            options = shlex.join(member.identity)
            member.node.run(
                f"rm -r {DATA}; etcdctl snapshot restore /data/backup "
                f"--data-dir {DATA} {options}; rm /data/backup",
                env={"ETCDCTL_API": "3"},
                timeout_s=60,
            )

    # What clients see

    def health(self) -> dict[str, bool]:
        """Return which members answer a read that needs a majority."""
        # One command for all, which asks them side by side; it fails if one is ill.
        asked = f"--endpoints={self.endpoints} --command-timeout={HEALTH_TIMEOUT}"
        script = f"etcdctl {asked} endpoint health -w json 2>/dev/null || :"
        shown = self.lab.command("sh", "-c", script)
        works = {each["endpoint"]: each["health"] for each in json.loads(shown)}
        return {
            name: works[client_url(each.node)] for name, each in self.members.items()
        }

    def await_health(self, timeout_s: float = HEALTH_DEADLINE_S) -> None:
        """Return when every member works."""
        wait_until(
            lambda: all(self.health().values()),
            timeout_s=timeout_s,
            what="every member of etcd works",
            evidence=self.health,
        )

    def leader(self) -> str:
        """Return the leader's name, '' if nobody claims to be it."""
        for name in self.members:
            try:
                shown = self.ctl("endpoint", "status", "-w", "json", member=name)
            except AssertionError:
                continue
            status = json.loads(shown)[0]["Status"]
            if status.get("leader") == status["header"]["member_id"]:
                return name
        return ""

    def ctl(self, *arguments: str, member: str | None = None) -> str:
        """Return what etcdctl prints, asking all members or only *member*."""
        asked = client_url(self.lab[member]) if member else self.endpoints
        options = ("--endpoints", asked, "--command-timeout", COMMAND_TIMEOUT)
        return self.lab.command("etcdctl", *options, *arguments).strip()

    def try_ctl(self, *arguments: str, member: str | None = None) -> bool:
        """Return whether `ctl` succeeds."""
        try:
            self.ctl(*arguments, member=member)
        except AssertionError:
            return False
        return True
