"""
What the store keeps of who owns a volume; every change is a compare-and-set.

    v/<id>/head          Head: epoch, owner, the newest commit that is kept
    v/<id>/lock          Lock, on the owner's lease: it goes when the owner is gone
    v/<id>/epochs/<n>    Epoch: what the newest epoch, and those before, began with
    v/<id>/conflicts/…   QuarantineRecord; see `quarantine_records.py`
    v/<id>/snapshots/…   the snapshots on a node; see `snapshot_records.py`
    tomb/<id>            Tomb: the volume was removed; its copies are to go

A volume without a head was never owned; `OwnershipView.initial_head` makes its first.
Older versions wrote a record for each epoch, and read no other: beside them they see
less of the lineage, and set a copy apart of which they cannot tell where it came from.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

from backends.base import VOLUME_ID, WholeNumber
from backends.system import clock
from backends.system.decoding import from_json
from plugin.errors import StoreError
from plugin.membership.nodes import node_ids
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.membership.snapshot_records import SnapshotRecords
from plugin.model import NodeId
from plugin.ownership.state import (
    EMPTY,
    WRITTEN_HERE,
    Choice,
    EarlierEpoch,
    Epoch,
    Head,
    Lineage,
    Tomb,
)
from plugin.store.base import (
    Change,
    Compare,
    Delete,
    Operation,
    Put,
    Record,
    Store,
)
from plugin.store.values import Values, readable, value_of

_VOLUMES: Final = "v/"
_TOMBS: Final = "tomb/"
# Epochs that are kept. A copy that is older than all of them counts as diverged, so it
# is set apart and never overwritten; no node stays away for so many owners.
EPOCHS_MAX: Final = 64
# Older versions have left a record for each epoch, of shared volumes one for all that
# there were; a transaction of etcd has at most 128 operations.
_DROPPED_MAX: Final = 100
_ACKNOWLEDGED_MAX: Final = 50
_NOBODY: Final = '"pending":[]'
# Nobody is refused because of old knowledge: it is refreshed first, for so long.
REFRESH_DEADLINE_S: Final = 3.0


class Lock(msgspec.Struct, frozen=True):
    """Who holds the volume, and in which epoch."""

    KEY: ClassVar[re.Pattern[str]] = re.compile(rf"v/{VOLUME_ID.pattern}/lock")
    node: NodeId
    epoch: WholeNumber


@dataclass(frozen=True, slots=True)
class VolumeState:
    """Head and lock of a volume as they were read, with their revisions."""

    volume_id: str
    head: Head | None
    head_revision: int
    lock: Lock | None
    lock_revision: int
    lock_lease: int

    @property
    def locked_by(self) -> str:
        """The node that holds the lock, "" if nobody does."""
        return self.lock.node if self.lock else ""

    def unchanged(self) -> list[Compare]:
        """Return the condition that nothing of it has changed since."""
        return [
            Compare(f"{_VOLUMES}{self.volume_id}/head", self.head_revision),
            Compare(f"{_VOLUMES}{self.volume_id}/lock", self.lock_revision),
        ]

    def change(self, *operations: Operation) -> Change:
        """Return *operations*, to be done while nothing of it has changed."""
        return Change(tuple(self.unchanged()), operations)


class Heads:
    """The heads, locks and epochs of all volumes, read from local knowledge."""

    def __init__(self, store: Store, quarantine_records: QuarantineRecords) -> None:
        self._store = store
        self.quarantine_records = quarantine_records
        self._heads = Values(store, Head, prefix=_VOLUMES, suffix="/head")
        self._tombs = Values(store, Tomb, prefix=_TOMBS)

    def read(self, volume_id: str) -> VolumeState:
        """
        Return the volume state of *volume_id*.

        Raises:
            StoreError: it cannot be read.

        """
        head = self._store.get(f"{_VOLUMES}{volume_id}/head")
        lock = self._store.get(f"{_VOLUMES}{volume_id}/lock")
        return VolumeState(
            volume_id,
            value_of(head, Head) if head else None,
            head.mod_revision if head else 0,
            value_of(lock, Lock) if lock else None,
            lock.mod_revision if lock else 0,
            lock.lease if lock else 0,
        )

    def lock(self, volume_id: str) -> tuple[Lock | None, int]:
        """
        Return the lock, None if nobody has it, and the lease that it is on.

        It tells who has the volume though the head cannot be read.

        Raises:
            StoreError: it cannot be read itself.

        """
        record = self._store.get(f"{_VOLUMES}{volume_id}/lock")
        return (value_of(record, Lock), record.lease) if record else (None, 0)

    def head(self, volume_id: str) -> Head | None:
        """
        Return the head, None if there is none that can be read.

        It is for those who look at many volumes, and leave one alone that has none.
        """
        return readable(self._store.get(f"{_VOLUMES}{volume_id}/head"), Head)

    def has(self, volume_id: str) -> bool:
        """Return whether there is a head, even one that cannot be read."""
        return self._store.get(f"{_VOLUMES}{volume_id}/head") is not None

    def refresh(self, deadline_s: float) -> None:
        """Return when what is read is as new as this call; see `Store.refresh`."""
        self._store.refresh(deadline_s)

    def naming(self, node: str) -> Mapping[str, Head]:
        """Return the heads in which *node* has a part, by volume's id."""
        return self._heads.read(naming=node).values

    def owned_by(self, node: str) -> set[str]:
        """Return the ids of volumes that *node* owns or recovers, by their heads."""
        return {
            volume_id
            for volume_id, head in self.naming(node).items()
            if head.owner == node and head.phase in ("recovering", "owned")
        }

    def held_only_by(self, node: str) -> dict[str, list[str]]:
        """
        Return the ids of volumes of which *node* alone may have bytes, by which ones.

        The keys are for people: how much of a volume that is. What a head says that
        cannot be read, nobody knows: it counts as all.
        """
        others = {*node_ids(self._store)} - {node}
        heads = self._heads.read()
        found: dict[str, list[str]] = {"all of": [*heads.unreadable]}
        found["the newest bytes of"], found["perhaps the last seconds of"] = [], []
        for volume_id, head in heads.values.items():
            last = node in head.holders and not others.intersection(head.holders)
            wrote = head.owner == node and head.phase == "owned"
            if not (last or wrote) or head.phase == "removing":
                continue
            if head.committed == EMPTY or not others.intersection(head.members):
                found["all of"].append(volume_id)
            elif not others.intersection(head.holders):
                found["the newest bytes of"].append(volume_id)
            else:
                found["perhaps the last seconds of"].append(volume_id)
        apart = [each for each in self.quarantine_records.all() if each.node_id == node]
        found["bytes set apart of"] = list({each.volume_id: "" for each in apart})
        found["snapshots of"] = SnapshotRecords(self._store).volumes_on(node)
        return {part: ids for part, ids in found.items() if ids}

    def lineage(self, volume_id: str) -> Lineage:
        """
        Return the epochs that owners of *volume_id* have begun.

        Raises:
            StoreError: one cannot be read; without it, an owner could be overlooked.

        """
        begun = {
            _number(key): value_of(record, Epoch)
            for key, record in self._epochs(volume_id).items()
        }
        earlier = {
            each.number: Epoch(*msgspec.structs.astuple(each)[1:])
            for _, epoch in sorted(begun.items())
            for each in epoch.earlier
        }
        return Lineage({**earlier, **begun})

    def drop_epochs(self, volume_id: str) -> list[Delete]:
        """Return the removals of the oldest records of epochs, 100 at most."""
        return [Delete(key) for key in self._oldest_epochs(volume_id)[:_DROPPED_MAX]]

    def shorten_epochs(self, volume_id: str) -> None:
        """Remove all records of epochs but what `drop_epochs` takes."""
        surplus = self._oldest_epochs(volume_id)[:-_DROPPED_MAX]
        for begin in range(0, len(surplus), _DROPPED_MAX):
            batch = surplus[begin : begin + _DROPPED_MAX]
            self._store.transact([], [Delete(key) for key in batch])

    def _oldest_epochs(self, volume_id: str) -> list[str]:
        return sorted(self._epochs(volume_id), key=_number)

    def _epochs(self, volume_id: str) -> dict[str, Record]:
        found = self._store.prefix(f"{_VOLUMES}{volume_id}/epochs/")[0]
        return {each.key: each for each in found}

    def change(
        self, state: VolumeState, head: Head, *operations: Operation
    ) -> VolumeState | None:
        """
        Write *head* and *operations*; None if *state* was not true any more.

        It returns what it wrote, even if others have changed that since: the caller
        finds that out at its next change.
        """
        volume_id = state.volume_id
        outcome = self._store.transact(
            state.unchanged(), [put_head(volume_id, head), *operations]
        )
        if not outcome.succeeded:
            return None
        written = dataclasses.replace(state, head=head, head_revision=outcome.revision)
        for each in operations:
            if each.key == drop_lock(volume_id).key:
                written = _with_lock(written, each, outcome.revision)
        return written

    def change_together(self, changes: Sequence[Change]) -> bool:
        """Do all *changes*, or none if one is not possible; return which it was."""
        return self._store.transact(
            [condition for each in changes for condition in each.conditions],
            [operation for each in changes for operation in each.operations],
        ).succeeded

    def tombs(self) -> Mapping[str, Tomb]:
        """Return the removed volumes, by id."""
        return self._tombs.read().values

    def tombs_for(self, node: str, copies: Iterable[str]) -> dict[str, Tomb]:
        """Return the tombs that wait for *node* or for nobody, or are of *copies*."""
        found = dict(self._tombs.read(naming=node).values)
        found |= self._tombs.read(naming=_NOBODY).values
        for each in copies:
            tomb = readable(self._store.get(_TOMBS + each), Tomb)
            if tomb is not None:
                found[each] = tomb
        return found

    def is_removed(self, volume_id: str) -> bool:
        """Return whether *volume_id* has a tomb."""
        return self._store.get(_TOMBS + volume_id) is not None

    def acknowledge(self, volume_ids: Iterable[str], node: str) -> None:
        """
        Note in the volumes' tombs that *node* has no copies any more.

        A tomb ends when all nodes of its time have; and not while bytes of the volume
        are set apart, which people find by its name.
        """
        conditions: list[Compare] = []
        operations: list[Operation] = []
        all_nodes = node_ids(self._store)
        for volume_id in volume_ids:
            record = self._store.get(_TOMBS + volume_id)
            tomb = readable(record, Tomb)
            if record is None or tomb is None:
                continue
            rest = {*tomb.pending} if tomb.all_nodes else {*tomb.pending, *all_nodes}
            rest.discard(node)
            left = msgspec.structs.replace(
                tomb, pending=tuple(sorted(rest)), all_nodes=True
            )
            if not rest and not self.quarantine_records.of(volume_id):
                operations.append(Delete(record.key))
            elif left != tomb:
                operations.append(_put(record.key, left))
            else:
                continue
            conditions.append(Compare(record.key, record.mod_revision))
            if len(operations) == _ACKNOWLEDGED_MAX:
                break
        if operations:
            self._store.transact(conditions, operations)


def _number(key: str) -> int:
    digits = key.rpartition("/")[2]
    if not digits.isdecimal():
        raise StoreError(f"record {key} is no epoch's", hint="remove it with etcdctl")
    return int(digits)


def _with_lock(state: VolumeState, operation: Operation, revision: int) -> VolumeState:
    """Return *state* after *operation* on its lock."""
    if isinstance(operation, Delete):
        return dataclasses.replace(state, lock=None, lock_revision=0, lock_lease=0)
    return dataclasses.replace(
        state,
        lock=from_json(operation.value, Lock),
        lock_revision=revision,
        lock_lease=operation.lease,
    )


def put_head(volume_id: str, head: Head) -> Put:
    """Return the write of a volume's head."""
    return _put(f"{_VOLUMES}{volume_id}/head", head)


def put_lock(volume_id: str, lock: Lock, *, lease: int) -> Put:
    """Return the write of the lock, which goes with *lease*."""
    return Put(f"{_VOLUMES}{volume_id}/lock", msgspec.json.encode(lock), lease)


def drop_lock(volume_id: str) -> Delete:
    """Return the removal of the lock."""
    return Delete(f"{_VOLUMES}{volume_id}/lock")


def put_epoch(volume_id: str, number: int, epoch: Epoch) -> Put:
    """Return the write of an epoch that begins."""
    return _put(f"{_VOLUMES}{volume_id}/epochs/{number:010}", epoch)


def begun_epoch(head: Head, choice: Choice, owner: str, lineage: Lineage) -> Epoch:
    """
    Return the record of the epoch that *owner*, recovering *head*, begins now.

    It has in it what of *lineage* is kept.
    """
    numbers = sorted(lineage.epochs)
    moment = head.moment if choice.base == head.committed else ""
    made = lineage.epochs.get(choice.base.epoch)
    if made is not None and made.owner == owner:
        moment = moment or WRITTEN_HERE
    kept = {*numbers[1 - EPOCHS_MAX :]}
    if choice.base == EMPTY:
        # Each former owner still has to say that it wrote nothing.
        kept.update({lineage.epochs[each].owner: each for each in numbers}.values())
    return Epoch(
        choice.base,
        owner,
        began_at=clock.now_rfc3339(),
        lost=choice.lost,
        before_released_at=head.released_at,
        earlier=tuple(
            EarlierEpoch(each, *msgspec.structs.astuple(lineage.epochs[each])[:-2])
            for each in sorted(kept)
        ),
        moment=moment,
    )


def put_tomb(volume_id: str, tomb: Tomb) -> Put:
    """Return the write of a removed volume's tomb."""
    return _put(_TOMBS + volume_id, tomb)


def drop_head(volume_id: str) -> Delete:
    """Return the removal of a volume's head."""
    return Delete(f"{_VOLUMES}{volume_id}/head")


def _put(key: str, value: msgspec.Struct) -> Put:
    return Put(key, msgspec.json.encode(value))
