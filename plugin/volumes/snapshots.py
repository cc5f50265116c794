"""The use cases of snapshots: take, list, remove, restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from backends.base import Snapshot, Snapshots
from backends.errors import VolumeBusyError
from backends.system import clock
from backends.system.clock import Deadline
from backends.system.mounts import mounted_at
from plugin.limits import COPY_DEADLINE_S, SHORT_DEADLINE_S
from plugin.model import VolumeRecord, check_snapshot_name
from plugin.ownership.acquisition import Acquisition
from plugin.ownership.view import OwnershipView
from plugin.volumes.copying_under_way import CopyingUnderWay
from plugin.volumes.operations import CallerGone, Operations
from plugin.volumes.unmounting import Unmounting
from plugin.volumes.views import VolumeViews


@dataclass(frozen=True, slots=True)
class SnapshotService:
    """What can be done with the snapshots of volumes."""

    views: VolumeViews
    operations: Operations
    copying: CopyingUnderWay
    ownership: OwnershipView
    acquisition: Acquisition
    unmounting: Unmounting

    def create(self, name: str, snapshot: str, *, caller_gone: CallerGone) -> Snapshot:
        """
        Return a new snapshot of volume *name*.

        The volume can be used meanwhile: its lock is not held.

        Raises:
            VolumeNotFoundError, SnapshotExistsError, BackendError: as they say.
            VolumeBusyError: the caller left; nothing of it is kept.

        """
        snapshot = check_snapshot_name(snapshot)
        record = self._ready(name)
        target = self.views.target(record)
        with self.copying.track(f"{name}@{snapshot}", caller_gone) as progress:
            return self._of(record).create(
                record.volume(),
                snapshot,
                mounted_at=target if mounted_at(target) else None,
                progress=progress,
            )

    def all(self, name: str) -> list[Snapshot]:
        """Return the snapshots of volume *name*, oldest first."""
        record = self._ready(name)
        return self._of(record).all(record.volume())

    def remove(self, name: str, snapshot: str) -> None:
        """Remove one; raises SnapshotNotFoundError if there is none."""
        check_snapshot_name(snapshot)

        def work(_deadline: Deadline) -> None:
            record = self._ready(name)
            self._of(record).remove(record.volume(), snapshot)

        self.operations.run(name, work, deadline_s=SHORT_DEADLINE_S)

    def restore(self, name: str, snapshot: str, *, caller_gone: CallerGone) -> str:
        """
        Give the volume the bytes of *snapshot*; return the snapshot of the old ones.

        Raises:
            VolumeBusyError: something uses the volume, or the caller left.
            NotOwnerError: another node has it, or its newest bytes.
            SnapshotNotFoundError, BackendError, StoreError: as they say; nothing was
                changed.

        """
        check_snapshot_name(snapshot)
        keep_as = f"before-restore-{clock.now_as_name()}"

        def work(deadline: Deadline) -> None:
            record = self._ready(name)
            self.unmounting.require_unused(record)
            self.unmounting.drop_mount(record, deadline)
            with (
                self._owned(record, deadline),
                self.copying.track(name, caller_gone) as progress,
            ):
                self._of(record).restore(
                    record.volume(), snapshot, keep_as=keep_as, progress=progress
                )

        self.operations.run(name, work, deadline_s=COPY_DEADLINE_S)
        return keep_as

    @contextmanager
    def _owned(self, record: VolumeRecord, deadline: Deadline) -> Iterator[None]:
        """Own the volume, as a container that writes to it does; then release it."""
        if not self.ownership.exclusive(record):
            yield
            return
        self.acquisition.acquire(record, deadline)
        try:
            yield
        finally:
            self.unmounting.let_go(record)

    def _ready(self, name: str) -> VolumeRecord:
        record = self.views.existing(name).record
        if record.phase != "ready":
            raise VolumeBusyError(f"'{name}' is being removed")
        return record

    def _of(self, record: VolumeRecord) -> Snapshots:
        return self.ownership.backend_of(record).snapshots
