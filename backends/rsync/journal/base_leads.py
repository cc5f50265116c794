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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Final

from backends.errors import BackendError
from backends.rsync.journal.entries import Commit
from backends.system import extents
from backends.system.beneath import Beneath
from backends.system.copy_file import FileCopier, clone, clone_range
from backends.system.extents import Places
from backends.system.ranges import (
    BLOCK_BYTES,
    Range,
    cut,
    differing,
    merged,
    split,
    whole_blocks,
)

_FLAGS: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


@dataclass(slots=True, weakref_slot=True)
class Lead:
    """
    What the file *path* has where it has ``moved`` since commit ``content``.

    It is open as ``file``, and what it was then as ``base``: the lead's own, which are
    closed when nobody refers to it any more. ``content`` is None if no commit is known
    that the base is of. At its ``ends`` it may have blocks of its own: the file's are
    not shared there, and what is written to them moves nothing.
    """

    path: bytes
    content: Commit | None
    base: int
    file: int
    moved: Sequence[Range]
    ends: list[Range] = field(default_factory=list)

    def __post_init__(self) -> None:
        weakref.finalize(self, _close, self.base, self.file)

    @property
    def size(self) -> int:
        """How large the whole file is."""
        return os.fstat(self.file).st_size

    def changed(self) -> list[Range]:
        """Return where the bytes differ from those of the base."""
        return differing(self.base, self.file, self.moved)

    def parts(self, ranges: Iterable[Range]) -> Iterator[tuple[int, Iterator[Range]]]:
        """Yield which open file has the next ones of *ranges*: this, or the base."""
        within = split(cut(ranges, self.size), self.moved)
        pieces = itertools.groupby(within, key=itemgetter(0))
        for has_moved, found in pieces:
            yield self.file if has_moved else self.base, map(itemgetter(1), found)

    def give_to(self, target: int) -> None:
        """Let the open *target*, which is the base, share what has moved."""
        os.ftruncate(target, self.size)
        for at, length in cut(self.moved, self.size):
            clone_range(self.file, target, at, length)

    def clone_to(self, target: int) -> None:
        """Let the open *target* share the whole file."""
        clone(self.base, target)
        self.give_to(target)

    def resize(self, size: int) -> None:
        """Make it as large as the file is now."""
        before = self.size
        if before != size:
            end = min(before, size)
            begin = end - end % BLOCK_BYTES
            # The base may have data where the file has grown by a hole.
            self.ends.append((begin, max(before, size) - begin))
            os.ftruncate(self.file, size)

    def settle(self, source: int, places: Places) -> list[Range]:
        """
        Return where *source* may have moved while it was shared, which had *places*.

        All else has *places* now that this or the base holds: what is written from now
        on gets other ones.
        """
        since = split(merged(places.look_again(source)), self.moved)
        return merged(
            [
                *(each for has_moved, each in since if not has_moved),
                *extents.moved_within(self.file, source, self.moved),
            ]
        )

    def add(self, source: int, ranges: Iterable[Range]) -> None:
        """Share of *ranges* what the open *source* has elsewhere than this, or base."""
        size = os.fstat(source).st_size
        self.resize(size)
        wanted = merged(cut(whole_blocks([*ranges, *self.ends]), size))
        self.ends.clear()
        lacked = [
            found
            for is_here, each in split(wanted, self.moved)
            for found in extents.moved_within(
                self.file if is_here else self.base, source, [each]
            )
        ]
        lacked = merged(whole_blocks(lacked))
        extents.share(source, self.file, lacked)
        self.resize(size)
        self.moved = merged([*self.moved, *lacked])


def lead_on(
    directory: Path,
    path: bytes,
    content: Commit | None,
    base: int,
    source: int,
    *,
    stands_still: bool = False,
    places: Places | None = None,
) -> Lead | None:
    """
    Return what leads the open *base* on to the open *source*, which may be written to.

    If it *stands_still*, nothing is cloned. *places* takes what it has where, by then.
    None says that all of it has to be cloned; see `extents.share_moved`.
    """
    file = os.dup(source) if stands_still else os.open(directory, _FLAGS, 0o600)
    lead = Lead(path, content, os.dup(base), file, ())
    if stands_still:
        moved = extents.moved_ranges(base, source)
    else:
        size = os.fstat(source).st_size
        moved = extents.share_moved(base, source, into=file, places=places)
        # The file may have been cut meanwhile, or have grown.
        if (end := min(lead.size, size)) % BLOCK_BYTES and lead.size != size:
            lead.ends.append((end, 1))
        os.ftruncate(file, size)
    lead.moved = merged(whole_blocks(moved or ()))
    return None if moved is None else lead


def copy_lead(tree: Beneath, lead: Lead) -> None:
    """Make the whole file of *lead*, with its attributes, in *tree*."""
    directory, name = tree.at(lead.path, make=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    made = os.open(name, flags, 0o600, dir_fd=directory)
    try:
        lead.clone_to(made)
        FileCopier().copy_attributes(lead.file, made, os.fstat(lead.file))
    finally:
        os.close(made)


def giving(lead: Lead, valid: Callable[[], bool]) -> Callable[[int], None]:
    """Return what gives a base what *lead* has, if that still is *valid* by its end."""

    def give(target: int) -> None:
        lead.give_to(target)
        if not valid():
            raise BackendError("the volume has changed hands meanwhile")

    return give


def _close(*descriptors: int) -> None:
    for each in descriptors:
        os.close(each)
