"""What came of bringing a commit to members, for who keeps count of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from backends.errors import RemoraError
from plugin.errors import PeerUnreachableError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership.state import Commit

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Report:
    """
    The outcome for a group of members: who has the commit.

    ``size_bytes`` is the size of the files that were sent to each, 0 if none were;
    ``carried_bytes`` went to all of them. ``faults`` says, by node, why it has not got
    it; to the nodes in ``filling`` something is on its way beside the rounds. Those in
    ``unheard`` could not be asked, or have too much on their way.
    """

    commit: Commit
    holders: set[str] = field(default_factory=set)
    sent: bool = False
    size_bytes: int = 0
    carried_bytes: int = 0
    faults: dict[str, str] = field(default_factory=dict)
    filling: set[str] = field(default_factory=set)
    unheard: set[str] = field(default_factory=set)


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
