"""
Leads to large files from before a moment, to which in it only little is added.

To clone a file costs as much as it has extents, 50 microseconds for each, and whoever
writes to it waits. So what has moved since the last commit is shared before, and in the
moment what has moved since then. The kernel tells of that (`extent_events.py`); where
it does not, it is asked once more for all extents, 3 microseconds for each.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.rsync.journal.base_leads import Lead, lead_on
from backends.rsync.journal.entries import Commit
from backends.system import extents
from backends.system.beneath import opened
from backends.system.copy_file import FileCopier, clone
from backends.system.extent_events import followed
from backends.system.extent_events_check import all_is_told
from backends.system.extents import Places, UntoldError
from backends.system.ranges import Range

_FLAGS: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Early:
    """
    A lead to the file *inode*, and the *places* that it had when it was made.

    ``again`` is what has to be shared once more, None if that is not known yet.
    """

    inode: int
    lead: Lead
    places: Places
    again: list[Range] | None


class EarlyLeads:
    """Those of the files *inodes* on the filesystem of *directory*."""

    def __init__(self, directory: Path, inodes: Collection[int] = ()) -> None:
        self._directory = directory
        self._found: dict[bytes, _Early] = {}
        self._followed = ExitStack()
        with opened(directory) as on:
            sure = inodes if all_is_told(directory) else ()
            following = followed(sure, on=on)
            self._events = self._followed.enter_context(following)

    def close(self) -> None:
        """End what was begun; the leads that were taken are the callers'."""
        self._found.clear()
        self._followed.close()

    def add(
        self, path: bytes, file: int, *, base: int | None, content: Commit | None
    ) -> None:
        """Make one to *file*, open at *path*; *base* is what it was at *content*."""
        places = Places()
        with self._based(file, base) as at:
            lead = lead_on(
                *(self._directory, path, None if base is None else content, at, file),
                places=places,
            )
        if lead is None or not lead.size:
            return
        again = None
        if self._events is not None:
            self._events.read()
        else:
            again = lead.settle(file, places)
            lead.add(file, again)
        inode = os.fstat(file).st_ino
        self._found[path] = _Early(inode, lead, places, again)

    @contextmanager
    def _based(self, file: int, base: int | None) -> Iterator[int]:
        """Yield *base*, or without one *file* as it is now."""
        if base is not None:
            yield base
            return
        made = os.open(self._directory, _FLAGS, 0o600)
        try:
            clone(file, made)
            yield made
        finally:
            os.close(made)

    def __contains__(self, path: bytes) -> bool:
        """Return whether there is one to *path*."""
        return path in self._found

    def take(self, path: bytes, file: int) -> Lead | None:
        """
        Return the lead to *file* as it is now, while nobody writes to it.

        It has the file's attributes. None says that the disk cannot tell.
        """
        early = self._found.pop(path)
        lead = early.lead
        # What is longer than the file takes no end of it that is no whole block.
        lead.resize(os.fstat(file).st_size)
        extents.share_beginning(file, lead.file)
        try:
            lead.add(file, self._since(early, file))
        except UntoldError:
            return None
        FileCopier().copy_attributes(file, lead.file, os.fstat(file))
        return lead

    def _since(self, early: _Early, file: int) -> list[Range]:
        """Return what *file* may have elsewhere since *early*; raise UntoldError."""
        if early.again is not None:
            return [*early.again, *early.places.look_again(file)]
        told = None
        if self._events is not None and os.fstat(file).st_ino == early.inode:
            told = self._events.changed(early.inode)
        # Somebody has written more than the kernel keeps: nobody does now.
        return early.lead.settle(file, early.places) if told is None else told
