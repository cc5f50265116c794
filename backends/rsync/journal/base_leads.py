"""
What leads a kept base on to the next commit of its file: the ranges that have moved.

To clone all of a file costs as much as it has extents, 50 microseconds for each, and
its writers wait. A database's file on XFS has a hundred thousand after a while. So what
has another place than in the base is cloned alone, into a file without a name. When it
is noted where the file has changed, the base gets that, too: `BaseClones.advance`.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final

from backends.rsync.journal.entries import Commit
from backends.system import extents
from backends.system.copy_file import clone_range
from backends.system.ranges import Range, cut, differing, split

_FLAGS: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Lead:
    """
    What the file *path* has where it has ``moved`` since commit ``content``.

    It is open as ``file``, which is closed when nobody refers to this any more.
    """

    path: bytes
    content: Commit
    moved: Sequence[Range]
    file: int

    def __post_init__(self) -> None:
        weakref.finalize(self, os.close, self.file)

    @property
    def size(self) -> int:
        """How large the whole file is."""
        return os.fstat(self.file).st_size

    def changed(self, base: int) -> list[Range]:
        """Return where the bytes differ from those of the open *base*."""
        return differing(base, self.file, self.moved)

    def parts(
        self, base: int, ranges: Iterable[Range]
    ) -> Iterator[tuple[int, Iterator[Range]]]:
        """Yield which open file has the next ones of *ranges*: this one, or *base*."""
        within = split(cut(ranges, self.size), self.moved)
        pieces = itertools.groupby(within, key=itemgetter(0))
        for has_moved, found in pieces:
            yield self.file if has_moved else base, map(itemgetter(1), found)

    def give_to(self, target: int) -> None:
        """Let the open *target*, which is the base, share what has moved."""
        os.ftruncate(target, self.size)
        for at, length in cut(self.moved, self.size):
            clone_range(self.file, target, at, length)


def lead_on(
    directory: Path, path: bytes, content: Commit, base: int, source: int
) -> Lead | None:
    """
    Return what leads the open *base* on to the open *source*, which may be written to.

    None says that all of it has to be cloned; see `extents.share_moved`.
    """
    file, moved = os.open(directory, _FLAGS, 0o600), None
    try:
        size = os.fstat(source).st_size
        moved = extents.share_moved(base, source, into=file)
        os.ftruncate(file, size)
    except OSError:
        moved = None
        raise
    finally:
        if moved is None:
            os.close(file)
    return None if moved is None else Lead(path, content, moved, file)
