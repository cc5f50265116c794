"""
Coming to own a volume: raise the epoch, ask the members, choose, begin.

What a step needs is written before the next one, so that a crash between any two leaves
what the next acquisition understands. Each step is one of `rules.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from backends.errors import BackendError, RemoraError
from backends.registry import Registry
from backends.system import clock
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError, PeerRefusedError, StoreError
from plugin.logs import fields
from plugin.membership.membership import Membership
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.bytes_port import Alone, Replication
from plugin.ownership.heads import (
    Heads,
    Standing,
    begun_epoch,
    drop_lock,
    drop_old_epochs,
    put_epoch,
)
from plugin.ownership.local_view import OwnershipViews
from plugin.ownership.refusals import contended, elsewhere, explained
from plugin.ownership.replica_files import Replicas
from plugin.ownership.state import (
    EMPTY,
    Choice,
    Commit,
    Head,
    Lineage,
    RefusedError,
    Replica,
)
from plugin.ownership.votes import Votes, unheard

log = logging.getLogger(__name__)
# Somebody else's change comes in between; each time what is known is refreshed.
ATTEMPTS_MAX: Final = 4
_LOOK_AGAIN_S: Final = 0.1
REFRESH_DEADLINE_S: Final = 3.0


class Acquisition(OwnershipViews):
    """The acquiring part of `Ownership`."""

    def __init__(
        self,
        *,
        heads: Heads,
        replicas: Replicas,
        membership: Membership,
        registry: Registry,
        votes: Votes,
        mount_wait_s: float = 0.0,
    ) -> None:
        super().__init__(
            heads=heads, replicas=replicas, membership=membership, registry=registry
        )
        self._votes = votes
        self._mount_wait_s = mount_wait_s
        # What runs in a cluster only is set by who assembles it.
        self.replication: Replication = Alone()

    def acquire(self, record: VolumeRecord, deadline: Deadline) -> int:
        """
        Return the epoch in which this node owns the volume now.

        Raises:
            NotOwnerError: another node has it, or has newer bytes; nothing changed.
            StoreError: the cluster did not answer, or this node is no member now.
            BackendError: the copy cannot be used.

        """
        self.require_valid()
        epoch = self.owned_epoch(record)
        if epoch and self._regain(record, epoch):
            return epoch
        self._require_may_begin()
        self.require_possible(record)
        self._wait_free(record, deadline)
        self._require_free(record)
        if not self.is_shared(record):
            self.replication.ready(record, deadline)
        standing, orderly = self._take(record, deadline)
        head = _known(standing.head)
        try:
            return self._begin(record, standing, deadline, orderly=orderly)
        except BaseException as error:
            log.info("not acquired", extra=fields(volume=record.name, epoch=head.epoch))
            # A store that is away is not waited for twice; the reconciler gives it up.
            if not isinstance(error, StoreError):
                with suppress(RemoraError):
                    self.give_up(record)
            raise

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

    def _regain(self, record: VolumeRecord, epoch: int) -> bool:
        """
        Return whether *epoch*, which this boot has begun, is to go on.

        Nothing here has the volume mounted, and only the store knows whether the epoch
        still is: its release may have been done although nobody heard so. And the lock
        may hang on an earlier lease, with which it would go.
        """
        if self.membership.alone:
            return True
        if not self.resume(record, epoch):
            return False
        self.require_valid()
        self.note("regained", record, epoch)
        return True

    def _wait_free(self, record: VolumeRecord, deadline: Deadline) -> None:
        """
        Return when no other node has the volume, or when enough was waited.

        Schedulers start a container while its last node still lets the volume go, and
        that a node is dead is known when its lease has ended.
        """
        patience = Deadline(min(self._mount_wait_s, deadline.remaining_s() / 2))
        while not self._is_free(record) and not patience.passed():
            clock.pause(_LOOK_AGAIN_S)

    def _is_free(self, record: VolumeRecord) -> bool:
        if self.heads.read(record.id).locked_by not in ("", self.node_id):
            return False
        with suppress(NotOwnerError):
            self._require_free(record)
            return True
        return False

    def _take(self, record: VolumeRecord, deadline: Deadline) -> tuple[Standing, bool]:
        """Return how the volume stands, now recovered by us; and if it was idle."""
        for attempt in range(ATTEMPTS_MAX):
            standing = self.heads.read(record.id)
            head = standing.head or self.initial_head(record)
            try:
                self._require_copy(record, head)
                taken = rules.acquire(
                    head,
                    locked_by=standing.locked_by,
                    node=self.node_id,
                    boot_id=self.boot_id,
                )
                self._foresee(record, taken)
            except RefusedError as error:
                if attempt:
                    raise explained(record.name, error, self.name_of) from None
                # What is known may be old: the other may have let it go, or be dead.
                self.membership.end_forgotten(standing.lock_lease)
                self.heads.refresh(min(deadline.remaining_s(), REFRESH_DEADLINE_S))
                continue
            changed = self.heads.change(
                standing, taken, self.put_lock(record, taken.epoch)
            )
            if changed is not None:
                return changed, head.phase == "idle"
            self.heads.refresh(min(deadline.remaining_s(), REFRESH_DEADLINE_S))
        raise contended(record.name)

    def _begin(
        self,
        record: VolumeRecord,
        standing: Standing,
        deadline: Deadline,
        *,
        orderly: bool,
    ) -> int:
        """Let the members promise, choose, and begin the epoch in store and on disk."""
        head = _known(standing.head)
        lineage = self.heads.lineage(record.id)
        shared = self.is_shared(record)
        if shared:
            choice = Choice(head.committed, ())
        else:
            choice = self._choose(record, head, lineage, deadline, orderly=orderly)
        begun = rules.begin(head, choice)
        epoch = begun_epoch(head, choice, self.node_id)
        if (
            self.heads.change(
                standing,
                begun,
                put_epoch(record.id, head.epoch, epoch),
                *drop_old_epochs(record.id, lineage, begun),
            )
            is None
        ):
            raise explained(
                record.name, RefusedError("not-owner", epoch=head.epoch), self.name_of
            )
        if not shared:
            self._go_live(record, head.epoch, choice, lineage)
        self.require_valid()
        self.note(
            "owned",
            record,
            head.epoch,
            base=str(choice.base),
            lost=str(choice.lost) if choice.lost else "",
        )
        self.warn_of_quality(record, begun, lineage)
        return head.epoch

    def _choose(
        self,
        record: VolumeRecord,
        head: Head,
        lineage: Lineage,
        deadline: Deadline,
        *,
        orderly: bool,
    ) -> Choice:
        """Return what to begin with; this node has promised, and has it already."""
        try:
            votes, bare = self._votes.of_others(record, head, deadline, orderly=orderly)
            if self.replica_of(record) is not None:
                votes[self.node_id] = self._promise(record, head.epoch)
            elif self.node_id not in lineage.owners():
                votes[self.node_id] = EMPTY  # it has never had anything to lose
            choice = self.choose(record, head, lineage, votes)
            missing = unheard(head, lineage, votes, choice, orderly=orderly)
            if living := self._living(missing - bare):  # silent is not dead
                raise elsewhere(record.name, head.committed, self._names(living))
        except RefusedError as error:
            raise self._why_not(record, head, error) from None
        self.replicas.make(
            self.backend_of(record),
            record.volume(),
            promised=head.epoch,
            deadline_s=deadline.remaining_s(),
        )
        if votes.get(self.node_id) == choice.base:
            return choice
        self.replication.pull(record, head.epoch, choice, deadline)
        holders = tuple(sorted({*choice.holders, self.node_id}))
        return Choice(choice.base, holders, choice.lost)

    def _why_not(
        self, record: VolumeRecord, head: Head, error: RefusedError
    ) -> NotOwnerError:
        """Return the error for a commit that nobody offers; who lives may do later."""
        living = self._living(head.holders)
        # Who holds the volume as it was made has nothing that could be had.
        if living and error.reason != "stale-epoch" and head.committed != EMPTY:
            return elsewhere(record.name, head.committed, self._names(living))
        return explained(record.name, error, self.name_of)

    def _living(self, nodes: Iterable[str]) -> list[str]:
        """Return the others of *nodes* whose lease has not ended."""
        return self.membership.living(each for each in nodes if each != self.node_id)

    def _promise(self, record: VolumeRecord, epoch: int) -> Commit:
        """Let this node's copy promise *epoch*; return its commit."""
        with self.replicas.changing(record.id):
            promised = rules.promise(self._copy(record), epoch, writers_stopped=True)
            self.replicas.write(record.id, promised)
        return promised.commit

    def _go_live(
        self, record: VolumeRecord, epoch: int, choice: Choice, lineage: Lineage
    ) -> None:
        """Note durably that containers may write; the last step before they do."""
        grown = lineage.after(epoch, choice.base, self.node_id)
        with self.replicas.changing(record.id):
            try:
                kept = rules.go_live(
                    self._copy(record), epoch=epoch, base=choice.base, lineage=grown
                )
            except RefusedError as error:
                raise explained(record.name, error, self.name_of) from None
            self.replicas.write(record.id, kept.replica)

    def _require_copy(self, record: VolumeRecord, head: Head) -> None:
        """
        See before anything changes that this node has the bytes that it should have.

        Raises:
            BackendError: it should have the newest ones, perhaps alone, and has none.

        """
        if self.is_shared(record) or self.replica_of(record) is not None:
            return
        if head.holders == (self.node_id,) and head.committed != EMPTY:
            raise BackendError(
                f"the data of volume '{record.name}' is missing on this node",
                hint="restore its directory in the pool, or remove the volume",
            )

    def _foresee(self, record: VolumeRecord, taken: Head) -> None:
        """
        See that this node could begin alone, if nobody else could have a vote.

        Raising the epoch ends the writers of an owner that is only cut off: not for
        nothing.

        Raises:
            RefusedError: as `rules.choose`.

        """
        others = {*taken.members, *taken.holders} - {self.node_id}
        nodes = self.membership.directory.nodes()
        if self.is_shared(record) or any(
            each.alive and each.record.id in others for each in nodes
        ):
            return
        replica = self.replica_of(record)
        own = EMPTY if replica is None else rules.seal(replica).commit
        lineage = self.heads.lineage(record.id)
        self.choose(record, taken, lineage, {self.node_id: own})

    def give_up(self, record: VolumeRecord) -> None:
        """Let a volume go that was acquired and not begun, perhaps before a crash."""
        standing = self.heads.read(record.id)
        if standing.head is None or standing.locked_by not in ("", self.node_id):
            return
        try:
            idle = rules.abandon(
                standing.head, node=self.node_id, epoch=standing.head.epoch
            )
        except RefusedError:
            return
        operations = [drop_lock(record.id)] if standing.locked_by else []
        self.heads.change(standing, idle, *operations)

    def _require_free(self, record: VolumeRecord) -> None:
        """Raise NotOwnerError while an owner goes on because we said that we wait."""
        standing = self.heads.read(record.id)
        head = standing.head
        if head is None or head.phase == "idle" or head.owner == self.node_id:
            return
        if self.is_shared(record):
            return  # no member is asked to wait
        if standing.locked_by:
            return  # the rules say no
        try:
            self.replication.require_free(record)
        except PeerRefusedError as error:
            raise NotOwnerError(
                f"'{record.name}' may still be written to: {error.cause}",
                hint="retry",
                transient=True,
            ) from None

    def _require_may_begin(self) -> None:
        if self.membership.drained:
            raise NotOwnerError(
                "this node is drained and takes no volumes",
                hint="run the container elsewhere, or: remora node undrain "
                f"{self.membership.own.name}",
            )

    def _copy(self, record: VolumeRecord) -> Replica:
        """Return the copy, which is there."""
        replica = self.replica_of(record)
        if replica is None:
            raise BackendError(f"the copy of '{record.name}' has gone")
        return replica

    def _names(self, node_ids: Iterable[str]) -> list[str]:
        return [self.name_of(each) for each in node_ids]


def _known(head: Head | None) -> Head:
    """Return the head, which has just been written."""
    if head is None:
        raise NotOwnerError("the volume was removed meanwhile")
    return head
