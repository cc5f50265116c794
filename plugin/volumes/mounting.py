"""
How a volume is mounted for the engine.

The reference is written down before the mount, and an exclusive volume is mounted only
after this node owns it. So a crash between any two steps leaves a note of what to take
back, and the reconciler does so.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backends.errors import BackendError, RemoraError, VolumeBusyError
from backends.system.clock import Deadline
from plugin.limits import SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import VolumeRecord, check_mount_id, check_name
from plugin.ownership.acquisition import Acquisition
from plugin.ownership.keeper import Keeper
from plugin.ownership.view import OwnershipView
from plugin.volumes.operations import Operations, never
from plugin.volumes.patience import CallerGone, Patience
from plugin.volumes.propagation import Propagation
from plugin.volumes.references import References
from plugin.volumes.unmounting import Unmounting
from plugin.volumes.views import VolumeViews

log = logging.getLogger(__name__)
# Of no more volumes is it known that their last Mount was not answered.
_SILENT_MAX: Final = 10_000


@dataclass(frozen=True, slots=True)
class Mounting:
    """
    Answers Mount; a node that is alone needs no *keeper*.

    After the machine's start a Mount has *patience* with what does not answer yet.
    """

    views: VolumeViews
    references: References
    operations: Operations
    ownership: OwnershipView
    acquisition: Acquisition
    keeper: Keeper | None
    propagation: Propagation
    unmounting: Unmounting
    patience: Patience
    deadline_s: float
    _silent: set[str] = field(default_factory=set)

    def engine_activated(self) -> None:
        """Note that an engine has (re)started: it may have forgotten its mounts."""
        self.references.begin_epoch()

    def mount(
        self, name: str, mount_id: str, *, caller_gone: CallerGone = never
    ) -> Path:
        """
        Return where the volume's bytes are mounted, counted for *mount_id*.

        Raises:
            VolumeNotFoundError: there is no such volume.
            BackendError, DeadlineError, StoreError, VolumeBusyError: as they say;
                nothing is mounted that was not before.

        """
        check_name(name)
        check_mount_id(mount_id)
        self._silent.discard(name)
        try:
            return self.operations.run(
                name,
                lambda deadline: self._mount(name, mount_id, deadline),
                deadline_s=self.deadline_s,
                undo=lambda _: self.unmounting.unmount_now(
                    name, mount_id, Deadline(SHORT_DEADLINE_S)
                ),
                caller_gone=caller_gone,
                patience=self.patience,
            )
        except RemoraError as error:
            if error.unanswered and len(self._silent) < _SILENT_MAX:
                self._silent.add(name)
            raise

    def was_silent(self, name: str) -> bool:
        """Return whether the volume's last Mount failed as something did not answer."""
        return name in self._silent

    def _mount(self, name: str, mount_id: str, deadline: Deadline) -> Path:
        record = self.ready(name)
        self.references.add(record.id, mount_id)
        epoch = 0
        try:
            epoch = self.acquire(record, deadline)
            return self.mount_owned(record, epoch, deadline)
        except BaseException:
            self.references.drop(record.id, mount_id)
            self.roll_back(record, epoch)
            raise

    def ready(self, name: str) -> VolumeRecord:
        """Return the volume, which may be mounted; or raise why it may not."""
        record = self.views.existing(name).record
        if record.phase != "ready":
            raise VolumeBusyError(
                f"'{name}' is being removed", hint=f"repeat: docker volume rm {name}"
            )
        return record

    def acquire(self, record: VolumeRecord, deadline: Deadline) -> int:
        """Return the epoch in which this node owns the volume now; 0 if it need not."""
        if not self.ownership.exclusive(record):
            return 0
        held = self.keeper.valid_epoch(record) if self.keeper else 0
        return held or self.acquisition.acquire(record, deadline)

    def mount_owned(self, record: VolumeRecord, epoch: int, deadline: Deadline) -> Path:
        """Return where the volume, owned in *epoch*, is mounted, and is guarded."""
        target = self.views.target(record)
        self._mount_visibly(record, target, deadline)
        if epoch and self.keeper is not None:
            self.keeper.hold(record, epoch, target)
        return target

    def _mount_visibly(
        self, record: VolumeRecord, target: Path, deadline: Deadline
    ) -> None:
        """Mount the volume so that the engine sees it; try it twice."""
        backend, volume = self.ownership.backend_of(record), record.volume()
        for _ in range(2):
            backend.mount(volume, target, deadline_s=deadline.remaining_s())
            if self.propagation.reaches(target):
                return
            log.warning("the engine does not see %s: mounting it anew", target)
            backend.unmount(volume, target, deadline_s=deadline.remaining_s())
        self.propagation.start_anew()
        raise BackendError(
            "the engine does not see what this plugin mounts, since it started anew;"
            " the plugin is started again",
            hint="retry; if it goes on: docker plugin disable --force, then enable",
        )

    def roll_back(self, record: VolumeRecord, epoch: int) -> None:
        """
        Undo a Mount that failed, if nothing else holds the volume; later if need be.

        An exclusive volume that was not acquired, in *epoch*, is not mounted: there is
        nothing to undo, and we do not wait for the store again, which may be away.
        """
        if not epoch or self.references.total(record.id):
            return
        try:
            self.unmounting.drop_mount(record, Deadline(SHORT_DEADLINE_S))
        except RemoraError as error:
            log.warning(
                "a mount is rolled back later: %s",
                error,
                extra=fields(volume=record.name),
            )
