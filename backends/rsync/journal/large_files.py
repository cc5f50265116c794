"""
What is kept of large files, so that no more is sent of them than what has changed.

What leads a member on from a commit that it has is a redo file (`redo.py`), in the
outbox beside the copies. Where a file has changed since the commit before is found
while both are at hand, and noted (`range_log.py`), so that a member that was away gets
the ranges of all that it has missed. It is found

- between two snapshots of btrfs, when a commit is recorded;
- on XFS between the copy in the outbox and the one of the commit before, which share
  their blocks (`base_clones.py`), when the commit is packed;
- elsewhere by reading the file once, when the commit is packed (`block_index.py`).

What is not known means the whole file, as small files are sent.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from backends.errors import BackendError
from backends.rsync.journal.base_clones import BaseClones
from backends.rsync.journal.block_index import BlockIndexes
from backends.rsync.journal.commits import Moments
from backends.rsync.journal.delta import Delta
from backends.rsync.journal.entries import Commit, Entry, Known, untouched
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.range_log import SIZE_MAX, RangeLog
from backends.rsync.journal.redo import LARGE_BYTES, Redo
from backends.rsync.journal.redo_files import (
    opened_file,
    opened_in,
)
from backends.system import btrfs_extents, extents
from backends.system.beneath import Beneath
from backends.system.files import remove_tree
from backends.system.libc import write_out
from backends.system.ranges import Range, cut, merged, whole_blocks

log = logging.getLogger(__name__)


class LargeFiles:
    """Those of the copy in *home*."""

    def __init__(self, home: Path) -> None:
        self._directories = [home / name for name in ("ranges", "bases", "indexes")]
        self.log = RangeLog(home / "ranges")
        self.bases = BaseClones(home / "bases")
        self.indexes = BlockIndexes(home / "indexes")

    def note(
        self,
        changed: Iterable[Known],
        manifest: Manifest,
        commit: Commit,
        moments: Moments | None,
    ) -> None:
        """Note that *commit* writes *changed*, which *manifest* has yet to record."""
        for known in changed:
            if not is_large(known.entry):
                continue
            path, before = known.entry.path, manifest.get(known.entry.path)
            if before is None or not _same_file(before, known):
                if self.log.has(path):
                    self.log.reset(path)
            elif moments is None:
                self.log.note_written(path, self.log.content_of(before.entry), commit)
            else:
                self._search_snapshots(moments, before, commit)

    def _search_snapshots(
        self, moments: Moments, before: Known, commit: Commit
    ) -> None:
        path, found = before.entry.path, None
        with (
            opened_in(moments.before, path) as old,
            opened_in(moments.now, path) as new,
        ):
            if old is not None and new is not None:
                found = btrfs_extents.changed_ranges(old, new, since=moments.since)
                found = with_cut(found, old, new)
        if found is None:
            self.log.remove(path)
        else:
            self.log.add(path, before.entry.commit, commit, found)

    def note_applied(self, live: Path, delta: Delta, manifest: Manifest) -> None:
        """Keep the large files of *delta*, now in *live* and recorded, as bases."""
        shares_blocks, commit = self.bases.possible(), delta.header.commit
        for entry in delta.entries():
            if not is_large(entry):
                continue
            path = entry.path
            if entry.commit == commit and not self.log.leads_to(path, commit):
                self.log.reset(path)
            content = self.log.content_of(entry)
            if shares_blocks and self.base_for(path, content)[0] is None:
                with optional(), opened_in(live, path) as file:
                    if file is not None:
                        self.bases.keep(path, entry.commit, file)
                        self.bases.keep_only({path: entry.commit})
        self.prune(manifest)

    def adopt(self, live: Path, manifest: Manifest) -> None:
        """
        Keep those in *live* that are as *manifest* has them, and that nobody has kept.

        A member that is filled gets them without a copy of them being made here. So
        what changes in them is known from the first change on. Where a change was noted
        and not searched, that member has bytes that nobody will find any more.
        """
        unknown = [
            known
            for known in manifest.larger(LARGE_BYTES)
            if is_large(known.entry) and not self.log.is_searched(known.entry)
        ]
        for path in [known.entry.path for known in unknown]:
            if self.log.has(path):
                self.log.reset(path)
        with optional(), ExitStack() as stack:
            tree = stack.enter_context(Beneath(live))
            searching = None
            if unknown and not self.bases.possible():
                searching = stack.enter_context(self.indexes.searching(live))
            for known in unknown:
                path, commit = known.entry.path, known.entry.commit
                with opened_file(tree, path) as file:
                    if file is None:
                        continue
                    write_out(file)  # what is stored later moves its times
                    if not untouched(known, os.fstat(file)):
                        continue
                    if searching is None:
                        self.bases.keep(path, commit, file)
                    else:
                        searching.index(path, inode=known.inode)
                        self.indexes.keep(path, commit)
                    self.log.reset(path)
                    if not untouched(known, os.fstat(file)):
                        self._forget(path)

    def note_patched(
        self, entry: Entry, manifest: Manifest, redo: Redo, file: int, *, advance: bool
    ) -> None:
        """
        Note where *redo* changes *entry*'s *file*, which is in *manifest* as it was.

        A clone of that is led on, too, if it is to *advance*: to make a new one each
        time would cost as much as the file has extents, and an old one differs in ever
        more places.
        """
        table = redo.table
        before = manifest.get(table.path)
        if before is None:
            return
        path, content = table.path, self.log.content_of(before.entry)
        # A commit since the base may have had more beyond the end than the base.
        beyond = (table.size, SIZE_MAX - table.size)
        changed = [*redo.ranges, *redo.holes, beyond]
        # Up to the base it was as it had been written last.
        since = min(table.base, before.entry.commit)
        self.log.add(path, since, table.commit, changed)
        if not advance:
            return
        with optional():
            kept, moved = self.base_for(path, content)
            if kept is not None:
                moved = merged([*moved, *changed])
                lead_on = partial(_share, file, moved)
                self.bases.advance(path, kept, entry.commit, lead_on)

    def base_for(
        self, path: bytes, content: Commit
    ) -> tuple[Commit | None, list[Range]]:
        """
        Return which clone can be compared with, or None; and what changed after that.

        A crash, or who was in a hurry, has left an older one than of *content*, which
        was searched last.
        """
        kept = self.bases.nearest(path, content)
        if kept in (None, content):
            return kept, []
        since = kept and self.log.since(path, kept, content)
        return (None, []) if since is None else (kept, since)

    def prune(self, manifest: Manifest) -> None:
        """Forget the files that *manifest* does not have, or not as large ones."""
        for path in self.log.paths():
            known = manifest.get(path)
            if known is None or not is_large(known.entry):
                self._forget(path)

    def seal(self) -> None:
        """Have indexes believed after a power failure too; raises OSError."""
        self.indexes.seal()

    def forget(self) -> None:
        """Forget all: the bytes are others now."""
        for directory in self._directories:
            remove_tree(directory)

    def _forget(self, path: bytes) -> None:
        self.log.remove(path)
        self.bases.keep_only({path: None})
        self.indexes.forget(path)


def is_large(entry: Entry) -> bool:
    """Return whether ranges of the file are worth looking for; of one with one name."""
    return entry.kind == "file" and entry.size >= LARGE_BYTES and not entry.links


def _same_file(one: Known, other: Known) -> bool:
    return one.inode == other.inode and is_large(one.entry)


def with_cut(found: list[Range] | None, old: int, new: int) -> list[Range] | None:
    """Return *found* and what was cut off: the file may have grown again by then."""
    before, size = os.fstat(old).st_size, os.fstat(new).st_size
    if found is None or before <= size:
        return found
    return [*found, (size, before - size)]


def _share(source: int, ranges: Iterable[Range], target: int) -> None:
    """Let the open *target* share *ranges* of *source*, and have its size."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    extents.share(source, target, cut(whole_blocks(ranges), size))


@contextmanager
def optional() -> Iterator[None]:
    """Do without what is kept of large files if it cannot be had: all is sent then."""
    try:
        yield
    except (BackendError, OSError) as error:
        log.warning("large files are sent whole: %s", error)
