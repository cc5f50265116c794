"""
What the store keeps of who owns a volume; every change is a compare-and-set.

    v/<id>/head          Head: epoch, owner, the newest commit that is kept
    v/<id>/lock          Lock, on the owner's lease: it goes when the owner is gone
    v/<id>/epochs/<n>    Epoch: what each epoch began with; never changed
    v/<id>/conflicts/…   QuarantineRecord; see `quarantine_records.py`
    v/<id>/snapshots/…   the snapshots on a node; see `snapshot_records.py`
    tomb/<id>            Tomb: the volume was removed; its copies are to go

A volume without a head was never owned; `OwnershipView.initial_head` makes its first.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from backends.system import clock
from backends.system.decoding import from_json
from plugin.errors import StoreError
from plugin.membership.nodes import NODES
from plugin.membership.quarantine_records import QuarantineRecords
from plugin.membership.snapshot_records import SnapshotRecords
from plugin.ownership.state import EMPTY, Choice, Epoch, Head, Lineage
from plugin.store.base import (
    Change,
    Compare,
    Delete,
    Operation,
    Put,
    Record,
    Store,
)

_VOLUMES: Final = "v/"
_TOMBS: Final = "tomb/"
# Epochs that are kept. A copy that is older than all of them counts as diverged, so it
# is set apart and never overwritten; no node stays away for so many owners.
# A removal deletes all of them in one transaction, of at most 128 operations.
EPOCHS_MAX: Final = 64
# Nobody is refused because of old knowledge: it is refreshed first, for so long.
REFRESH_DEADLINE_S: Final = 3.0
Kind = TypeVar("Kind", bound=msgspec.Struct)


class Lock(msgspec.Struct, frozen=True):
    """Who holds the volume, and in which epoch."""

    node: str
    epoch: int


class Tomb(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that was removed; *pending* are the nodes that may have a copy."""

    name: str
    backend: str
    removed_at: str
    pending: tuple[str, ...]


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
        self._quarantine_records = quarantine_records

    def read(self, volume_id: str) -> VolumeState:
        """Return the volume state of *volume_id*."""
        head = self._store.get(f"{_VOLUMES}{volume_id}/head")
        lock = self._store.get(f"{_VOLUMES}{volume_id}/lock")
        return VolumeState(
            volume_id,
            _decode(Head, head) if head else None,
            head.mod_revision if head else 0,
            _decode(Lock, lock) if lock else None,
            lock.mod_revision if lock else 0,
            lock.lease if lock else 0,
        )

    def refresh(self, deadline_s: float) -> None:
        """Return when what is read is as new as this call; see `Store.refresh`."""
        self._store.refresh(deadline_s)

    def owned_by(self, node: str) -> list[str]:
        """Return the ids of volumes that *node* owns or recovers, by their heads."""
        records, _ = self._store.prefix(_VOLUMES)
        found = []
        for record in records:
            volume_id, _, rest = record.key.removeprefix(_VOLUMES).partition("/")
            if rest != "head":
                continue
            head = _decode(Head, record)
            if head.owner == node and head.phase in ("recovering", "owned"):
                found.append(volume_id)
        return found

    def held_only_by(self, node: str) -> dict[str, list[str]]:
        """
        Return the ids of volumes of which *node* alone may have bytes, by which ones.

        The keys are for people: how much of a volume that is.
        """
        records, _ = self._store.prefix(_VOLUMES)
        nodes, _ = self._store.prefix(NODES)
        others = {each.key.removeprefix(NODES) for each in nodes} - {node}
        found: dict[str, list[str]] = {"all of": [], "the newest bytes of": []}
        found["perhaps the last seconds of"] = []
        for record in records:
            volume_id, _, rest = record.key.removeprefix(_VOLUMES).partition("/")
            if rest != "head":
                continue
            head = _decode(Head, record)
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
        apart = [
            each for each in self._quarantine_records.all() if each.node_id == node
        ]
        found["bytes set apart of"] = list({each.volume_id: "" for each in apart})
        found["snapshots of"] = SnapshotRecords(self._store).volumes_on(node)
        return {part: ids for part, ids in found.items() if ids}

    def lineage(self, volume_id: str) -> Lineage:
        """Return the epochs that owners of *volume_id* have begun."""
        prefix = f"{_VOLUMES}{volume_id}/epochs/"
        records, _ = self._store.prefix(prefix)
        return Lineage(
            {
                int(each.key.removeprefix(prefix)): _decode(Epoch, each)
                for each in records
            }
        )

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

    def tombs(self) -> dict[str, Tomb]:
        """Return the removed volumes, by id."""
        records, _ = self._store.prefix(_TOMBS)
        return {each.key.removeprefix(_TOMBS): _decode(Tomb, each) for each in records}

    def is_removed(self, volume_id: str) -> bool:
        """Return whether *volume_id* has a tomb."""
        return self._store.get(_TOMBS + volume_id) is not None

    def acknowledge(self, volume_id: str, node: str) -> None:
        """Note in the tomb that *node* has no copy any more."""
        record = self._store.get(_TOMBS + volume_id)
        if record is None:
            return
        tomb = _decode(Tomb, record)
        rest = tuple(each for each in tomb.pending if each != node)
        self._store.transact(
            [Compare(record.key, record.mod_revision)],
            [_put(record.key, msgspec.structs.replace(tomb, pending=rest))],
        )


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


def begun_epoch(head: Head, choice: Choice, owner: str) -> Epoch:
    """Return the record of the epoch that *owner*, recovering *head*, begins now."""
    return Epoch(
        choice.base,
        owner,
        began_at=clock.now_rfc3339(),
        lost=choice.lost,
        before_released_at=head.released_at,
    )


def drop_old_epochs(volume_id: str, lineage: Lineage, head: Head) -> list[Delete]:
    """Return the removals that keep the number of epochs in bounds."""
    if head.committed == EMPTY:
        return []  # each former owner still has to say that it wrote nothing
    old = sorted(lineage.epochs)[: -EPOCHS_MAX or None]
    return [Delete(f"{_VOLUMES}{volume_id}/epochs/{number:010}") for number in old]


def put_tomb(volume_id: str, tomb: Tomb) -> Put:
    """Return the write of a removed volume's tomb."""
    return _put(_TOMBS + volume_id, tomb)


def bury(volume_id: str, lineage: Lineage) -> list[Operation]:
    """Return the removals of a volume's head and epochs."""
    epochs = [
        Delete(f"{_VOLUMES}{volume_id}/epochs/{number:010}")
        for number in lineage.epochs
    ]
    return [*epochs, Delete(f"{_VOLUMES}{volume_id}/head")]


def _put(key: str, value: msgspec.Struct) -> Put:
    return Put(key, msgspec.json.encode(value))


def _decode(kind: type[Kind], record: Record) -> Kind:
    try:
        return from_json(record.value, kind)
    except msgspec.DecodeError as error:
        raise StoreError(f"record {record.key} cannot be read: {error}") from error
