"""
How a volume is unmounted: at the engine's last Unmount, or once nobody uses it.

A mount that a process of this node uses is never taken away.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from backends.errors import VolumeBusyError
from backends.system import published
from backends.system.clock import Deadline
from backends.system.mounts import VolumeUser, mounted, mounted_at
from plugin.errors import StoreError
from plugin.limits import SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import VolumeRecord, check_mount_id, check_name
from plugin.ownership.keeper import Keeper
from plugin.ownership.release import Release
from plugin.ownership.view import OwnershipView
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.operations import Operations
from plugin.volumes.references import References
from plugin.volumes.views import VolumeViews

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unmounting:
    """Answers Unmount, and lets volumes go that nothing of this node uses."""

    views: VolumeViews
    catalogue: Catalogue
    references: References
    operations: Operations
    ownership: OwnershipView
    release: Release
    keeper: Keeper | None
    deadline_s: float
    disuse_grace_s: float

    def unmount(self, name: str, mount_id: str) -> None:
        """
        Count one Unmount; the last one unmounts. An unknown volume counts as unmounted.

        Raises:
            VolumeBusyError: a process of this node still works in it.
            BackendError, DeadlineError, StoreError: as they say.

        """
        check_name(name)
        check_mount_id(mount_id)
        self.operations.run(
            name,
            lambda deadline: self.unmount_now(name, mount_id, deadline),
            deadline_s=min(SHORT_DEADLINE_S, self.deadline_s),
        )

    def unmount_now(self, name: str, mount_id: str, deadline: Deadline) -> None:
        """Do what `unmount` says; the volume's lock is held."""
        stored = self.catalogue.find(name)
        if stored is None:
            return
        record = stored.record
        self.references.drop(record.id, mount_id)
        unmounted = self.unmount_if_unused(record, deadline)
        if not unmounted and not self.references.total(record.id):
            # The engine says that nobody uses it, but the kernel shows a user: after a
            # failed `docker cp` the engine unmounts what a running container uses.
            self.references.inherit(record.id, mount_id)

    def unmount_if_unused(self, record: VolumeRecord, deadline: Deadline) -> bool:
        """
        Unmount the volume if nobody holds it; return whether that was done.

        Inherited references do not hold it for ever: it is unmounted if it is proven
        that nobody uses it. The caller holds the volume's lock.

        Raises:
            VolumeBusyError: a process still works below the mount point.
            BackendError: storage, or the proof of disuse, failed.

        """
        count = self.references.total(record.id)
        if count.live or (count.inherited and not self._grace_is_over(record)):
            return False
        if self._shown(record) or self._users(record):
            return False
        self.drop_mount(record, deadline)
        return True

    def drop_mount(self, record: VolumeRecord, deadline: Deadline) -> None:
        """
        Unmount, forget the references, and release the volume for other nodes.

        After a crash in between, the reconciler does what is left.
        """
        self._unmount(record, deadline)
        self.references.forget(record.id)
        if self.ownership.exclusive(record):
            self.let_go(record)

    def unmount_lost(self, record: VolumeRecord, deadline: Deadline) -> None:
        """
        Take away the mount of a volume that another node owns, if it is still there.

        Its writers are dead, and the engine has had time to unmount. The caller holds
        the volume's lock.
        """
        lost = self.keeper.lost() if self.keeper else []
        if self.keeper is None or record.id not in {each.id for each in lost}:
            return
        self.take_away(record, "another node has taken the volume")
        self._unmount(record, deadline)
        self.keeper.drop(record)

    def unmount_removed(self, record: VolumeRecord, deadline: Deadline) -> None:
        """
        Take away the mount, if there is one, of a volume that was removed elsewhere.

        Raises:
            VolumeBusyError: its writers are yet to be ended, or something uses it.

        """
        if self.keeper is not None:
            held = {each.id for each, _ in self.keeper.held()}
            if record.id in held - {each.id for each in self.keeper.lost()}:
                raise VolumeBusyError(f"the writers of '{record.name}' are being ended")
        self.take_away(record, "the volume was removed")
        self.require_unheld(record)
        self._unmount(record, deadline)
        self.references.forget(record.id)
        if self.keeper is not None:
            self.keeper.drop(record)

    def take_away(self, record: VolumeRecord, why: str) -> None:
        """
        Let no path show the volume any more that it was published at, and say *why*.

        Raises:
            VolumeBusyError: a process of this machine still works in one.

        """
        for each in self.references.publications.of(record.id):
            published.take_away(
                Path(each.path), root=Path(each.root), why=f"{record.name}: {why}"
            )
            self.references.publications.drop(each.target)

    def let_go(self, record: VolumeRecord) -> None:
        """Release the volume, which is not mounted; later if the cluster is away."""
        if self.keeper is not None:
            self.keeper.drop(record)
        try:
            self.release.release(record)
        except StoreError as error:
            # Docker must be able to stop its containers whatever is down.
            log.warning(
                "it is released when the cluster answers: %s",
                error,
                extra=fields(volume=record.name),
            )

    def is_idle(self, record: VolumeRecord) -> bool:
        """Return whether the volume is neither mounted nor referred to."""
        return mounted_at(self.views.target(record)) is None and not (
            self.references.total(record.id)
        )

    def require_unheld(self, record: VolumeRecord) -> None:
        """Raise VolumeBusyError if any process of this node has the volume mounted."""
        if shown := self._shown(record):
            raise VolumeBusyError(
                f"'{record.name}' is published at {shown[0]}",
                hint="have the scheduler end what uses it",
            )
        users = self._users(record)
        if users:
            raise VolumeBusyError(
                f"'{record.name}' is used by {', '.join(map(str, users[:3]))}",
                hint="stop what uses it, then remove it",
            )

    def require_unused(self, record: VolumeRecord) -> None:
        """Raise VolumeBusyError if the engine or any process uses the volume."""
        self.require_unheld(record)
        count = self.references.total(record.id)
        if self.references.publications.age_s(record.id) < self.disuse_grace_s:
            raise VolumeBusyError(
                f"'{record.name}' is being published", hint="retry in a minute"
            )
        if count.live:
            mounts = "1 mount" if count.live == 1 else f"{count.live} mounts"
            raise VolumeBusyError(
                f"the engine holds {mounts} of '{record.name}'",
                hint="stop its containers; if there are none: remora repair",
            )

    def _grace_is_over(self, record: VolumeRecord) -> bool:
        """
        Return whether inherited references may be checked for use.

        A Mount that was answered just before this epoch may belong to a container that
        is still starting: no namespace shows the mount yet. Nor does one show a path
        that is being published.
        """
        published_s = self.references.publications.age_s(record.id)
        return min(self.references.epoch_age_s(), published_s) >= self.disuse_grace_s

    def _unmount(self, record: VolumeRecord, deadline: Deadline) -> None:
        target = self.views.target(record)
        self.ownership.backend_of(record).unmount(
            record.volume(), target, deadline_s=deadline.remaining_s()
        )

    def _shown(self, record: VolumeRecord) -> list[str]:
        """
        Return the paths at which the volume was published, and is.

        On a share a bind of ours is none of the users that a backend can tell.
        """
        found = [each.path for each in self.references.publications.of(record.id)]
        table = mounted() if found else {}
        return [each for each in found if each in table]

    def _users(self, record: VolumeRecord) -> list[VolumeUser]:
        backend = self.ownership.backend_of(record)
        return backend.users(record.volume(), self.views.target(record))
