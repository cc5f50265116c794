"""What ownership needs of replication; `Alone` is what a single node has of it."""

from __future__ import annotations

from typing import Protocol

from backends.system.clock import Deadline
from plugin.model import VolumeRecord
from plugin.ownership.refusals import elsewhere
from plugin.ownership.state import Choice, Commit, Head


class Replication(Protocol):
    """How bytes come to other nodes and from them; see `plugin.replication`."""

    def final_sync(self, record: VolumeRecord, commit: Commit) -> tuple[str, ...]:
        """Return the other members that have *commit*, this node's, now."""
        ...

    def ready(self, record: VolumeRecord, deadline: Deadline) -> None:
        """Return when this node's copy, if there is one, is exactly its commit."""
        ...

    def pull(
        self, record: VolumeRecord, epoch: int, choice: Choice, deadline: Deadline
    ) -> None:
        """
        Return when this node has the commit that *choice* begins with.

        Raises:
            NotOwnerError: no holder could send it in time.

        """
        ...

    def require_free(self, record: VolumeRecord) -> None:
        """Raise PeerRefusedError while another owner relies on our word to wait."""
        ...

    def require_unused(self, record: VolumeRecord, head: Head) -> None:
        """Raise PeerRefusedError if a node that can be reached knows of its use."""
        ...


class Alone:
    """A node without others; see `Replication`."""

    def final_sync(self, record: VolumeRecord, commit: Commit) -> tuple[str, ...]:
        """Return none."""
        del record, commit
        return ()

    def ready(self, record: VolumeRecord, deadline: Deadline) -> None:
        """Do nothing: no commit comes from elsewhere."""

    def pull(
        self, record: VolumeRecord, epoch: int, choice: Choice, deadline: Deadline
    ) -> None:
        """Raise NotOwnerError: there is nobody to ask."""
        del epoch, deadline
        raise elsewhere(record.name, choice.base, choice.holders)

    def require_free(self, record: VolumeRecord) -> None:
        """Do nothing: there is no other owner."""

    def require_unused(self, record: VolumeRecord, head: Head) -> None:
        """Do nothing: no other node uses it."""
