"""
Leads to large files from before a moment, to which in it only little is added.

To clone a file costs as much as it has extents, 50 microseconds for each, and whoever
writes to it waits. So what has moved since the last commit is shared before; in the
moment it is asked once more where the file is on the disk, and what is elsewhere since
is shared, too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.rsync.journal.base_leads import Lead, lead_on
from backends.rsync.journal.entries import Commit
from backends.system import extents
from backends.system.copy_file import FileCopier, clone
from backends.system.extents import Places, UntoldError
from backends.system.ranges import Range

_FLAGS: Final = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class _Early:
    """A lead, what it has been looked at for, and where it has to be once more."""

    lead: Lead
    places: Places
    again: list[Range]


class EarlyLeads:
    """Those of files on the filesystem of *directory*."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: dict[bytes, _Early] = {}

    def add(self, path: bytes, file: int, *, base: int | None, content: Commit) -> None:
        """Make one to *file*, open at *path*; *base* is what it was at *content*."""
        places = Places()
        with self._based(file, base) as at:
            lead = lead_on(
                *(self._directory, path, None if base is None else content, at, file),
                places=places,
            )
        if lead is not None and lead.size:
            again = lead.settle(file, places)
            lead.add(file, again)
            self._found[path] = _Early(lead, places, again)

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
        extents.share_beginning(file, lead.file)
        try:
            lead.add(file, [*early.again, *early.places.look_again(file)])
        except UntoldError:
            return None
        FileCopier().copy_attributes(file, lead.file, os.fstat(file))
        return lead
