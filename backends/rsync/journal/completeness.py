"""Whether all of a commit is here: what has come, and what the volume has already."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.entries import UNWRITTEN, Entry, Known, look_at, untouched
from backends.rsync.journal.fitting import Fitting
from backends.rsync.journal.kept_files import KeptFiles
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.redo_files import RedoFiles
from backends.system import files
from backends.system.beneath import Beneath


@dataclass(slots=True)
class Completeness:
    """
    Looks for entries among what was sent, and for a full delta in the volume.

    ``to_write_bytes`` is what redo files and attributes will take in the volume.
    """

    staging: Path
    staged: Beneath
    live: Beneath | None
    manifest: Manifest
    arrivals: Arrivals | None
    fitting: Fitting
    redo: RedoFiles
    kept: KeptFiles
    to_write_bytes: int = 0
    stale: list[tuple[Entry, os.stat_result]] = field(default_factory=list)

    def has(self, group: list[Entry]) -> bool:
        """Return whether *group*, all names of one file, is here."""
        if group[0].kind == "directory":
            self.fitting.note_time(group[0])
        if group[0].kind == "directory" and not group[0].attributes:
            return True  # made when it is needed
        if self._is_staged(group):
            return True
        found = ((each, self.staged.status(each.path)) for each in group)
        self.stale += ((each, status) for each, status in found if status)
        return self._is_live(group) or self._is_led_on(group[0]) or self._is_kept(group)

    def discard(self) -> None:
        """
        Remove what is staged of an earlier delta, after all has been looked at.

        It would be in rsync's way, or be taken for a part of this one. Removing one
        name of a file changes the ctime of the others.
        """
        for entry, status in self.stale:
            directory, name = self.staged.at(entry.path)
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(name, dir_fd=directory)
            elif entry.kind != "directory":
                refused = self.staging / f"refused.{secrets.token_hex(8)}"
                os.rename(name, refused, src_dir_fd=directory)
                self.staged.forget()
                files.remove_tree(refused)

    def _is_staged(self, group: list[Entry]) -> bool:
        known = [look_at(self.staged, entry.path) for entry in group]
        if not _all_alike(group, known, self.fitting.comes):
            return False
        pairs = zip(group, filter(None, known), strict=True)
        if self.arrivals and not all(self.arrivals.include(*each) for each in pairs):
            return False
        if not group[0].links:
            return True
        status = self.staged.status(group[0].path)
        return status is not None and status.st_nlink == len(group)

    def _is_led_on(self, entry: Entry) -> bool:
        """Return whether what changes in *entry*'s file is here."""
        size_bytes = self.redo.lead_to(entry, self.manifest, self.fitting)
        self.to_write_bytes += size_bytes or 0
        return size_bytes is not None

    def _is_kept(self, group: list[Entry]) -> bool:
        """Return whether the volume has the content, and the attributes have come."""
        if not self.kept.has(group, self.fitting):
            return False
        self.to_write_bytes += self.kept.to_write_bytes(group[0])
        return True

    def _is_live(self, group: list[Entry]) -> bool:
        """
        Return whether the volume has what *group* is, written by the same commit.

        Size and times would not do: programs keep them when they write other content.
        """
        if self.live is None or group[0].commit == UNWRITTEN:
            return False
        known = []
        for entry in group:
            row = self.manifest.get(entry.path)
            status = self.live.status(entry.path)
            if row is None or status is None or not untouched(row, status):
                return False
            if entry.kind == "file" and row.entry.commit != entry.commit:
                return False
            known.append(row)
        return _all_alike(group, known, self.fitting.fits)


def _all_alike(
    group: list[Entry],
    known: Iterable[Known | None],
    are_alike: Callable[[Entry, Entry], bool],
) -> bool:
    """Return whether *known* are *group*'s entries, and one file."""
    inodes = set()
    for entry, each in zip(group, known, strict=True):
        if each is None:
            return False
        found = each.entry
        if entry.kind == "directory" == found.kind:
            # Its owner and times come from the entry; only the rest has to be sent.
            found = msgspec.structs.replace(entry, attributes=found.attributes)
        if not are_alike(entry, found):
            return False
        inodes.add(each.inode)
    return len(inodes) == 1
