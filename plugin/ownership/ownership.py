"""
Owning volumes: the rules of `rules.py`, driven against the store, peers and disks.

To mount an exclusive volume a node *acquires* it: it raises the epoch and takes the
lock by compare-and-set, lets every member promise that epoch, chooses the best commit
that they have, and begins. At the last unmount it *releases*: it seals the bytes as a
commit and gives the lock back.

A node that is alone does the same with its embedded store; nobody contends.
"""

from __future__ import annotations

import msgspec

from backends.system import clock, files
from backends.system.clock import Deadline
from plugin.errors import ChangedError, NotOwnerError
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.acquisition import (
    REFRESH_DEADLINE_S,
    Acquisition,
)
from plugin.ownership.heads import Tomb, bury, drop_lock, put_head, put_tomb
from plugin.ownership.refusals import explained, set_apart
from plugin.ownership.state import Commit, RefusedError
from plugin.store.base import NO_CHANGE, Change
from plugin.store.contention import attempted


class Ownership(Acquisition):
    """What this node does with the volumes that it owns; see the module's text."""

    def release(self, record: VolumeRecord) -> None:
        """
        Seal what this node's containers have written, and let the volume go.

        Without an answer of the cluster the bytes are sealed all the same, and the
        volume is let go by `release` again, later.

        Raises:
            StoreError: the cluster did not answer; BackendError: the disk did not.

        """
        commit = self._seal(record)
        holders = self._spread(record, commit) if commit else ()
        attempted(lambda: self._let_go(record, commit, holders))

    def _let_go(
        self, record: VolumeRecord, commit: Commit | None, holders: tuple[str, ...]
    ) -> None:
        """Give the lock back, and say which commit is the newest and who has it."""
        standing = self.heads.read(record.id)
        head = standing.head
        if head is None or head.owner != self.node_id or head.phase == "idle":
            return
        if head.phase == "recovering":
            self.give_up(record)
            return
        try:
            released = rules.release(
                head,
                node=self.node_id,
                epoch=head.epoch,
                commit=max(commit or head.committed, head.committed),
                holders=holders,
            )
        except RefusedError:
            return
        released = msgspec.structs.replace(released, released_at=clock.now_rfc3339())
        operations = (
            [] if standing.locked_by != self.node_id else [drop_lock(record.id)]
        )
        if self.heads.change(standing, released, *operations) is None:
            raise ChangedError(f"'{record.name}' was changed by another node")
        self.note("released", record, head.epoch, commit=str(released.committed))

    def commit_running(self, record: VolumeRecord, epoch: int) -> Commit:
        """
        Return a new commit of the volume, which goes on to be written to.

        Raises:
            NotOwnerError: this node's containers do not write in *epoch* any more.

        """
        with self.replicas.changing(record.id):
            replica = self.replica_of(record)
            if replica is None or replica.live_epoch != epoch:
                raise NotOwnerError(f"'{record.name}' is not owned in epoch {epoch}")
            committed = rules.commit_live(replica)
            self.replicas.write(record.id, committed)
        return committed.commit

    def _seal(self, record: VolumeRecord) -> Commit | None:
        """Return this node's newest commit, with all that was written in it."""
        if self.is_shared(record):
            return None
        with self.replicas.changing(record.id):
            replica = self.replica_of(record)
            if replica is None:
                return None
            if replica.live_epoch:
                if not self.membership.alone:
                    self._flush(record)
                replica = rules.seal(replica)
                self.replicas.write(record.id, replica)
            return replica.commit

    def _spread(self, record: VolumeRecord, commit: Commit) -> tuple[str, ...]:
        """Return the nodes that have *commit* when no more time is to be spent."""
        head = self.heads.read(record.id).head
        if head is None or head.owner != self.node_id or head.phase != "owned":
            return (self.node_id,)
        return tuple(sorted({self.node_id, *self.replication.settle(record, commit)}))

    def _flush(self, record: VolumeRecord) -> None:
        """What a commit names must be what the disk has after a power failure."""
        directory = self.backend_of(record).copy_directory(record.volume())
        if directory is not None:
            files.sync_filesystem(directory)

    def removal(self, record: VolumeRecord, deadline: Deadline) -> Change:
        """
        Return what keeps every node from acquiring the volume, which is to be removed.

        Raises:
            NotOwnerError: another node has it mounted.
            BackendError: a node has set bytes of it apart, which only people delete.

        """
        for each in self.heads.conflicts.of(record.id):
            if each.node_id != self.node_id:  # our own disk tells the backend more
                raise set_apart(record.name, each, self.name_of)
        for fresh in (False, True):
            if fresh:
                # What is known may be a moment old: the other may have let it go.
                self.heads.refresh(min(deadline.remaining_s(), REFRESH_DEADLINE_S))
            standing = self.heads.read(record.id)
            if self.membership.alone and standing.head is None:
                return NO_CHANGE  # nobody else could acquire it
            head = standing.head or self.initial_head(record)
            # Our own lock without a mount is what a crash has left.
            other = standing.locked_by if standing.locked_by != self.node_id else ""
            try:
                removing = rules.remove(head, locked_by=other)
            except RefusedError as error:
                refused = error
                continue
            operations = [drop_lock(record.id)] if standing.locked_by else []
            return standing.change(put_head(record.id, removing), *operations)
        raise explained(record.name, refused, self.name_of)

    def removal_cancelled(self, record: VolumeRecord) -> Change:
        """Return what lets the volume be acquired again: storage has kept it."""
        standing = self.heads.read(record.id)
        if standing.head is None or standing.head.phase != "removing":
            return NO_CHANGE
        return standing.change(put_head(record.id, rules.keep(standing.head)))

    def removal_done(self, record: VolumeRecord) -> Change:
        """Return what leaves nothing of the volume in the store but its tomb."""
        standing = self.heads.read(record.id)
        head = standing.head or self.initial_head(record)
        if self.membership.alone:
            if standing.head is None:
                return NO_CHANGE
            return standing.change(*bury(record.id, self.heads.lineage(record.id)))
        others = [each for each in head.members if each != self.node_id]
        tomb = Tomb(
            name=record.name,
            backend=record.backend,
            removed_at=clock.now_rfc3339(),
            pending=() if self.is_shared(record) else tuple(others),
        )
        return standing.change(
            *bury(record.id, self.heads.lineage(record.id)), put_tomb(record.id, tomb)
        )
