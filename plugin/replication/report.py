"""A commit brought to members: of what it is made, and what came of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from backends.errors import RemoraError
from backends.rsync.journal.entries import Commit as Base
from backends.rsync.journal.journal import Journal
from backends.rsync.journal.packing import Package
from plugin.errors import PeerUnreachableError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.state import Commit, Quality
from plugin.replication.landing import Landing

log = logging.getLogger(__name__)
# It makes a commit if anything has changed since the last one, and returns the newest;
# with True it makes one in any case.
Advance = Callable[[bool], Commit]


@dataclass(slots=True)
class Step:
    """
    One commit brought to some members: what it is made of, and what they lack.

    *valid* says whether the files are still of the commit; *landing*, when it may
    become a member's.
    """

    record: VolumeRecord
    journal: Journal
    advance: Advance
    valid: Callable[[], bool]
    # The members lack what has changed after this commit, and these paths.
    since: Base
    landing: Landing
    missing: Collection[bytes] = ()
    # Nobody writes to the volume, as long as it is valid.
    stands_still: bool = False
    # The member was filled before.
    filled: bool = False
    # Bytes on the line, by node.
    carried: dict[str, int] = field(default_factory=dict)

    def pack(self, bases: Iterable[Base | None], missing: Collection[bytes]) -> Package:
        """Return what leads members from each of *bases* on, and what is *missing*."""
        return self.journal.pack(
            *bases, only=missing, valid=self.valid, stands_still=self.stands_still
        )


@dataclass(slots=True)
class Report:
    """
    The outcome for a group of members: who has the commit.

    ``size_bytes`` is the size of the files that were sent to each, 0 if none were;
    ``carried_bytes`` went to all of them. ``faults`` says, by node, why it has not got
    it; to the nodes in ``filling`` something is on its way beside the rounds. Those in
    ``unheard`` could not be asked, or have too much on their way. ``quality`` is that
    of what was sent, ``moment`` the one that it shares with other volumes.
    """

    commit: Commit
    holders: set[str] = field(default_factory=set)
    sent: bool = False
    size_bytes: int = 0
    carried_bytes: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    filling: set[str] = field(default_factory=set)
    unheard: set[str] = field(default_factory=set)
    quality: Quality = "fuzzy"
    moment: str = ""

    def moment_of(self, journal: Journal) -> str:
        """Return the moment of the commit, as it was sent or as *journal* has it."""
        is_newest = (self.commit.epoch, self.commit.seq) == journal.commit()
        return journal.moment if is_newest and journal.moment else self.moment

    def quality_of(self, journal: Journal) -> Quality:
        """Return the quality of the commit, as it was sent or as *journal* has it."""
        is_newest = (self.commit.epoch, self.commit.seq) == journal.commit()
        if self.quality == "fuzzy" and is_newest:
            return journal.quality()
        return self.quality


def failed(
    record: VolumeRecord, commit: Commit, group: Sequence[str], error: RemoraError
) -> Report:
    """Return the report of what failed for all of *group*, which is logged."""
    note(record, ",".join(group), error)
    return Report(commit, faults=dict.fromkeys(group, str(error)))


def note(record: VolumeRecord, node: str, error: RemoraError | str) -> None:
    """Log why *node* has not got a commit of the volume."""
    quiet = isinstance(error, PeerUnreachableError)
    log.log(
        logging.INFO if quiet else logging.WARNING,
        "a copy is not up to date: %s",
        error,
        extra=fields(volume=record.name, node=node),
    )
