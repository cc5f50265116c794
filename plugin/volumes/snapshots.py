"""The use cases of snapshots: take, list, remove, restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from backends.base import Snapshot, Snapshots
from backends.errors import RemoraError, VolumeBusyError
from backends.system import clock
from backends.system.clock import Deadline
from backends.system.mounts import mounted_at
from plugin.limits import COPY_DEADLINE_S, SHORT_DEADLINE_S
from plugin.model import VolumeRecord, check_snapshot_name
from plugin.ownership.acquisition import Acquisition
from plugin.ownership.view import OwnershipView
from plugin.volumes.copying_under_way import CopyingUnderWay
from plugin.volumes.newest import NewestBytes
from plugin.volumes.operations import Operations
from plugin.volumes.own_snapshots import OwnSnapshots, on_their_node
from plugin.volumes.patience import CallerGone
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
    newest: NewestBytes
    own: OwnSnapshots

    def create(self, name: str, snapshot: str, *, caller_gone: CallerGone) -> Snapshot:
        """
        Return a new snapshot of volume *name*.

        The volume can be used meanwhile: its lock is not held.

        Raises:
            VolumeNotFoundError, SnapshotExistsError, BackendError: as they say.
            NotOwnerError: another node has newer bytes.
            VolumeBusyError: the caller left, or a commit came in; nothing is kept.

        """
        snapshot = check_snapshot_name(snapshot)
        record = self._ready(name)
        target = self.views.target(record)
        command = f"remora snapshot create {name} {snapshot}"
        made = None
        try:
            with (
                self.copying.track(f"{name}@{snapshot}", caller_gone) as progress,
                self.newest.reading(record, command=command),
            ):
                made = self._of(record).create(
                    record.volume(),
                    snapshot,
                    mounted_at=target if mounted_at(target) else None,
                    progress=progress,
                )
        except RemoraError:
            if made is not None:  # it is torn
                self._of(record).remove(record.volume(), snapshot)
            raise
        self.own.tell(record)
        return made

    def all(self, name: str) -> list[dict[str, Any]]:
        """Return the snapshots of volume *name* with their nodes, oldest first."""
        record = self.views.with_snapshots(name)
        own, shared = self.ownership.node_id, self.ownership.is_shared(record)
        known = {} if shared else self.ownership.nodes.snapshots.of(record.id)
        known[own] = self._of(record).all(record.volume())  # here the disk counts
        rows = [
            {
                **asdict(each),
                "node": "" if shared else self.ownership.name_of(node_id),
                "this_node": node_id == own and not shared,
            }
            for node_id, snapshots in known.items()
            for each in snapshots
        ]
        return sorted(rows, key=lambda row: (row["created_at"], row["name"]))

    def remove(self, name: str, snapshot: str) -> None:
        """
        Remove one, of a removed volume as well.

        Raises:
            SnapshotNotFoundError: there is none; NotOwnerError: another node has it.

        """
        check_snapshot_name(snapshot)
        command = f"remora snapshot rm {name} {snapshot}"

        def work(_deadline: Deadline) -> None:
            record = self.views.with_snapshots(name)
            with self._found(record, snapshot, command=command):
                self._of(record).remove(record.volume(), snapshot)

        self.operations.run(name, work, deadline_s=SHORT_DEADLINE_S)

    def restore(self, name: str, snapshot: str, *, caller_gone: CallerGone) -> str:
        """
        Give the volume the bytes of *snapshot*; return the snapshot of the old ones.

        Raises:
            VolumeBusyError: something uses the volume, or the caller left.
            NotOwnerError: another node has the volume, its newest bytes, or *snapshot*.
            SnapshotNotFoundError, BackendError, StoreError: as they say; nothing was
                changed, but for a disk that failed at the very end: that is told.

        """
        check_snapshot_name(snapshot)
        keep_as = f"before-restore-{clock.now_as_name()}"

        def work(deadline: Deadline) -> None:
            record = self._ready(name)
            self.unmounting.require_unused(record)
            command = f"remora snapshot restore {name} {snapshot}"
            volume = record.volume()
            with self._found(record, snapshot, command=command):
                self.ownership.backend_of(record).data_directory(volume, snapshot)
            self.unmounting.drop_mount(record, deadline)
            with (
                self._owned(record, deadline) as exchanging,
                self.copying.track(name, caller_gone) as progress,
            ):
                self._of(record).restore(
                    *(volume, snapshot),
                    keep_as=keep_as,
                    progress=progress,
                    exchanging=exchanging,
                )
            self.own.tell(record)

        self.operations.run(name, work, deadline_s=COPY_DEADLINE_S)
        return keep_as

    @contextmanager
    def _found(
        self, record: VolumeRecord, snapshot: str, *, command: str
    ) -> Iterator[None]:
        """
        Do as `on_their_node`, and let others know which snapshots there are now.

        One that is not found may have gone unseen: others still think that it is here.
        """
        try:
            with on_their_node(
                self.ownership, record.volume(), snapshot, command=command
            ):
                yield
        finally:
            self.own.tell(record)

    @contextmanager
    def _owned(
        self, record: VolumeRecord, deadline: Deadline
    ) -> Iterator[AbstractContextManager[None]]:
        """
        Own the volume, as a container that writes to it does; then release it.

        In the block that it yields the bytes may be changed: it refuses if another node
        has come meanwhile.
        """
        if not self.ownership.exclusive(record):
            yield nullcontext()
            return
        epoch, keeper = (
            self.acquisition.acquire(record, deadline),
            self.unmounting.keeper,
        )
        try:
            if keeper is not None:
                keeper.hold(record, epoch, None)
            yield self._still_owned(record, epoch)
        finally:
            self.unmounting.let_go(record)

    @contextmanager
    def _still_owned(self, record: VolumeRecord, epoch: int) -> Iterator[None]:
        """Keep this node's copy from promising or taking anything while it changes."""
        # A share has no copy, but leases of its own that keep others from mounting it.
        shared = self.ownership.is_shared(record)
        changing = self.ownership.copy_states.changing
        with nullcontext() if shared else changing(record.id):
            self.ownership.require_owned(record, epoch)
            yield

    def _ready(self, name: str) -> VolumeRecord:
        record = self.views.existing(name).record
        if record.phase != "ready":
            raise VolumeBusyError(f"'{name}' is being removed")
        return record

    def _of(self, record: VolumeRecord) -> Snapshots:
        return self.ownership.backend_of(record).snapshots
