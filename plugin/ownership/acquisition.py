"""
Coming to own a volume: raise the epoch, ask the members, choose, begin.

Each step is written down before the next one begins, so that the next acquisition
understands what a crash between any two has left. The steps are rules of `rules.py`.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from backends.errors import BackendError, RemoraError
from backends.system import clock
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError, PeerRefusedError, StoreError
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.ownership import rules
from plugin.ownership.ballot import Ballot
from plugin.ownership.bytes_port import Replication
from plugin.ownership.heads import (
    REFRESH_DEADLINE_S,
    VolumeState,
    begun_epoch,
    put_epoch,
)
from plugin.ownership.older_records import mend
from plugin.ownership.refusals import contended, explained, in_use
from plugin.ownership.release import give_up
from plugin.ownership.resuming import resume
from plugin.ownership.sealing import has_gone_back
from plugin.ownership.state import (
    EMPTY,
    Choice,
    CopyState,
    Head,
    Lineage,
    RefusedError,
)
from plugin.ownership.view import OwnershipView
from plugin.ownership.votes import Votes, was_released

log = logging.getLogger(__name__)
# Another node may change the state in between; it is then read anew.
_ATTEMPTS_MAX: Final = 4
_LOOK_AGAIN_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Acquisition:
    """Makes this node the owner of volumes."""

    ownership: OwnershipView
    votes: Votes
    replication: Replication
    mount_wait_s: float = 0.0

    def acquire(self, record: VolumeRecord, deadline: Deadline) -> int:
        """
        Return the epoch in which this node owns the volume now.

        Raises:
            NotOwnerError: another node has it, or has newer bytes; nothing changed.
            StoreError: the cluster did not answer, or this node is no member now.
            BackendError: the copy cannot be used.

        """
        self._wait_valid(deadline)
        mend(self.ownership, record)
        if epoch := self._regained(record, deadline):
            return epoch
        self._require_may_begin()
        self.ownership.require_possible(record)
        self._wait_free(record, deadline)
        self._require_free(record)
        if not self.ownership.is_shared(record):
            self.replication.ready(record, deadline)
        state, orderly = self._raise_epoch(record, deadline)
        head = _known(state.head)
        try:
            return self._begin(record, state, deadline, orderly=orderly)
        except BaseException as error:
            log.info("not acquired", extra=fields(volume=record.name, epoch=head.epoch))
            # A store that is away is not waited for twice; the reconciler gives it up.
            if not isinstance(error, StoreError):
                with suppress(RemoraError):
                    give_up(self.ownership, record)
            raise

    def _regained(self, record: VolumeRecord, deadline: Deadline) -> int:
        """
        Return the epoch that this boot has begun, if it goes on, with its lock; else 0.

        Only the store knows whether it is released: the answer to a release may have
        been lost. The lock may have gone with a lease, or is about to; containers may
        run in that epoch, and a new one would end them.
        """
        for _ in range(_ATTEMPTS_MAX):
            epoch = self.ownership.owned_epoch(record)
            if not epoch or self.ownership.membership.alone:
                return epoch
            if resume(self.ownership, record, epoch):
                self.ownership.require_valid()
                self.ownership.note("regained", record, epoch)
                return epoch
            self.ownership.heads.refresh(
                min(deadline.remaining_s(), REFRESH_DEADLINE_S)
            )
        raise contended(record.name)

    def _wait_valid(self, deadline: Deadline) -> None:
        """
        Return when this node may own volumes; raise StoreError if it may not soon.

        After a quick reboot it is no member until the lease of its last boot has ended,
        and the engine starts its containers once.
        """
        patience = self._patience(deadline)
        while self.ownership.membership.is_coming and not patience.passed():
            clock.pause(_LOOK_AGAIN_S)
        self.ownership.require_valid()

    def _patience(self, deadline: Deadline) -> Deadline:
        return Deadline(min(self.mount_wait_s, deadline.remaining_s() / 2))

    def _wait_free(self, record: VolumeRecord, deadline: Deadline) -> None:
        """
        Return when no other node has the volume, or when the wait is over.

        Schedulers start a container while its last node still lets the volume go; and
        nobody knows that a node is dead before its lease has ended.
        """
        patience = self._patience(deadline)
        while not self._is_free(record) and not patience.passed():
            clock.pause(_LOOK_AGAIN_S)

    def _is_free(self, record: VolumeRecord) -> bool:
        if self.ownership.heads.read(record.id).locked_by not in (
            "",
            self.ownership.node_id,
        ):
            return False
        with suppress(NotOwnerError):
            self._require_free(record)
            return True
        return False

    def _raise_epoch(
        self, record: VolumeRecord, deadline: Deadline
    ) -> tuple[VolumeState, bool]:
        """Return the volume state, recovered by us now; and if it was released."""
        for attempt in range(_ATTEMPTS_MAX):
            state = self.ownership.heads.read(record.id)
            head = state.head or self.ownership.initial_head(record)
            try:
                copy = self._require_copy(record, head)
                raised = rules.acquire(
                    head,
                    locked_by=state.locked_by,
                    node=self.ownership.node_id,
                    boot_id=self.ownership.boot_id,
                    promised=copy.promised if copy else 0,
                )
                self._foresee(record, raised, copy)
            except RefusedError as error:
                if attempt:
                    raise explained(
                        record.name, error, self.ownership.name_of
                    ) from None
                # We may know an old state: its owner may have released it, or be dead.
                self.ownership.membership.end_forgotten(state.lock_lease)
                self.ownership.heads.refresh(
                    min(deadline.remaining_s(), REFRESH_DEADLINE_S)
                )
                continue
            changed = self.ownership.heads.change(
                state, raised, self.ownership.put_lock(record, raised.epoch)
            )
            if changed is not None:
                return changed, was_released(head)
            self.ownership.heads.refresh(
                min(deadline.remaining_s(), REFRESH_DEADLINE_S)
            )
        raise contended(record.name)

    def _begin(
        self,
        record: VolumeRecord,
        state: VolumeState,
        deadline: Deadline,
        *,
        orderly: bool,
    ) -> int:
        """Let the members promise, choose, and begin the epoch in store and on disk."""
        head = _known(state.head)
        lineage = self.ownership.heads.lineage(record.id)
        shared = self.ownership.is_shared(record)
        if shared:
            choice = Choice(head.committed, ())
        else:
            choice = self._choose(record, head, lineage, deadline, orderly=orderly)
        begun = rules.begin(head, choice)
        epoch = begun_epoch(head, choice, self.ownership.node_id, lineage)
        if (
            self.ownership.heads.change(
                state,
                begun,
                put_epoch(record.id, head.epoch, epoch),
                *self.ownership.heads.drop_epochs(record.id),
            )
            is None
        ):
            raise explained(
                record.name,
                RefusedError("not-owner", epoch=head.epoch),
                self.ownership.name_of,
            )
        if not shared:
            self._go_live(record, head.epoch, choice, lineage)
        self.ownership.require_valid()
        self.ownership.note(
            "owned",
            record,
            head.epoch,
            base=str(choice.base),
            lost=str(choice.lost) if choice.lost else "",
        )
        self.ownership.warn_of_quality(record, begun, lineage)
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
        """Return what to begin with; by then this node has promised, and has it."""
        ballot = Ballot(self.ownership, self.votes, record, head, lineage, orderly)
        choice = ballot.choose(deadline)
        self.ownership.copy_states.make(
            self.ownership.backend_of(record),
            record.volume(),
            promised=head.epoch,
            deadline_s=deadline.remaining_s(),
        )
        at = self._copy(record).commit
        if at != choice.base:
            self.replication.pull(record, head.epoch, choice, deadline)
        # A commit that was marked, now or before the promise, may not be in place yet.
        self.replication.ready(record, deadline)
        if at == choice.base:
            return choice
        ballot.require_nobody_back(choice, deadline)
        holders = tuple(sorted({*choice.holders, self.ownership.node_id}))
        return Choice(choice.base, holders, choice.lost)

    def _go_live(
        self, record: VolumeRecord, epoch: int, choice: Choice, lineage: Lineage
    ) -> None:
        """Note durably that containers may write; the last step before they do."""
        grown = lineage.after(epoch, choice.base, self.ownership.node_id)
        with self.ownership.copy_states.changing(record.id):
            try:
                kept = rules.go_live(
                    self._copy(record), epoch=epoch, base=choice.base, lineage=grown
                )
            except RefusedError as error:
                raise explained(record.name, error, self.ownership.name_of) from None
            self.ownership.copy_states.write(record.id, kept.copy)

    def _require_copy(self, record: VolumeRecord, head: Head) -> CopyState | None:
        """
        Return this node's copy; None if it has none, and needs none.

        Raises:
            BackendError: no other node has the newest commit, and the copy is missing.

        """
        copy = self.ownership.copy_state(record)
        alone = head.holders == (self.ownership.node_id,) and head.committed != EMPTY
        if copy is None and alone and not self.ownership.is_shared(record):
            raise BackendError(
                f"the data of volume '{record.name}' is missing on this node",
                hint="restore its directory in the pool, or remove the volume",
            )
        return copy

    def _foresee(
        self, record: VolumeRecord, raised: Head, copy: CopyState | None
    ) -> None:
        """
        Check that our copy can vote, and would do alone if no other node can vote.

        Raising the epoch ends the writers of an owner that is only cut off. That must
        not happen in vain.

        Raises:
            RefusedError: as `rules.promise` and `rules.choose`.

        """
        if self.ownership.is_shared(record):
            return
        others = {*raised.members, *raised.holders} - {self.ownership.node_id}
        nodes = self.ownership.nodes.all()
        lineage = self.ownership.heads.lineage(record.id)
        own = EMPTY
        if copy is not None:
            own = rules.promise(
                *(copy, raised.epoch, lineage),
                writers_stopped=True,
                gone_back=has_gone_back(self.ownership.heads, record.id, copy),
            ).commit
        if any(each.alive and each.record.id in others for each in nodes):
            return
        self.ownership.choose(record, raised, lineage, {self.ownership.node_id: own})

    def _require_free(self, record: VolumeRecord) -> None:
        """Raise NotOwnerError while an owner relies on our word not to promise."""
        state = self.ownership.heads.read(record.id)
        head = state.head
        if head is None or was_released(head) or head.owner == self.ownership.node_id:
            return
        if self.ownership.is_shared(record):
            return  # no member is asked to wait
        if state.locked_by:
            return  # the rules say no
        try:
            self.replication.require_free(record)
        except PeerRefusedError as error:
            raise in_use(record.name, error) from None

    def _require_may_begin(self) -> None:
        if self.ownership.membership.drained:
            raise NotOwnerError(
                "this node is drained and takes no volumes",
                hint="run the container elsewhere, or: remora node undrain "
                f"{self.ownership.own.name}",
            )

    def _copy(self, record: VolumeRecord) -> CopyState:
        """Return the copy, which is there."""
        copy = self.ownership.copy_state(record)
        if copy is None:
            raise BackendError(f"the copy of '{record.name}' has gone")
        return copy


def _known(head: Head | None) -> Head:
    """Return *head*, which cannot be None: it has just been written."""
    if head is None:
        raise NotOwnerError("the volume was removed meanwhile")
    return head
