"""
Two nodes on this machine, each with its pool on a disk of its own, and what they spend.

The daemons' own state lies on a third disk, etcd's in memory. Peers read below the
owner's disk and write below the member's, over an sshd of this machine's.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.fleet import over_tmp
from tests.bench.mirrors import DEFAULTS
from tests.support import etcd
from tests.support.owners import Owner, new_port
from tests.support.ssh_server import PORT, ssh_server

from .disks import Disk
from .line import Line

PREFIX: Final = "/bench/"
_STATE_BYTES: Final = 4 << 30


@dataclass(frozen=True, slots=True)
class Spent:
    """Bytes written at the owner's and at the member's disk, and on the line."""

    owner_bytes: int
    member_bytes: int
    line_bytes: int

    def __sub__(self, other: Spent) -> Spent:
        return Spent(
            self.owner_bytes - other.owner_bytes,
            self.member_bytes - other.member_bytes,
            self.line_bytes - other.line_bytes,
        )


class Pair:
    """Two daemons that know each other; pools are *kind*, on disks of *disk_bytes*."""

    def __init__(self, stack: ExitStack, kind: str, disk_bytes: int) -> None:
        ports = new_port(), new_port()
        self.line = Line([*ports, PORT])
        over_tmp(lambda tmp: Disk("ext4", _STATE_BYTES, tmp))
        self.kind = kind
        self.directory = Path("/tmp/bench")
        self.directory.mkdir()
        memory = etcd.memory_directory(self.directory / "etcd")
        self.etcd = stack.enter_context(etcd.single(memory))
        self.owner_disk, self.member_disk = (
            Disk(kind, disk_bytes, Path("/tmp") / name) for name in ("alpha", "beta")
        )
        self.server = stack.enter_context(ssh_server(self.directory / "sshd"))
        self.owner, self.member = (
            stack.enter_context(
                closing(
                    Owner(
                        disk.path.name,
                        self.etcd,
                        PREFIX,
                        daemon={"pool": str(disk.path / "pool")},
                        tuning={},
                        peer_port=port,
                        **DEFAULTS,
                    )
                )
            )
            for disk, port in zip(self.disks, ports, strict=True)
        )
        self.nodes = self.owner, self.member
        for node, disk in zip(self.nodes, self.disks, strict=True):
            node.pool = disk.path / "pool"
            node.launch()
        for node in self.nodes:
            node.wait_ready()
            node.wait_member()
        self.owner_id = self.owner.id

    @property
    def disks(self) -> tuple[Disk, Disk]:
        """The owner's and the member's disk."""
        return self.owner_disk, self.member_disk

    def spent(self) -> Spent:
        """Return what was spent so far; both disks have everything then."""
        owner_bytes, member_bytes = (each.written_bytes() for each in self.disks)
        return Spent(owner_bytes, member_bytes, self.line.carried_bytes())

    def give_back(self) -> None:
        """Give the room of what was deleted back."""
        for each in self.disks:
            each.give_back()
