"""
Commits of one moment where there are no snapshots: the volume's containers stand still.

Outside of the pause: a look for who writes, one as ever for what has changed; and that
is written out, so that copies of it wait for nothing. Inside: another look at that, at
what events tell of since, and at all files that stay open, for no event tells of every
write to those; then copies that share their blocks. All else is done when the
containers go on. If it is not possible, or has not lasted, or somebody else has written
meanwhile, the commit is made as without it, and status says why.
"""

from __future__ import annotations

from typing import Final

from backends.errors import BackendError, RemoraError
from backends.replication_options import ReplicationOptions
from backends.rsync.journal.journal import Journal
from backends.rsync.journal.scan import Changes
from backends.rsync.journal.watch import Hints
from plugin.fencing.pausing import Paused, Pausing
from plugin.model import VolumeRecord
from plugin.replication.looking import Looking
from plugin.replication.pauses import Pauses

# Nobody has asked for it, or somebody has: then it may take longer.
_LIMIT_S: Final = {"auto": 0.1, "pause": 0.5}


class Moments:
    """See the module's text; *pausing* has the writers of a volume stand still."""

    def __init__(self, looking: Looking, pauses: Pauses, pausing: Pausing) -> None:
        self.looking = looking
        self._pauses = pauses
        self._pausing = pausing

    def take(self, record: VolumeRecord, journal: Journal, changes: Changes) -> Changes:
        """Return what to record: *changes*, or what is of one moment, a bit later."""
        consistency = ReplicationOptions.of(record.options).consistency
        if journal.by_snapshot or consistency == "fuzzy":
            return changes
        limit_s, moments = _LIMIT_S[consistency], journal.moments
        missed, paused, hints = "", Paused(frozenset()), Hints()
        try:
            shares_blocks = moments.shares_blocks()
            if consistency == "auto" and not shares_blocks:
                return changes
            if rest_s := self._pauses.rest_s(record.id):
                raise BackendError(
                    f"pauses have taken longer than {1000 * limit_s:.0f} ms, or were "
                    f"for nothing; there is none for {rest_s:.0f} s"
                )
            paused = self._pausing.find(record.id)
            again = moments.prepare(
                changes, journal.manifest, shares_blocks=shares_blocks
            )
            with self._pausing.paused(record.id, paused):
                hints = self.looking.look_again(record, again)
                moments.take(hints, paused.inodes())
                self.looking.require_quiet(record)
            changes = moments.taken() or changes
        except (RemoraError, OSError) as error:
            moments.drop()
            self.looking.give_back(record, hints)
            missed = str(error)
        self._pauses.note(record.id, paused.took_s, limit_s=limit_s, missed=missed)
        return changes
