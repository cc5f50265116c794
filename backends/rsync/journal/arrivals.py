"""Which of the files that have come belong to the commit that names them."""

from __future__ import annotations

from dataclasses import dataclass

from backends.rsync.journal.entries import Commit, Entry, Known
from backends.system.clock import wall_ns


@dataclass(slots=True)
class Arrivals:
    """
    What has come in ``epoch``, since ``began_ns``, for a commit that names everything.

    ``first`` is the oldest commit that files came from; None if rsync has compared all
    of them. Size and times do not tell whether a file that came earlier is the one that
    is named now. It is if it was not written since: its commit is not newer than
    ``first``. What is newer has to have come in this round. What seems to come later
    than now came before the clock was put back, nobody knows when.
    """

    epoch: int
    first: Commit | None
    began_ns: int
    round_began_ns: int

    @classmethod
    def begun(cls, commit: Commit) -> Arrivals:
        """Return that nothing has come until now; files of *commit* do next."""
        now_ns = wall_ns()
        return cls(commit[0], commit, now_ns, now_ns)

    def begin_round(self) -> None:
        """Note that a round begins."""
        self.round_began_ns = wall_ns()

    def continues(self, begun: Arrivals) -> bool:
        """Return whether what comes from *begun* on belongs to the same."""
        return self.epoch == begun.epoch and self.began_ns <= begun.began_ns

    def include(self, entry: Entry, known: Known) -> bool:
        """Return whether the file *known*, which looks like *entry*, is it."""
        if entry.kind != "file" or self.first is None:
            return True
        written = entry.commit <= self.first
        since_ns = self.began_ns if written else self.round_began_ns
        return since_ns <= known.ctime_ns <= wall_ns()
