"""
Commits of one moment where there are no snapshots: the volume's containers stand still.

So do those of all volumes of a group, for snapshots too: these are of one moment each.
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
from plugin.fencing.pausing import Pausing
from plugin.model import VolumeRecord
from plugin.replication.looking import Looking
from plugin.replication.meeting import Meeting
from plugin.replication.pauses import Pauses

_SHARES_NO_BLOCKS: Final = (
    "files share no blocks here (hint: a pool on XFS or btrfs; where little changes, "
    "consistency=pause)"
)
# Nobody has asked for it, or somebody has: then it may take longer.
_LIMIT_S: Final = {"auto": 0.1, "pause": 0.5}


class Moments:
    """See the module's text; *pausing* has the writers of a volume stand still."""

    def __init__(self, looking: Looking, pauses: Pauses, pausing: Pausing) -> None:
        self.looking = looking
        self._pauses = pauses
        self._pausing = pausing

    def meeting_of(self, *volume_ids: str) -> Meeting:
        """Return where these volumes meet to be committed at one moment, once."""
        return Meeting(self._pausing, volume_ids)

    def take(
        self,
        record: VolumeRecord,
        journal: Journal,
        changes: Changes,
        meeting: Meeting,
    ) -> Changes:
        """
        Return what to record: *changes*, or what is of one moment, a bit later.

        It is that of all who come to the *meeting*; then the journal says which.
        """
        consistency = ReplicationOptions.of(record.options).consistency
        of_several = meeting.is_of_several
        if consistency == "fuzzy" or (journal.by_snapshot and not of_several):
            meeting.leave(record.id)
            return changes
        limit_s, moments = _LIMIT_S[consistency], journal.moments
        missed, hints = "", Hints()
        try:
            shares_blocks = moments.shares_blocks()
            if consistency == "auto" and not (shares_blocks or of_several):
                return changes
            if consistency == "auto" and not shares_blocks:
                raise BackendError(_SHARES_NO_BLOCKS)
            if rest_s := self._pauses.rest_s(record.id):
                raise BackendError(
                    f"pauses have taken longer than {1000 * limit_s:.0f} ms, or were "
                    f"for nothing; there is none for {rest_s:.0f} s"
                )
            found = self._pausing.find(record.id)
            again = moments.prepare(
                changes, journal.manifest, shares_blocks=shares_blocks
            )
            with meeting.paused(record.id, found):
                hints = self.looking.look_again(record, again)
                moments.take(hints, () if journal.by_snapshot else meeting.inodes())
                self.looking.require_quiet(record)
        except (RemoraError, OSError) as error:
            moments.drop()
            self.looking.give_back(record, hints)
            meeting.leave(record.id)
            missed = str(error)
        else:
            changes = moments.taken()
            journal.moment = meeting.moment
            meeting.together.add(record.id)
        took_s = meeting.stood_s(record.id)
        self._pauses.note(record.id, took_s, limit_s=limit_s, missed=missed)
        return changes
