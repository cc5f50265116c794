"""
Takes moments of a copy that is a subvolume, where other volumes are of the same one.

The look before has taken a snapshot, so that most of what was written is on the disk.
In the moment there is another one; what it differs in is looked for afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from backends.rsync.journal.commits import Commits
from backends.rsync.journal.entries import UNWRITTEN, Commit
from backends.rsync.journal.manifest import Manifest
from backends.rsync.journal.scan import NOTHING, Changes
from backends.rsync.journal.watch import Hints


class SnapshotTaking:
    """As `MomentTaking`; *look* finds what the newest snapshot differs in."""

    # Nothing is set aside but the snapshot, which is the commit's.
    moment = None

    def __init__(self, commits: Commits, look: Callable[[], Changes]) -> None:
        self._commits = commits
        self._look = look
        self._commit: Commit = UNWRITTEN
        self._is_unchanged = False

    def shares_blocks(self) -> bool:
        """Return True: a snapshot does."""
        return True

    def expect(
        self, bases: Collection[Commit], missing: Collection[bytes] = ()
    ) -> None:
        """Do nothing: a snapshot has all that members may lack."""

    def prepare(
        self, changes: Changes, manifest: Manifest, *, shares_blocks: bool
    ) -> Hints:
        """Prepare `take`; return where to look again: that the filesystem tells."""
        del changes, shares_blocks
        self._commit = manifest.commit()
        return Hints()

    def take(self, hints: Hints, inodes: Collection[int]) -> None:
        """
        Set aside what is there now, unless nothing has changed since the commit.

        Raises:
            BackendError: there is no snapshot to be had.

        """
        del inodes
        self._is_unchanged = hints == Hints() and self._commits.is_unchanged(
            self._commit
        )
        if not self._is_unchanged:
            self._commits.set_aside()

    def taken(self) -> Changes:
        """Return what has changed by then, for a record."""
        if self._is_unchanged:
            return NOTHING
        self._commits.use_set_aside()
        return self._look()

    def drop(self) -> None:
        """Delete what `take` has set aside, if nobody has used it."""
        self._commits.drop_set_aside()
