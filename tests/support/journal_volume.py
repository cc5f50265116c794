"""A directory with its manifest, as the owner of a volume has them."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.scan import Changes, scan_all, scan_paths

ODD = b"odd\nname \xff"


class Volume:
    """A directory with a manifest, which is as the directory was at the last commit."""

    def __init__(self, home: Path) -> None:
        self.root = home / "live"
        self.root.mkdir()
        self.manifest = Manifest(home / "manifest")
        self.commits = 0

    def keep(self, changes: Changes) -> Changes:
        """Record *changes* as the next commit."""
        self.commits += 1
        self.manifest.record(changes.changed, changes.deleted, commit=(1, self.commits))
        self.manifest.touch(changes.touched)
        return changes

    def scan(self, hints: list[bytes] | None) -> Changes:
        """Return what a walk finds, or what hints lead to."""
        if hints is None:
            return scan_all(self.root, self.manifest)
        return scan_paths(self.root, self.manifest, hints)


def fill(root: Path) -> None:
    """Put one of each kind into *root*."""
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("content")
    (root / "a/b/other").write_text("content")
    (root / "a!").write_text("sorts before what is in a")
    os.link(root / "a/b/file", root / "hard")
    (root / "soft").symlink_to("a")
    os.mkfifo(root / "pipe")
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(root, os.O_RDONLY)  # a socket's path must be short
        listener.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
    Path(os.fsdecode(os.fsencode(root) + b"/" + ODD)).write_text("odd")


def named(changes: Changes) -> tuple[list[bytes], list[bytes], list[bytes]]:
    return (
        [each.entry.path for each in changes.changed],
        changes.deleted,
        [each.entry.path for each in changes.touched],
    )
