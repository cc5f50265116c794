"""
Owning volumes: the rules of `rules.py`, driven against the store, peers and disks.

To mount an exclusive volume a node *acquires* it: it raises the epoch and takes the
lock by compare-and-set, lets every member promise that epoch, chooses the best commit
that they have, and begins. At the last unmount it *releases*: it seals the bytes as a
commit and gives the lock back.

A node that is alone does the same with its embedded store; nobody contends.
"""

from __future__ import annotations

from backends.system import clock, files
from backends.system.clock import Deadline
from plugin.cluster import rules
from plugin.cluster.acquisition import (
    ATTEMPTS_MAX,
    REFRESH_DEADLINE_S,
    Acquisition,
)
from plugin.cluster.heads import Tomb, bury, drop_lock
from plugin.cluster.refusals import contended, explained
from plugin.cluster.rules import Commit, Head, RefusedError
from plugin.errors import StoreError
from plugin.model import VolumeRecord


class Ownership(Acquisition):
    """What this node does with the volumes that it owns; see the module's text."""

    def resume(self, record: VolumeRecord, epoch: int) -> bool:
        """
        Return whether the volume is still ours, taking its lock again if it is free.

        Raises:
            StoreError: the cluster did not answer.

        """
        standing = self.heads.read(record.id)
        head = standing.head or Head()
        try:
            resumed = rules.resume(
                head,
                locked_by=standing.locked_by,
                node=self.node_id,
                boot_id=self.boot_id,
                epoch=epoch,
            )
        except RefusedError:
            return False
        changed = self.heads.change(standing, resumed, self.put_lock(record, epoch))
        return changed is not None  # what was known was old; the next round knows more

    def release(self, record: VolumeRecord) -> None:
        """
        Seal what this node's containers have written, and let the volume go.

        Without an answer of the cluster the bytes are sealed all the same, and the
        volume is let go by `release` again, later.

        Raises:
            StoreError: the cluster did not answer; BackendError: the disk did not.

        """
        commit = self._seal(record)
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
                holders=(self.node_id,) if commit else (),
            )
        except RefusedError:
            return
        operations = (
            [] if standing.locked_by != self.node_id else [drop_lock(record.id)]
        )
        if self.heads.change(standing, released, *operations) is None:
            raise StoreError(f"'{record.name}' was changed by another node")
        self.note("released", record, head.epoch, commit=str(released.committed))

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

    def _flush(self, record: VolumeRecord) -> None:
        """What a commit names must be what the disk has after a power failure."""
        directory = self.backend_of(record).copy_directory(record.volume())
        if directory is not None:
            files.sync_filesystem(directory)

    def begin_removal(self, record: VolumeRecord, deadline: Deadline) -> None:
        """
        Keep every node from acquiring the volume, which is to be removed.

        Raises:
            NotOwnerError: another node has it mounted; nothing changed.

        """
        for attempt in range(ATTEMPTS_MAX):
            standing = self.heads.read(record.id)
            if self.membership.alone and standing.head is None:
                return  # nobody else could acquire it
            head = standing.head or self.initial_head(record)
            # Our own lock without a mount is what a crash has left.
            other = standing.locked_by if standing.locked_by != self.node_id else ""
            try:
                removing = rules.remove(head, locked_by=other)
            except RefusedError as error:
                if attempt:
                    raise explained(record.name, error, self.name_of) from None
                self.heads.refresh(min(deadline.remaining_s(), REFRESH_DEADLINE_S))
                continue
            operations = [drop_lock(record.id)] if standing.locked_by else []
            if self.heads.change(standing, removing, *operations) is not None:
                return
            self.heads.refresh(min(deadline.remaining_s(), REFRESH_DEADLINE_S))
        raise contended(record.name)

    def cancel_removal(self, record: VolumeRecord) -> None:
        """Let the volume be acquired again: storage has refused to remove it."""
        standing = self.heads.read(record.id)
        if standing.head is not None and standing.head.phase == "removing":
            self.heads.change(standing, rules.keep(standing.head))

    def finish_removal(self, record: VolumeRecord) -> None:
        """Leave nothing of the volume in the store but its tomb."""
        standing = self.heads.read(record.id)
        if self.membership.alone and standing.head is None:
            return
        head = standing.head or self.initial_head(record)
        pending = tuple(
            each
            for each in head.members
            if each != self.node_id and not self.is_shared(record)
        )
        tomb = Tomb(
            name=record.name,
            backend=record.backend,
            removed_at=clock.now_rfc3339(),
            pending=pending,
        )
        self.heads.transact(
            standing,
            bury(
                record.id,
                None if self.membership.alone else tomb,
                self.heads.lineage(record.id),
            ),
        )
