"""
Snapshots as schedulers ask for them: on whatever node, again and again, and listed.

A snapshot lies where its volume's newest bytes are; the node that is asked has it taken
there. All that is known of others is what their records say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from backends.errors import (
    InvalidRequestError,
    RemoraError,
    SnapshotExistsError,
    SnapshotNotFoundError,
)
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError, VolumeNotFoundError
from plugin.limits import LONG_DEADLINE_S
from plugin.model import VolumeRecord, check_snapshot_name
from plugin.ownership.wishes import Wish
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.elsewhere import Doing, Elsewhere, asked_in
from plugin.volumes.operations import Operations, never
from plugin.volumes.snapshots import SnapshotService

_ASK_SHARE = 0.8


class SnapshotClaim(msgspec.Struct, frozen=True, kw_only=True):
    """Snapshot *snapshot* of volume *name* is to be there, or to be gone."""

    name: str
    snapshot: str
    wait_s: Annotated[float, msgspec.Meta(gt=0, le=LONG_DEADLINE_S)] = 10.0


class ClaimedSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of volume *source*."""

    source: str
    name: str
    created_at: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ClaimedSnapshots:
    """Takes, forgets and lists snapshots, here or elsewhere."""

    snapshots: SnapshotService
    catalogue: Catalogue
    operations: Operations
    elsewhere: Elsewhere

    def create(self, asked: SnapshotClaim) -> ClaimedSnapshot:
        """
        Return the snapshot, taken now or before.

        Raises:
            VolumeNotFoundError: there is no such volume.
            SnapshotExistsError: another volume has one of that name.
            RemoraError: as `SnapshotService.create`, or what another node says.

        """
        check_snapshot_name(asked.snapshot)
        record = self.snapshots.views.existing(asked.name).record
        if found := self._found(record, asked.snapshot):
            return found
        for each in self.all():
            if each.name == asked.snapshot:
                raise SnapshotExistsError(
                    f"snapshot '{asked.snapshot}' is one of volume '{each.source}'",
                    hint="use another name",
                )
        try:
            self._create_here(asked)
        except NotOwnerError:
            self._do_at(self.elsewhere.node_with(record), "snapshot", record, asked)
        if found := self._found(record, asked.snapshot):
            return found
        raise SnapshotNotFoundError(f"snapshot '{asked.snapshot}' has just gone")

    def remove(self, asked: SnapshotClaim) -> None:
        """Remove the snapshot; one that is not there is removed already."""
        try:
            self._remove_here(asked)
        except (VolumeNotFoundError, SnapshotNotFoundError, InvalidRequestError):
            return
        except NotOwnerError:
            record = self.snapshots.views.with_snapshots(asked.name)
            node_id = self.elsewhere.node_with(record, asked.snapshot)
            self._do_at(node_id, "forget-snapshot", record, asked)

    def grant_create(self, wish: Wish) -> None:
        """Take one for another node; one that is there is taken."""
        asked = asked_in(wish, SnapshotClaim)
        record = self.snapshots.views.existing(asked.name).record
        if not self._found(record, asked.snapshot):
            self._create_here(asked)

    def grant_remove(self, wish: Wish) -> None:
        """Remove one for another node; one that is not there is removed."""
        try:
            self._remove_here(asked_in(wish, SnapshotClaim))
        except (VolumeNotFoundError, SnapshotNotFoundError):
            return

    def all(self) -> list[ClaimedSnapshot]:
        """Return every snapshot that is known here, the oldest first."""
        found: list[ClaimedSnapshot] = []
        for head in self.catalogue.heads():
            if head.phase == "ready":
                found += self.of(head.name)
        return sorted(found, key=lambda each: (each.created_at, each.source, each.name))

    def of(self, name: str) -> list[ClaimedSnapshot]:
        """Return those of volume *name*, none if it is not there or does not answer."""
        try:
            rows = self.snapshots.all(name)
        except RemoraError:
            return []
        return [_claimed(name, row) for row in rows]

    def _found(self, record: VolumeRecord, snapshot: str) -> ClaimedSnapshot | None:
        rows = self.snapshots.all(record.name)
        found = [each for each in rows if each["name"] == snapshot]
        return _claimed(record.name, found[0]) if found else None

    def _create_here(self, asked: SnapshotClaim) -> None:
        """Take it; what takes long goes on, and the next call waits for it."""

        def work(_deadline: Deadline) -> None:
            record = self.snapshots.views.existing(asked.name).record
            if self._found(record, asked.snapshot) is None:
                self.snapshots.create(asked.name, asked.snapshot, caller_gone=never)

        # Not under the volume's lock: it may be in use, and published, meanwhile.
        self.operations.run(
            f"{asked.name}@{asked.snapshot}", work, deadline_s=asked.wait_s
        )

    def _remove_here(self, asked: SnapshotClaim) -> None:
        self.snapshots.remove(asked.name, asked.snapshot)

    def _do_at(
        self, node_id: str, doing: Doing, record: VolumeRecord, asked: SnapshotClaim
    ) -> None:
        if not node_id:
            raise NotOwnerError(
                f"the node with the newest bytes of '{record.name}' does not answer",
                hint="retry when it does",
                transient=True,
            )
        wait_s = asked.wait_s * _ASK_SHARE
        shorter = msgspec.structs.replace(asked, wait_s=wait_s * _ASK_SHARE)
        request: Any = msgspec.to_builtins(shorter)
        self.elsewhere.do(node_id, doing, record.id, request, wait_s=wait_s)
        # What that node has written comes with the mirror's watch.
        self.elsewhere.ownership.heads.refresh(wait_s)


def _claimed(source: str, row: dict[str, Any]) -> ClaimedSnapshot:
    return ClaimedSnapshot(
        source=source,
        name=row["name"],
        created_at=row["created_at"],
        size_bytes=row["size_bytes"],
    )
