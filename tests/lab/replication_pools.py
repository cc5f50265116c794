"""The nodes of a campaign over replicated volumes, each with a pool of its own."""

from __future__ import annotations

from typing import Final

from .cluster import NAMES
from .disks import Disk
from .lab import Topology
from .node import NodeSpec

POOL_DISK: Final = "/pool"
POOL: Final = f"{POOL_DISK}/remora"
SETTINGS: Final = {name: {"pool": POOL} for name in NAMES}


def topology(filesystem: str, size: str = "512M") -> Topology:
    """Return the nodes, with pools on *filesystem*."""
    disk = Disk(filesystem, at=POOL_DISK, size=size)
    return Topology.of(*(NodeSpec(name, disks=(disk,)) for name in NAMES))


TOPOLOGY: Final = topology("ext4")
