"""Which of the files that have come belong to the commit that names them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from backends.rsync.journal.entries import Commit, Entry, Known
from backends.system.clock import wall_at_boot_ns, wall_ns

# What came with older ones is sent again.
_TRANSFERS_MAX: Final = 1000
# Between the readings of two clocks a thread may have to wait; who sets one sets it
# further back, or by less than a transfer takes to begin.
_CLOCK_SLACK_NS: Final = 50_000_000


@dataclass(slots=True)
class Arrivals:
    """
    What has come in ``epoch``: the commits that were sent, and when each began to come.

    Size and times do not tell whether a file is the one that is named now: it may have
    come with a commit that was never taken, and not again with this one, which does not
    fit on the owner's disk at once, brings what changes in it, or fails there. It is if
    it came with the commit that wrote it, or later: had it been written since, its
    commit would be newer. What seems to come later than now came before the clock was
    put back, nobody knows when.

    All that is here is of commit ``oldest``, or later, if that is known, but for what
    came before ``compared_ns``. ``compared``: rsync has compared all with files of a
    commit that the owner knows.
    """

    epoch: int
    oldest: Commit | None = None
    compared: bool = False
    compared_ns: int = 0
    _clock_ns: int = field(default_factory=wall_at_boot_ns)
    _transfers: deque[tuple[Commit, int]] = field(
        default_factory=lambda: deque(maxlen=_TRANSFERS_MAX)
    )

    @classmethod
    def begun(cls, commit: Commit, *, clean: bool = False) -> Arrivals:
        """Return that files of *commit* come next; *clean*: nothing is here yet."""
        arrivals = cls(commit[0], commit if clean else None)
        arrivals.go_on(commit)
        return arrivals

    def go_on(self, commit: Commit) -> bool:
        """Note that files of *commit* come next; False if nothing here is believed."""
        last, began_ns = self._transfers[-1] if self._transfers else (commit, 0)
        now_ns = wall_ns()
        was_put_back = wall_at_boot_ns() < self._clock_ns - _CLOCK_SLACK_NS
        if was_put_back or now_ns < began_ns:
            return False
        if commit[0] != self.epoch or commit < last:
            return False
        if commit > last or not self._transfers:
            self._transfers.append((commit, now_ns))
        return True

    def compare(self, *, skipped: bool) -> None:
        """
        Note that rsync has compared all that is here with files that came ahead.

        *skipped*: but for some. All that it compares, it writes anew.
        """
        self.compared = True
        if skipped:
            self.compared_ns = self._transfers[0][1] if self._transfers else wall_ns()

    def only(self, commit: Commit) -> Arrivals | None:
        """Return what has come with *commit* alone, None if another came last."""
        if not self._transfers or self._transfers[-1][0] != commit:
            return None
        return Arrivals(self.epoch, _transfers=deque(self._transfers, 1))

    def doubt(self) -> None:
        """Believe nothing of the last commit: an earlier transfer may still write."""
        self._transfers.pop()

    def include(self, entry: Entry, known: Known) -> bool:
        """Return whether the file *known*, which looks like *entry*, is it."""
        if entry.kind != "file":
            return True
        is_old = self.oldest is not None and entry.commit <= self.oldest
        if is_old and known.ctime_ns >= self.compared_ns:
            return True
        began_ns = (at for commit, at in self._transfers if entry.commit <= commit)
        since_ns = next(began_ns, None)
        return since_ns is not None and since_ns <= known.ctime_ns <= wall_ns()
