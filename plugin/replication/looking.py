"""
What has changed in a mounted volume since its last commit: hints, and what they miss.

Events do not tell of everything. So two more things are looked at: files that changed
lately, in every round; and all names once a minute, in large volumes less often.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from backends.errors import BackendError, RemoraError
from backends.rsync.journal.journal import EVERYTHING, Journal
from backends.rsync.journal.scan import Changes
from backends.rsync.journal.watch import Hints
from backends.system.clock import monotonic_s
from plugin.model import VolumeRecord
from plugin.replication.journals import Journals

# At a million names a look takes seconds, in which no commit is made.
_SCAN_PAUSE_PER_LOOK: Final = 20
_SCAN_PAUSE_MAX_S: Final = 600.0
# Files that are looked at in every round, because they have changed before.
_RECENT_MAX: Final = 500


@dataclass(slots=True)
class _Seen:
    """What is remembered of a volume from one round to the next."""

    scan_due_s: float = 0.0
    # Not before, even if hints say that everything may have changed.
    rest_until_s: float = 0.0
    recent: tuple[bytes, ...] = ()
    # It is known that there are changes which the last look did not find.
    is_partial: bool = False
    # Why the last look at all names has failed.
    failure: RemoraError | None = None


class Looking:
    """
    See the module's text; a volume is looked at in one thread at a time.

    All names are looked at every *interval_s*, or less often: no event tells of a write
    through a mapping that stays open.
    """

    def __init__(self, journals: Journals, *, interval_s: float) -> None:
        self._journals = journals
        self._interval_s = interval_s
        self._seen: dict[str, _Seen] = {}

    def look(self, record: VolumeRecord, journal: Journal) -> Changes:
        """
        Return what has changed, as far as hints tell.

        Raises:
            RemoraError: the look has failed; the next one returns it.

        """
        seen = self._seen.setdefault(record.id, _Seen())
        _require_rested(seen)
        hints = self._hints(record, journal, seen)
        try:
            changes = self._looked(seen, journal, hints)
        except RemoraError:
            self._journals.give_back(record, hints)
            raise
        changed = [each.entry.path for each in changes.changed]
        seen.recent = _newest(seen.recent, changed)
        return changes

    def look_again(self, record: VolumeRecord, again: Hints) -> Hints:
        """
        Return where to look so that nothing is missed: *again*, and what came since.

        Raises:
            BackendError: that is not known.

        """
        seen, hints = self._seen.get(record.id), self._journals.new_hints(record)
        if hints.everything or seen is None or seen.is_partial:
            self._journals.give_back(record, hints)
            raise BackendError("not all that has changed is known before the next look")
        return dataclasses.replace(hints, paths=again.paths | hints.paths)

    def require_quiet(self, record: VolumeRecord) -> None:
        """Raise BackendError if anything has happened since the last look at hints."""
        hints = self._journals.new_hints(record)
        if hints != Hints():
            self._journals.give_back(record, hints)
            raise BackendError("somebody outside of its containers writes to it")

    def give_back(self, record: VolumeRecord, hints: Hints) -> None:
        """Let the next look be at *hints* too: nothing was recorded of them."""
        self._journals.give_back(record, hints)

    def look_at_all(self, record: VolumeRecord, journal: Journal) -> Changes:
        """Return all that has changed in a volume that nobody writes to any more."""
        seen = self._seen.pop(record.id, _Seen())
        _require_rested(seen)
        try:
            return self._looked(seen, journal, EVERYTHING)
        except RemoraError:
            self._seen[record.id] = seen
            raise

    def _looked(self, seen: _Seen, journal: Journal, hints: Hints) -> Changes:
        """Look; note when the next look at all names may be, also if this one fails."""
        begin_s = monotonic_s()
        try:
            return journal.look(hints)
        except RemoraError as error:
            seen.failure = error if hints.everything else None
            raise
        finally:
            if hints.everything:
                end_s = monotonic_s()
                rest_s = _SCAN_PAUSE_PER_LOOK * (end_s - begin_s)
                seen.rest_until_s = end_s + min(rest_s, _SCAN_PAUSE_MAX_S)
                seen.scan_due_s = max(end_s + self._interval_s, seen.rest_until_s)

    def forget(self, record: VolumeRecord) -> None:
        """Let the next look be at everything: nobody has watched in between."""
        self._seen.pop(record.id, None)

    def missed(self, record: VolumeRecord) -> None:
        """Let the next look find again what the last one found: it was not recorded."""
        self._seen[record.id] = _Seen()

    def _hints(self, record: VolumeRecord, journal: Journal, seen: _Seen) -> Hints:
        hints = self._journals.hints(record, journal)
        if journal.by_snapshot:
            return hints  # what no event tells of, the filesystem does
        due_s = seen.rest_until_s if hints.everything else seen.scan_due_s
        seen.is_partial = False
        if monotonic_s() >= due_s:
            return EVERYTHING
        seen.is_partial = hints.everything
        if hints.everything:
            # Where nothing can be watched, or more happens than events can tell, all
            # names would else be looked at in every round.
            self._journals.give_back(record, EVERYTHING)
            hints = dataclasses.replace(hints, everything=False)
        # What a database writes directly to a file that stays open causes no event.
        return dataclasses.replace(hints, paths=hints.paths.union(seen.recent))


def _require_rested(seen: _Seen) -> None:
    """
    Raise again why the last look at all names has failed, while it is soon after it.

    What is refused for having millions of names would else be walked all the time.
    """
    failure, seen.failure = seen.failure, None
    if failure is not None and monotonic_s() < seen.rest_until_s:
        seen.failure = failure
        raise failure.with_traceback(None)


def _newest(before: Sequence[bytes], more: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the `_RECENT_MAX` paths that changed last, the newest first."""
    found = dict.fromkeys([*reversed(more[-_RECENT_MAX:]), *before])
    return tuple(found)[:_RECENT_MAX]
