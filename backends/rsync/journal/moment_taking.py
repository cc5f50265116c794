"""
Takes moments of a copy: what is prepared before one, and what is kept of it after.

`prepare` comes before the writers stand still, `take` while they do, `taken` after.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from backends.errors import BackendError
from backends.rsync.journal.early_leads import EarlyLeads
from backends.rsync.journal.entries import Commit, Known
from backends.rsync.journal.large_files import LargeFiles
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.moment import (
    FILES_MAX,
    Moment,
    lead_early,
    prepare,
    too_many,
)
from backends.rsync.journal.packing import wanted
from backends.rsync.journal.scan import NOTHING, Changes
from backends.rsync.journal.watch import Hints


class MomentTaking:
    """The moments of the copy in *live*; *look* finds what has changed at hints."""

    def __init__(
        self, live: Path, kept: LargeFiles, look: Callable[[Hints], Changes]
    ) -> None:
        self._live = live
        self._kept = kept
        self._look = look
        self.moment: Moment | None = None
        self._early: EarlyLeads | None = None
        # What members lack that has not changed since the last commit.
        self._expected: tuple[Collection[Commit], Collection[bytes]] = ((), ())
        self._others: Sequence[Known] = ()

    def shares_blocks(self) -> bool:
        """Return whether copies of the files cost no more than a moment."""
        return self._kept.bases.possible()

    def expect(
        self, bases: Collection[Commit], missing: Collection[bytes] = ()
    ) -> None:
        """Have moments hold what members at *bases* lack too, or that is *missing*."""
        self._expected = bases, missing

    def prepare(
        self, changes: Changes, manifest: Manifest, *, shares_blocks: bool
    ) -> Hints:
        """
        Prepare `take`, as far as *changes* are known; return where to look again.

        Raises:
            BackendError: it is too much for a moment.

        """
        bases, missing = self._expected
        lacked = wanted(manifest, None, missing, enough=FILES_MAX)
        for base in bases:
            # Who is at another one gets everything, another time.
            with suppress(BackendError):
                lacked |= wanted(manifest, base, (), enough=FILES_MAX)
        if changes.rest or len(lacked) > FILES_MAX:
            raise too_many()
        self._others = [*filter(None, map(manifest.get, lacked))]
        rows = {each.entry.path: each for each in (*self._others, *changes.changed)}
        prepare(self._live, [*rows.values()], shares_blocks=shares_blocks)
        if shares_blocks:
            before = filter(None, map(manifest.get, rows))
            self._early = lead_early(self._live, before, self._kept)
        again = (*changes.changed, *changes.touched)
        paths = {each.entry.path for each in again} | {*changes.deleted}
        return Hints(frozenset(paths))

    def take(self, hints: Hints, inodes: Collection[int]) -> None:
        """
        Set aside what has changed, as it is now; nobody writes meanwhile.

        Looked at are *hints* and the files *inodes*; so they have to be complete.

        Raises:
            BackendError: it is too much, or something cannot be read.
            CopyError: there is not enough space for the copies.

        """
        changes = self._look(replace(hints, inodes=hints.inodes.union(inodes)))
        self.moment = Moment(self._live, changes, self._others, self._early)

    def taken(self) -> Changes:
        """Return the changes that `take` has set aside, for a record."""
        self._end_early()
        return NOTHING if self.moment is None else self.moment.changes()

    def drop(self) -> None:
        """Forget what `take` has set aside, which may be of no one moment."""
        if self.moment is not None:
            self.moment.drop()
        self.moment = None
        self._end_early()

    def _end_early(self) -> None:
        if self._early is not None:
            self._early.close()
        self._early = None
