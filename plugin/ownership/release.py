"""
Letting an owned volume go: its bytes are sealed, spread, and the lock is given back.

After a crash in between, the release is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from backends.system import clock
from plugin.errors import ChangedError
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.bytes_port import Replication
from plugin.ownership.heads import drop_lock
from plugin.ownership.sealing import seal
from plugin.ownership.state import Commit, RefusedError
from plugin.ownership.view import OwnershipView
from plugin.store.contention import attempted


@dataclass(frozen=True, slots=True)
class Release:
    """Lets volumes of this node go."""

    ownership: OwnershipView
    replication: Replication

    def release(self, record: VolumeRecord) -> None:
        """
        Seal what this node's containers have written, and let the volume go.

        If the cluster does not answer, the bytes are sealed all the same, and `release`
        has to be called again, later.

        Raises:
            StoreError: the cluster did not answer; BackendError: the disk did not.

        """
        ownership = self.ownership
        if ownership.membership.alone and not ownership.heads.has(record.id):
            return  # it was never mounted
        commit = seal(ownership, record)
        holders = self._spread(record, commit) if commit else ()
        attempted(lambda: self._let_go(record, commit, holders))

    def _let_go(
        self, record: VolumeRecord, commit: Commit | None, holders: tuple[str, ...]
    ) -> None:
        """Give the lock back, and say which commit is the newest and who has it."""
        state = self.ownership.heads.read(record.id)
        head = state.head
        if head is None or head.owner != self.ownership.node_id or head.phase == "idle":
            return
        if head.phase == "recovering":
            give_up(self.ownership, record)
            return
        try:
            released = rules.release(
                head,
                node=self.ownership.node_id,
                epoch=head.epoch,
                commit=max(commit or head.committed, head.committed),
                holders=holders,
            )
        except RefusedError:
            return
        released = msgspec.structs.replace(released, released_at=clock.now_rfc3339())
        ours = state.locked_by == self.ownership.node_id
        operations = [drop_lock(record.id)] if ours else []
        if self.ownership.heads.change(state, released, *operations) is None:
            raise ChangedError(f"'{record.name}' was changed by another node")
        self.ownership.note(
            "released", record, head.epoch, commit=str(released.committed)
        )

    def _spread(self, record: VolumeRecord, commit: Commit) -> tuple[str, ...]:
        """Bring *commit* to the members; return the nodes that have it in the end."""
        head = self.ownership.heads.read(record.id).head
        if (
            head is None
            or head.owner != self.ownership.node_id
            or head.phase != "owned"
        ):
            return (self.ownership.node_id,)
        return tuple(
            sorted(
                {self.ownership.node_id, *self.replication.final_sync(record, commit)}
            )
        )


def give_up(ownership: OwnershipView, record: VolumeRecord) -> None:
    """Let a volume go whose epoch was raised and not begun, perhaps before a crash."""
    state = ownership.heads.read(record.id)
    if state.head is None or state.locked_by not in ("", ownership.node_id):
        return
    try:
        idle = rules.abandon(state.head, node=ownership.node_id, epoch=state.head.epoch)
    except RefusedError:
        return
    operations = [drop_lock(record.id)] if state.locked_by else []
    ownership.heads.change(state, idle, *operations)
