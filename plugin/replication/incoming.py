"""What comes for this node's copies: since when, and whether the disk has kept it."""

from __future__ import annotations

from pathlib import Path

from backends.errors import BackendError
from backends.rsync.journal.arrivals import Arrivals
from backends.rsync.journal.journal import Journal
from backends.system.clock import wall_ns
from backends.system.writeback import Writeback
from plugin.errors import PeerRefusedError
from plugin.ownership.state import Commit
from plugin.peers.sharing import AHEAD_SEQ


class Incoming:
    """What has come for each volume, by its id, since its last commit."""

    def __init__(self) -> None:
        self._arrivals: dict[str, Arrivals] = {}
        self._writebacks: dict[str, Writeback] = {}

    def note(self, volume_id: str, home: Path, commit: Commit, *, empty: bool) -> None:
        """
        Note that files of *commit* come to the copy in *home*, or files ahead of it.

        What lies here of another epoch, or of before our start, is only of use to
        rsync, which compares it with what it sends. Files ahead are all compared, and
        an empty copy begins with them.
        """
        if volume_id not in self._writebacks:
            self._writebacks[volume_id] = Writeback(home)
        known, now_ns = self._arrivals.get(volume_id), wall_ns()
        epoch, seq = commit.epoch, commit.seq
        if seq == AHEAD_SEQ or empty:
            self._arrivals[volume_id] = Arrivals(epoch, None, now_ns, now_ns)
        elif known is None or known.epoch != epoch:
            self._arrivals[volume_id] = Arrivals(epoch, (epoch, seq), now_ns, now_ns)

    def of(self, volume_id: str) -> Arrivals | None:
        """Return what has come, None if nothing has since this daemon's start."""
        return self._arrivals.get(volume_id)

    def distrust(self, volume_id: str) -> None:
        """Believe nothing of what has come so far: another node sends now."""
        self._arrivals.pop(volume_id, None)

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
