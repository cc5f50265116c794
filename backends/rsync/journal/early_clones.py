"""
Clones of large files from before a moment, which in it are only led on.

To clone a file costs as much as it has extents, 50 microseconds for each, and whoever
writes to it waits. So what the last commit has of it is cloned, and given what has
changed since, by where both are on the disk: once before, and in the moment again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from backends.rsync.journal.range_log import name_of
from backends.system import extents
from backends.system.copy_file import clone

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class EarlyClones:
    """Those in *directory*, which is theirs."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._paths: set[bytes] = set()

    def add(self, path: bytes, file: int, base: int | None) -> None:
        """Make one of *file*, open at *path*; *base* is what it was, if that is had."""
        target = os.open(self._file(path), _FLAGS, 0o600)
        try:
            clone(file if base is None else base, target)
            if base is not None:
                _lead_on(target, file)
        finally:
            os.close(target)
        self._paths.add(path)

    def __contains__(self, path: bytes) -> bool:
        """Return whether there is one of *path*."""
        return path in self._paths

    def take(self, path: bytes, file: int, *, directory: int, name: bytes) -> int:
        """Lead the clone of *file* on; return it, open, at *name* in *directory*."""
        self._paths.discard(path)
        target = os.open(self._file(path), os.O_RDWR | os.O_NOFOLLOW)
        try:
            _lead_on(target, file)
            os.rename(self._file(path), name, dst_dir_fd=directory)
        except BaseException:
            os.close(target)
            raise
        return target

    def _file(self, path: bytes) -> Path:
        return self.directory / name_of(path)


def _lead_on(target: int, source: int) -> None:
    """Have *target* share all blocks of *source*, as most of them are shared."""
    os.ftruncate(target, os.fstat(source).st_size)
    if extents.share_moved(target, source, into=target) is None:
        clone(source, target)
