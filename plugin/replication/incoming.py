"""What comes for this node's copies: since when, and whether the disk has kept it."""

from __future__ import annotations

from pathlib import Path

from backends.errors import BackendError
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.delta import Header
from backends.rsync.journal.journal import Journal
from backends.rsync.journal.staging import Staging
from backends.system.aside import begun
from backends.system.writeback import Writeback
from plugin.errors import PeerRefusedError
from plugin.ownership.state import Commit
from plugin.peers.sharing import AHEAD_SEQ


class Incoming:
    """What has come for each volume, by its id, since its last commit."""

    def __init__(self) -> None:
        self._arrivals: dict[str, Arrivals] = {}
        self._writebacks: dict[str, Writeback] = {}
        # Volumes of which files came ahead of a commit that has not come yet.
        self._ahead: set[str] = set()
        # What came in vain with which attributes, by its path; see `Fitting`.
        self._refused: dict[str, dict[bytes, str]] = {}
        # The commit that has come, if this node has asked holders for it.
        self._pulled: dict[str, Commit] = {}
        self._last: set[str] = set()

    def note_last(self, volume_id: str, *, last: bool) -> None:
        """Note whether the commit that has come is the *last* of its owner."""
        self._last.discard(volume_id)
        self._last.update([volume_id] if last else ())

    def is_urgent(self, volume_id: str) -> bool:
        """Return whether a Mount may wait for the commit that has come."""
        return volume_id in self._last or volume_id in self._pulled

    def note(
        self,
        volume_id: str,
        home: Path,
        commit: Commit,
        *,
        empty: bool,
        clean: bool | None = False,
    ) -> None:
        """
        Note that files of *commit* come to the copy in *home*, or files ahead of it.

        What lies here of another epoch, or of before our start, is only of use to
        rsync, which compares it with what it sends. Files ahead are all compared by the
        end of their transfer, and an *empty* copy begins with them. *clean*: nothing
        lies here; None: an earlier transfer may still write.
        """
        # The descriptors of copies that have gone would keep their disk from going.
        for key, written in [*self._writebacks.items()]:
            if not written.directory.exists():
                self.forget(key)
        if volume_id not in self._writebacks:
            self._writebacks[volume_id] = Writeback(home)
        known = self._arrivals.get(volume_id)
        if commit.seq == AHEAD_SEQ:
            self._ahead.add(volume_id)
            known = None
        at = commit.epoch, commit.seq
        if known is None or not known.go_on(at):
            if not clean:
                Staging(home).drop_later()
            known = Arrivals.begun(at, clean=bool(clean))
        if clean is None:
            known.doubt()
        known.compared |= empty and commit.seq != AHEAD_SEQ
        self._arrivals[volume_id] = known

    def note_all_ahead(self, volume_id: str, *, skipped: bool = False) -> None:
        """
        Note that rsync has compared every file that was sent ahead, or *skipped* some.

        The disk gets them while their commit is on its way, which waits for the rest.
        """
        if volume_id in self._arrivals:
            self._arrivals[volume_id].compare(skipped=skipped)
        if (written := self._writebacks.get(volume_id)) is not None:
            # What the disk loses now, `flush` tells of.
            begun(written.flush, name="incoming:flush")

    def is_ahead(self, volume_id: str) -> bool:
        """Return whether files came ahead of a commit that has not come yet."""
        return volume_id in self._ahead

    def of(self, volume_id: str) -> Arrivals | None:
        """Return what has come, None if nothing has since this daemon's start."""
        return self._arrivals.get(volume_id)

    def come_for(
        self, volume_id: str, header: Header, since: tuple[int, int] | None
    ) -> Arrivals:
        """
        Return what may belong to the delta of *header*.

        If it names everything, files ahead are of commit *since*, or later: what is
        newer was sent. None: an owner of an earlier version does not say since when.
        """
        arrivals = self.of(volume_id) or Arrivals.begun(header.commit)
        if arrivals.compared and header.base is None:
            arrivals.oldest = since or header.commit
        return arrivals

    def refused(self, volume_id: str) -> dict[bytes, str]:
        """Return what came in vain, to be gone on with."""
        return self._refused.setdefault(volume_id, {})

    def pull(self, volume_id: str, commit: Commit) -> None:
        """Believe what has come only if it was asked for before, or with *commit*."""
        if self._pulled.get(volume_id) != commit:
            known = self._arrivals.pop(volume_id, None)
            # What its owner filled before is of older commits.
            if known and (came := known.only((commit.epoch, commit.seq))):
                self._arrivals[volume_id] = came
        self._pulled[volume_id] = commit

    def flush(self, volume_id: str, journal: Journal) -> None:
        """
        Make durable what has come.

        Raises:
            PeerRefusedError: nothing has come since this daemon's start.
            BackendError: the disk has lost something of it, and nobody knows what. All
                of it goes: it has to be sent again.

        """
        written = self._writebacks.get(volume_id)
        if written is None:
            raise PeerRefusedError("the commit has not been sent")
        try:
            written.flush()
        except OSError as error:
            self.forget(volume_id)
            journal.staging.clear()
            raise BackendError(
                f"the disk has lost what was sent: {error.strerror}",
                hint="it is sent again; see this node's kernel log",
            ) from error

    def forget(self, volume_id: str) -> None:
        """Forget what has come: it is part of the copy now, or has gone."""
        self._arrivals.pop(volume_id, None)
        self._writebacks.pop(volume_id, None)
        self._ahead.discard(volume_id)
        self._refused.pop(volume_id, None)
        self._pulled.pop(volume_id, None)
        self._last.discard(volume_id)
