"""Disks of nodes: sparse files, formatted on the host."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.host import SYSTEM_PATH

FORMAT_DEADLINE_S = 60.0

# What `mkfs` is told besides the file. Discarding would only punch holes in a hole.
FORMATS = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=1"),
    "xfs": ("mkfs.xfs", "-q", "-K", "-m", "reflink=1"),
    "btrfs": ("mkfs.btrfs", "-q", "--nodiscard"),
}


@dataclass(frozen=True, slots=True)
class Disk:
    """A filesystem of its own, mounted at *at* in the node from its boot on."""

    kind: str
    at: str
    options: str = ""
    size: str = "2G"

    def make(self, path: Path) -> Path:
        """Return *path*, made the file of this disk."""
        for argv in (["truncate", "-s", self.size, path], [*FORMATS[self.kind], path]):
            subprocess.run(
                argv,
                check=True,
                timeout=FORMAT_DEADLINE_S,
                capture_output=True,
                env={"PATH": SYSTEM_PATH},
            )
        return path


# Keeps what the node writes to its root, and its /data, /var/lib/docker, ...
SYSTEM_DISK = Disk("ext4", at="", size="8G")
