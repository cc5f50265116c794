"""A new filesystem in a file of this machine's disk, and what was written to it."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.bench.disk import MAKERS

ON_DISK: Final = "/var/tmp"
# A smoke run measures nothing: its images may be in memory.
IMAGES: Final = os.environ.get("REMORA_BENCH_IMAGES", ON_DISK)
PREFIX: Final = "remora-bench-"
# So much of an image is written by mkfs, and by journals.
SPARE_BYTES: Final = 2 << 30
# What a database or a large file writes until the disk has it.
SYNC_DEADLINE_S: Final = 1800.0
COMMAND_DEADLINE_S: Final = 120.0
_SECTOR_BYTES: Final = 512
# Source: Documentation/block/stat.rst, "write sectors".
_WRITTEN_FIELD: Final = 6


class Disk:
    """
    A filesystem at *at*; it ends with the mounts of this process.

    Its image has no name any more once it is mounted: its room is free as soon as the
    kernel lets the loop device go, however this process ends. On a disk the device
    writes past the page cache, which would have everything twice.
    """

    def __init__(self, kind: str, size_bytes: int, at: Path) -> None:
        self.kind = kind
        self.path = at
        with tempfile.TemporaryDirectory(dir=IMAGES, prefix=PREFIX) as made:
            image = Path(made) / "image"
            image.touch()
            os.truncate(image, size_bytes)
            _run(*MAKERS[kind], str(image))
            at.mkdir(exist_ok=True)
            _run("mount", "-o", "loop", str(image), str(at))
        device = _run("findmnt", "-n", "-o", "SOURCE", "-M", str(at)).strip()
        if IMAGES == ON_DISK:
            _run("losetup", "--direct-io=on", device)
        self._statistics = Path("/sys/class/block") / Path(device).name / "stat"

    def written_bytes(self) -> int:
        """Return what was written to the disk so far; nothing is left to be written."""
        self.sync()
        written = self._statistics.read_text().split()[_WRITTEN_FIELD]
        return int(written) * _SECTOR_BYTES

    def sync(self) -> None:
        """Return when the disk has everything."""
        _run("sync", "-f", str(self.path), timeout_s=SYNC_DEADLINE_S)

    def give_back(self) -> None:
        """Give the room of what was deleted back to the disk below."""
        if self.kind == "btrfs":
            deleted = ("btrfs", "subvolume", "sync", str(self.path))
            _run(*deleted, timeout_s=SYNC_DEADLINE_S)
        self.sync()
        _run("fstrim", str(self.path), timeout_s=SYNC_DEADLINE_S)


def free_bytes() -> int:
    """Return the room that images have."""
    found = os.statvfs(IMAGES)
    return found.f_bavail * found.f_frsize


def _run(*command: str, timeout_s: float = COMMAND_DEADLINE_S) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout
