"""What the owner of a mounted volume commits: a look, a moment, a number."""

from __future__ import annotations

from backends.rsync.journal.journal import Journal
from plugin.model import VolumeRecord
from plugin.ownership.sealing import commit_running
from plugin.ownership.state import Commit
from plugin.ownership.view import OwnershipView
from plugin.replication.meeting import Meeting
from plugin.replication.moments import Moments
from plugin.replication.receiving import pair


class Committing:
    """Makes the commits of volumes to which containers write."""

    def __init__(self, ownership: OwnershipView, moments: Moments) -> None:
        self._ownership = ownership
        self._moments = moments

    def advance(
        self,
        record: VolumeRecord,
        epoch: int,
        journal: Journal,
        meeting: Meeting,
        *,
        anew: bool,
    ) -> Commit:
        """
        Return the newest commit, made now if anything has changed.

        It is of one moment with all who come to the *meeting*, of which there is one in
        a round. If another one of them has changed, it is looked at whether this one is
        unchanged at that moment. A volume that the others did not wait for has a moment
        of its own.
        """
        if not meeting.is_first(record.id):
            meeting = self._moments.meeting_of(record.id)
        looking = self._moments.looking
        changes = looking.look(record, journal)
        current = Commit(*journal.commit())
        wanted = bool(changes) or anew or current.epoch != epoch
        if not meeting.is_due(record.id, is_changed=wanted):
            journal.manifest.touch(changes.touched)
            return current
        if not meeting.awaits(record.id):
            meeting = self._moments.meeting_of(record.id)
        try:
            changes = self._moments.take(record, journal, changes, meeting)
            if not (changes or wanted):
                journal.moments.drop()
                journal.manifest.touch(changes.touched)
                return current
            # The number is used up durably before anybody can have seen it.
            commit = commit_running(self._ownership, record, epoch)
            journal.record(changes, pair(commit))
        except BaseException:
            looking.missed(record)
            raise
        return commit
