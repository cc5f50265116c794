"""
The volumes of a group, which are committed at one moment: `meeting.py` says how.

All of a group that are mounted here have one round, in a thread each. One that does not
come to an end keeps the others only for a while; their next rounds are without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from typing import Final

from backends.replication_options import ReplicationOptions
from backends.system.aside import begun, log_fault
from plugin.errors import StoreError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.state import Epoch
from plugin.ownership.view import OwnershipView
from plugin.replication.meeting import Meeting
from plugin.replication.moments import Moments
from plugin.replication.progress import GroupFacts, Progress

log = logging.getLogger(__name__)
_ROUND_MAX_S: Final = 30.0
Held = tuple[VolumeRecord, int]


class Together:
    """See the module's text; *of_group* returns all volumes of a group."""

    def __init__(
        self,
        ownership: OwnershipView,
        moments: Moments,
        progress: Progress,
        of_group: Callable[[str], Sequence[VolumeRecord]],
    ) -> None:
        self._ownership = ownership
        self.moments = moments
        self._progress = progress
        self._of_group = of_group
        # By volume, each of which is in one round at a time: the last one that it had
        # with others,
        self._rounds: dict[str, Future[None]] = {}
        # where they met,
        self._meetings: dict[str, Meeting] = {}
        # why it was left out of its group's last moment,
        self._left_out: dict[str, str] = {}
        # and the epoch of which it was told with what it began.
        self._told: dict[str, int] = {}

    def units(self, held: Sequence[Held]) -> Mapping[str, Sequence[Held]]:
        """
        Return which of all volumes *held* have rounds together, each with a key.

        What was known of others is forgotten.
        """
        ids = {record.id for record, _ in held}
        for known in (self._rounds, self._meetings, self._left_out, self._told):
            for volume_id in {*known} - ids:
                known.pop(volume_id, None)
        units: dict[str, list[Held]] = {}
        for record, epoch in held:
            group = ReplicationOptions.of(record.options).group
            key = f"group {group}" if group else record.id
            units.setdefault(key, []).append((record, epoch))
        return units

    def round(
        self,
        volumes: Sequence[Held],
        work: Callable[[VolumeRecord, int, Meeting], None],
    ) -> None:
        """Do *work* with each volume at once, after which all have met."""
        free = [each for each in volumes if not self._is_late(each[0].id)]
        meeting = self.moments.meeting_of(*(record.id for record, _ in free))
        if len(volumes) == 1:
            for record, epoch in free:
                self._left_out.pop(record.id, None)
                work(record, epoch, meeting)
            return
        self._tell_bases(volumes)
        rounds = {}
        for record, epoch in free:
            self._meetings[record.id] = meeting
            outcome = begun(partial(work, record, epoch, meeting), name="round:group")
            outcome.add_done_callback(partial(_gone, meeting, record.id))
            outcome.add_done_callback(log_fault)
            rounds[record.id] = outcome
        wait(rounds.values(), _ROUND_MAX_S)
        self._rounds.update(rounds)
        if meeting.was_due:
            for record, epoch in volumes:
                if self._is_held(record, epoch):
                    self._note(record, meeting)

    def let_go(self, volume_id: str) -> None:
        """Have the volume, which is unmounted, wait for no other of its group."""
        meeting = self._meetings.pop(volume_id, None)
        if meeting is not None:
            meeting.leave(volume_id)
            meeting.landing.hurry(volume_id)

    def _is_late(self, volume_id: str) -> bool:
        """Return whether the volume's last round has not come to an end."""
        before = self._rounds.get(volume_id)
        return before is not None and not before.done()

    def _is_held(self, record: VolumeRecord, epoch: int) -> bool:
        """Return whether it was neither unmounted nor lost in the round."""
        with suppress(StoreError):
            return self._ownership.still_owner(record, epoch)
        return True

    def left_out(self, volume_id: str) -> str:
        """Return why a volume was left out of its group's last moment, or ""."""
        return self._left_out.get(volume_id, "")

    def facts(self, record: VolumeRecord) -> GroupFacts | None:
        """Return how the group is, as the cluster knows it; None without a group."""
        group = ReplicationOptions.of(record.options).group
        if not group:
            return None
        apart = {
            other.name: self._why_apart(record, other)
            for other in self._of_group(group)
            if other.id != record.id
        }
        return GroupFacts(
            group,
            sorted(name for name, why in apart.items() if not why),
            {name: why for name, why in apart.items() if why},
        )

    def _why_apart(self, record: VolumeRecord, other: VolumeRecord) -> str:
        own, head = (self._ownership.heads.head(each.id) for each in (record, other))
        if own is None or head is None or "idle" in (own.phase, head.phase):
            return "one of the two is not in use"
        if own.moment and own.moment == head.moment:
            return ""
        if head.owner != own.owner:
            return f"it is in use on node '{self._ownership.name_of(head.owner)}'"
        return (
            self.left_out(other.id)
            or self.left_out(record.id)
            or "their newest commits are of different moments"
        )

    def _note(self, record: VolumeRecord, meeting: Meeting) -> None:
        """Note whether the volume is of the moment, and tell when it ceases to be."""
        is_of_it = record.id in meeting.together
        why = "" if is_of_it else self._why_not(record.id, meeting)
        before = self._left_out.get(record.id, "")
        self._left_out[record.id] = why
        if why and not before:
            group = ReplicationOptions.of(record.options).group
            self._ownership.events.add(record, "left-out", group=group, why=why)
            log.warning(
                "not of one moment with its group: %s",
                why,
                extra=fields(volume=record.name),
            )

    def _why_not(self, volume_id: str, meeting: Meeting) -> str:
        """Return why the volume is not of the moment of a *meeting*."""
        if self._is_late(volume_id):
            return "its last round has not come to an end"
        if why := self._progress.failure(volume_id):
            return why
        if volume_id in meeting.late:
            return "the others did not wait for it"
        missed = self._progress.pauses.facts(volume_id).missed
        return missed or "no commit was made of it"

    def _tell_bases(self, volumes: Sequence[Held]) -> None:
        """Tell of volumes that began, after a failure, with commits of two moments."""
        begun = {
            record.id: self._epoch(each) for each in volumes for record in each[:1]
        }
        for record, epoch in volumes:
            if self._told.get(record.id) == epoch:
                continue
            own = begun[record.id]
            others = [
                other.name
                for other, _ in volumes
                if other.id != record.id and _differ(own, begun[other.id])
            ]
            if others:
                names = ", ".join(sorted(others))
                group = ReplicationOptions.of(record.options).group
                self._ownership.events.add(
                    *(record, "other-moment"),
                    group=group,
                    others=names,
                    moment=own.moment if own else "",
                )
                log.warning(
                    "it began with a commit of another moment than its group's: %s",
                    names,
                    extra=fields(volume=record.name),
                )
            self._told[record.id] = epoch

    def _epoch(self, held: Held) -> Epoch | None:
        # What cannot be read of one volume hides no other; its own round says so.
        with suppress(StoreError):
            return self._ownership.heads.lineage(held[0].id).epochs.get(held[1])
        return None


def _gone(meeting: Meeting, volume_id: str, _: Future[None]) -> None:
    meeting.leave(volume_id)
    meeting.landing.leave(volume_id)


def _differ(one: Epoch | None, other: Epoch | None) -> bool:
    """Return whether two volumes began, after failures, with two moments."""
    if one is None or other is None or one.at_rest or other.at_rest:
        return False
    return not one.moment or one.moment != other.moment
