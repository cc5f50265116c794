"""
Under which name each file that has several was copied: the others are links to it.

Others may write to the source meanwhile. An inode's number alone tells nothing then: it
is used again as soon as its file is removed, by a file of another content.
Standard library alone, as `beneath.py`.
"""

from __future__ import annotations

import errno
import os
from typing import Final

from backends.system import libc

# Its number; then when it was made or, where no filesystem knows, size and mtime.
Identity = tuple[int, ...]
# Whoever makes the names decides how long they are; these are kept.
_BYTES_MAX: Final = 512 * 2**20


def identity_of(name: bytes, *, directory: int) -> Identity | None:
    """Return what tells the file *name* from all others, None if it has gone."""
    try:
        made_ns = libc.birth_ns(name, directory=directory)
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    if made_ns is not None:
        return status.st_ino, made_ns
    return status.st_ino, status.st_size, status.st_mtime_ns


class FirstNames:
    """The paths of copies by what they are copies of."""

    def __init__(self) -> None:
        self._left_bytes = _BYTES_MAX
        self._known: dict[int, tuple[Identity, bytes]] = {}

    def find(self, identity: Identity) -> bytes | None:
        """Return the path of the copy of that very file, None if there is none."""
        known, path = self._known.get(identity[0], ((), b""))
        return path if known == identity else None

    def add(self, identity: Identity, path: bytes) -> None:
        """
        Remember the copy at *path*.

        A number is remembered for one file: to the manifest of a volume it stands for
        all names with it. Those of a later file are copied one by one.

        Raises:
            OSError: the paths are too long together.

        """
        self._left_bytes -= len(path)
        if self._left_bytes < 0:
            said = "too many long paths of linked files"
            raise OSError(errno.ENAMETOOLONG, said, path[:100])
        self._known.setdefault(identity[0], (identity, path))
