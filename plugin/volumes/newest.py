"""
Reading a volume's bytes on this node: the newest that there are, and of one commit.

A node that does not own a volume has a copy of some age, and commits of the owner come
into it while it is read. So the bytes are read where they are newest, and what came in
between makes the reading fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from backends.errors import VolumeBusyError
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError
from plugin.limits import SHORT_DEADLINE_S
from plugin.model import VolumeRecord
from plugin.ownership.bytes_port import Replication
from plugin.ownership.state import CopyState
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import was_released


@dataclass(frozen=True, slots=True)
class NewestBytes:
    """See the module's text; a node that is alone has the newest of all."""

    ownership: OwnershipView
    replication: Replication

    def require_here(self, record: VolumeRecord, *, command: str) -> None:
        """
        Raise NotOwnerError if another node has, or may have, newer bytes.

        *command* is what works on that node. What is known here decides, so that it
        also works while the cluster does not answer.
        """
        ownership = self.ownership
        if ownership.membership.alone or ownership.is_shared(record):
            return
        head = ownership.heads.read(record.id).head or ownership.initial_head(record)
        nodes = head.holders or head.members
        if head.phase != "idle":
            nodes = (head.owner,)
        elif not was_released(head):
            raise NotOwnerError(
                f"'{record.name}' was not let go orderly by its last owner, node "
                f"'{ownership.name_of(head.owner)}'",
                hint="start a container with it first: that settles who has the newest",
                transient=True,
            )
        if ownership.node_id not in nodes:
            names = " and ".join(f"'{ownership.name_of(each)}'" for each in nodes)
            raise NotOwnerError(
                f"the newest bytes of '{record.name}' are on node {names}",
                hint=f"there: {command}",
            )

    @contextmanager
    def reading(self, record: VolumeRecord, *, command: str) -> Iterator[None]:
        """
        Let the live bytes be read; those that this node's containers write may change.

        Raises:
            NotOwnerError: as `require_here`.
            VolumeBusyError: another node's commit came in; what was read is torn.

        """
        self.require_here(record, command=command)
        if self.ownership.membership.alone or self.ownership.is_shared(record):
            yield
            return
        # What is marked from now on changes the state.
        before = self.ownership.copy_state(record)
        self.replication.ready(record, Deadline(SHORT_DEADLINE_S))
        yield
        after = self.ownership.copy_state(record)
        if before is None or after is None or before.commit == after.commit:
            return
        if not self._was_written_here(record, before, after):
            raise VolumeBusyError(
                f"'{record.name}' was brought up to date meanwhile", hint="retry"
            )

    def _was_written_here(
        self, record: VolumeRecord, before: CopyState, after: CopyState
    ) -> bool:
        """Return whether *after* is of the same epoch, or of ours that went on."""
        live_epoch = before.live_epoch
        if live_epoch and after.commit.epoch == live_epoch:
            return True
        lineage = self.ownership.heads.lineage(record.id)
        begun = lineage.epochs.get(after.commit.epoch)
        if begun is None or begun.owner != self.ownership.node_id:
            return False
        return begun.base == before.commit or begun.base.epoch == live_epoch > 0
