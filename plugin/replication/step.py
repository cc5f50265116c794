"""One commit brought to some members: what it is made of, and what they lack."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from backends.rsync.journal.entries import Commit as Base
from backends.rsync.journal.journal import Journal
from plugin.model import VolumeRecord
from plugin.ownership.state import Commit

# It makes a commit if anything has changed since the last one, and returns the newest;
# with True it makes one in any case.
Advance = Callable[[bool], Commit]


@dataclass(slots=True)
class Step:
    """See the module's text; *valid* says whether the files are still of the commit."""

    record: VolumeRecord
    journal: Journal
    advance: Advance
    valid: Callable[[], bool]
    # The members lack what has changed after this commit, and these paths.
    since: Base
    missing: Collection[bytes] = ()
    # The member was filled before.
    filled: bool = False
    # Bytes on the line, by node.
    carried: dict[str, int] = field(default_factory=dict)
