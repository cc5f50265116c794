"""
Two nodes on this machine, each with its pool on a disk of its own, and what they spend.

The daemons' own state lies on a third disk, etcd's in memory. Peers read below the
owner's disk and write below the member's, over an sshd of this machine's.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from tests.bench.fleet import over_tmp
from tests.bench.mirrors import DEADLINE_S, DEFAULTS, LOOK_AGAIN_S, QUIET_S
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


@dataclass(frozen=True, slots=True)
class Sync:
    """A sync that reached the member: when it ended, and what it sent."""

    ended_at_s: float
    took_s: float
    files_bytes: int


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
        server = stack.enter_context(etcd.single(memory))
        self.owner_disk, self.member_disk = (
            Disk(kind, disk_bytes, Path("/tmp") / name) for name in ("alpha", "beta")
        )
        self.server = stack.enter_context(ssh_server(self.directory / "sshd"))
        self.owner, self.member = (
            stack.enter_context(
                closing(
                    Owner(
                        disk.path.name,
                        server,
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
        for node, disk in zip((self.owner, self.member), self.disks, strict=True):
            node.pool = disk.path / "pool"
            node.launch()
        for node in (self.owner, self.member):
            node.wait_ready()
            node.wait_member()

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


class Volume:
    """A volume of *pair*; what is in ``source`` when it is seeded comes to ``copy``."""

    def __init__(
        self, pair: Pair, name: str, *, members: str = "alpha,beta", **options: str
    ) -> None:
        self._pair = pair
        self.name = name
        self.owner, self.member = pair.owner, pair.member
        self.id = self.owner.create(name, members=members, **options)
        self.member.wait_known(name)
        self.source = self.owner.copy(self.id) / "live"
        self.copy = self.member.copy(self.id) / "live"

    def seed(self) -> float:
        """Return the seconds until all of it is at the member."""
        began_s = time.monotonic()
        self.owner.mount(self.name)
        self.wait_synced()
        return time.monotonic() - began_s

    def wait_synced(self) -> None:
        """Return when a sync has reached the member."""
        end_s = time.monotonic() + DEADLINE_S
        while not self.syncs():
            assert time.monotonic() < end_s, self.owner.log_tail()
            time.sleep(LOOK_AGAIN_S)

    def syncs(self) -> list[Sync]:
        """Return all syncs of the owner so far that reached the member."""
        return [
            Sync(
                datetime.fromisoformat(each["time"]).timestamp(),
                float(each["duration_ms"]) / 1000,
                int(each["bytes"]),
            )
            for each in self.owner.events("synced", self.name)
            if each["copies"]
        ]

    def settle(self) -> None:
        """Return when nothing is sent any more."""
        before, since_s = -1, 0.0
        while True:
            now = len(self.syncs())
            if now != before or self._carries():
                before, since_s = now, time.monotonic()
            if time.monotonic() - since_s > QUIET_S:
                return
            time.sleep(0.5)

    def _carries(self) -> bool:
        return bool(self.owner.control_ok("GET", "/v1/status")["transfers"])

    def remove(self) -> None:
        """Unmount and remove it; return when its bytes are deleted on both nodes."""
        self.owner.unmount(self.name)
        self.owner.ok("Remove", Name=self.name)
        end_s = time.monotonic() + DEADLINE_S
        while any(self._remains(each) for each in (self.owner, self.member)):
            assert time.monotonic() < end_s, f"{self.name} is not deleted"
            time.sleep(0.2)
        self._pair.give_back()

    def _remains(self, node: Owner) -> bool:
        trash = node.pool / "trash"
        thrown = [*trash.iterdir()] if trash.exists() else []
        return node.copy(self.id).exists() or bool(thrown)
