"""
What a join of a single node writes into a cluster's records; pure, without I/O.

A volume's head is written as it is, so that a node whose containers run goes on with
its epoch: its daemon writes the lock again when it starts (`rules.resume`). Until then
no other node can begin the volume, for only this node has its bytes. Locks are never
written: they hang on a lease. A volume without a head gets one that says that this node
alone has its bytes; else another node might begin it empty.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from backends.readonly.traits import OPTION as READONLY_COPY
from backends.registry import has_catalogue_on_storage, keeps_copies
from plugin.errors import NodeConflictError
from plugin.joining.batches import Step
from plugin.joining.dumping import is_passing
from plugin.joining.joined import VOLUMES
from plugin.model import Options, VolumeRecord, check_name
from plugin.ownership.state import FILLED, Head
from plugin.store.base import Compare, Put, Record
from plugin.store.values import value_of

_HEADS: Final = "v/"
_TOMBS: Final = "tomb/"

State = Literal["moves", "there", "removed"]


class JoinRefusedError(NodeConflictError):
    """Volumes forbid the join; each of *conflicts* is a line for people."""

    def __init__(self, conflicts: Sequence[str]) -> None:
        super().__init__(
            f"{len(conflicts)} conflicts forbid the join, and nothing was changed: "
            + "; ".join(conflicts),
            hint="where only the name is taken, give another: --rename OLD=NEW",
        )
        self.conflicts = tuple(conflicts)


@dataclass(frozen=True, slots=True)
class JoinedVolume:
    """
    What becomes of one volume.

    It *moves*, or is *there* already; or it was *removed* by another node since an
    interrupted join, and then its copy here goes to the trash.
    """

    id: str
    name: str
    new_name: str
    backend: str
    state: State


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of the volumes, and what is to be written for it."""

    moves: list[JoinedVolume]
    steps: list[Step]


class Planner:
    """Compares two stores' records; pure. *again* means that a join was broken off."""

    def __init__(
        self,
        *,
        own_id: str,
        renames: Mapping[str, str],
        held: Collection[str],
        again: bool,
    ) -> None:
        self._own_id = own_id
        self._renames = renames
        self._held = held
        self._again = again
        self._there: dict[str, Record] = {}
        self._local: dict[str, dict[str, Record]] = {}
        self._conflicts: list[str] = []

    def plan(self, local: Sequence[Record], cluster: Sequence[Record]) -> Plan:
        """
        Return what is to be done.

        Raises:
            JoinRefusedError: with every conflict.
            StoreError: a record of this node cannot be read.

        """
        self._there = {each.key: each for each in cluster}
        self._local = _by_volume(local)
        names = {_id_of(each): _name_of(each) for each in cluster if _is_volume(each)}
        volumes = [value_of(each, VolumeRecord) for each in local if _is_volume(each)]
        self._conflicts = self._wrong_renames(volumes)
        plan = Plan([], [])
        for volume in volumes:
            new_name = self._renames.get(volume.name, volume.name)
            state = self._state(volume, new_name, names.get(volume.id, ""))
            if state == "there":
                new_name = names[volume.id]
            plan.moves.append(
                JoinedVolume(volume.id, volume.name, new_name, volume.backend, state)
            )
        new_names = {each.name: each.new_name for each in plan.moves}
        for volume, move in zip(volumes, plan.moves, strict=True):
            if move.state == "moves":
                plan.steps.extend(self._steps(volume, new_names))
            elif move.state == "there" and not self._there.get(_head_key(volume.id)):
                plan.steps.extend(self._absent(self._local.get(volume.id, {})))
        if self._conflicts:
            raise JoinRefusedError(self._conflicts)
        return plan

    def _wrong_renames(self, volumes: Sequence[VolumeRecord]) -> list[str]:
        """Return what is wrong with the new names; an invalid one raises."""
        found = []
        by_name = {each.name: each for each in volumes}
        for old, new in self._renames.items():
            check_name(new)
            volume = by_name.get(old)
            if volume is None:
                found.append(f"--rename {old}={new}: this node has no volume '{old}'")
            elif has_catalogue_on_storage(volume.backend):
                found.append(
                    f"--rename {old}={new}: it is named on its share, for all nodes"
                )
            elif volume.id in self._held:
                found.append(
                    f"--rename {old}={new}: a container holds it by its old name; stop "
                    "that first"
                )
        after = [self._renames.get(each.name, each.name) for each in volumes]
        found += [
            f"two volumes of this node would be called '{name}'"
            for name in sorted({each for each in after if after.count(each) > 1})
        ]
        return found

    def _state(self, volume: VolumeRecord, new_name: str, there_as: str) -> State:
        """Return what becomes of *volume*, and note it if that is a conflict."""
        if _TOMBS + volume.id in self._there:
            return "removed"
        if there_as:
            if volume.name in self._renames and there_as != new_name:
                self._conflicts.append(
                    f"volume '{volume.name}' is in the cluster already, as '{there_as}'"
                )
            elif not self._again and self._went_on_here(volume.id):
                self._conflicts.append(
                    f"volume '{volume.name}' ({volume.id}) is in the cluster, and was "
                    "used here since it was taken from there: clone or remove it here"
                )
            return "there"
        taken = self._there.get(VOLUMES + new_name)
        if taken is not None:
            self._conflicts.append(
                f"the name '{new_name}' is that of volume {_id_of(taken)} in the "
                f"cluster, and of {volume.id} here"
            )
        for key, record in self._local.get(volume.id, {}).items():
            if key in self._there and self._there[key].value != record.value:
                self._conflicts.append(f"the cluster has another record {key}")
        return "moves"

    def _went_on_here(self, volume_id: str) -> bool:
        """Return whether the volume was used here after the cluster got its records."""
        records = self._local.get(volume_id, {})
        ours = records.get(_head_key(volume_id))
        theirs = self._there.get(_head_key(volume_id))
        if ours is None or theirs is None or ours.value == theirs.value:
            return False
        here = value_of(ours, Head)
        there = value_of(theirs, Head)
        epochs = sorted(each for each in records if "/epochs/" in each)
        # An epoch that the cluster has otherwise, or has not, was begun here since.
        newest = epochs[-1] if epochs else ""
        same = not newest or (
            newest in self._there and self._there[newest].value == records[newest].value
        )
        return not (
            same and here.epoch <= there.epoch and here.committed <= there.committed
        )

    def _steps(self, volume: VolumeRecord, new_names: Mapping[str, str]) -> list[Step]:
        """Return the writes for one volume; the one that shows it comes last."""
        records = self._local.get(volume.id, {})
        # There may be more epochs than go into one transaction.
        early = {key: each for key, each in records.items() if "/epochs/" in key}
        late = self._absent({k: v for k, v in records.items() if k not in early})
        new_name = new_names[volume.name]
        record = msgspec.structs.replace(
            volume,
            name=new_name,
            requested=_with_new_name(volume.requested, new_names),
            options=_with_new_name(volume.options, new_names),
        )
        if not has_catalogue_on_storage(volume.backend) or volume.phase != "ready":
            record = msgspec.structs.replace(record, node=self._own_id)
        operations = [each for step in late for each in step.operations]
        conditions = [each for step in late for each in step.conditions]
        head = _head_key(volume.id)
        if (
            head not in records
            and keeps_copies(volume.backend)
            and volume.phase == "ready"
        ):
            record = msgspec.structs.replace(record, filled=True)
            only = (self._own_id,)
            made = Head(committed=FILLED, holders=only, members=only)
            conditions.append(Compare(head, 0))
            operations.append(Put(head, msgspec.json.encode(made)))
        conditions += [Compare(VOLUMES + new_name, 0), Compare(_TOMBS + volume.id, 0)]
        operations.append(Put(VOLUMES + new_name, msgspec.json.encode(record)))
        return [
            *self._absent(early),
            Step(tuple(conditions), tuple(operations)),
        ]

    def _absent(self, records: Mapping[str, Record]) -> list[Step]:
        """Return the writes of those *records* that the cluster has not."""
        return [
            Step((Compare(key, 0),), (Put(key, each.value),))
            for key, each in records.items()
            if key not in self._there
        ]


def _with_new_name(options: Options, new_names: Mapping[str, str]) -> Options:
    """Return *options*, in which another volume may be named, as it is called now."""
    new_name = new_names.get(options.get(READONLY_COPY, ""))
    return {**options, READONLY_COPY: new_name} if new_name else options


def _by_volume(records: Sequence[Record]) -> dict[str, dict[str, Record]]:
    """Return the other records of each volume, without locks: by volume id and key."""
    found: dict[str, dict[str, Record]] = {}
    for each in records:
        if each.key.startswith(_HEADS) and not is_passing(each):
            volume_id = each.key.removeprefix(_HEADS).partition("/")[0]
            found.setdefault(volume_id, {})[each.key] = each
    return found


def _is_volume(record: Record) -> bool:
    return record.key.startswith(VOLUMES)


def _name_of(record: Record) -> str:
    return record.key.removeprefix(VOLUMES)


def _id_of(record: Record) -> str:
    return value_of(record, VolumeRecord).id


def _head_key(volume_id: str) -> str:
    return f"{_HEADS}{volume_id}/head"
