"""Which of the files that have come belong to the commit that names them."""

from __future__ import annotations

from dataclasses import dataclass

from backends.rsync.journal.entries import Commit, Entry, Known


@dataclass(slots=True)
class Arrivals:
    """
    What has come in ``epoch``, since ``began_ns``, for a commit that names everything.

    ``first`` is the oldest commit that files came from; None if rsync has compared all
    of them. Size and times do not tell whether a file that came earlier is the one that
    is named now. It is if it was not written since: its commit is not newer than
    ``first``. What is newer has to have come in this round.
    """

    epoch: int
    first: Commit | None
    began_ns: int
    round_began_ns: int

    def include(self, entry: Entry, known: Known) -> bool:
        """Return whether the file *known*, which looks like *entry*, is it."""
        return (
            entry.kind != "file"
            or self.first is None
            or (entry.commit <= self.first and known.ctime_ns >= self.began_ns)
            or known.ctime_ns >= self.round_began_ns
        )
