"""
The use cases: what Docker's calls and the administrator's verbs do.

A volume's life is written down before it is lived: `creating` before the backend makes
it, `removing` before the backend drops it, a mount reference before the mount. So a
crash between any two steps leaves a note of what to finish, and the reconciler does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from backends.errors import BackendError, RemoraError, VolumeBusyError
from backends.registry import Registry
from backends.system.clock import Deadline
from backends.system.mounts import VolumeUser
from plugin.errors import StoreError
from plugin.limits import LONG_DEADLINE_S, SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import (
    VolumeRecord,
    check_mount_id,
    check_name,
)
from plugin.ownership.keeper import Keeper
from plugin.ownership.ownership import Ownership
from plugin.store.base import NO_CHANGE
from plugin.store.contention import attempted
from plugin.volumes.catalogue import Catalogue, Stored
from plugin.volumes.creation import VolumeCreation
from plugin.volumes.discovery import Discovery
from plugin.volumes.operations import CallerGone, Operations, never
from plugin.volumes.options import OptionResolver
from plugin.volumes.propagation import Propagation
from plugin.volumes.references import References

log = logging.getLogger(__name__)


class VolumeService(VolumeCreation):
    """What can be done to volumes on this node; see also the classes it extends."""

    def __init__(  # noqa: PLR0913 - the composition root names each of them
        self,
        *,
        catalogue: Catalogue,
        registry: Registry,
        resolver: OptionResolver,
        references: References,
        operations: Operations,
        discovery: Discovery,
        ownership: Ownership,
        keeper: Keeper | None,
        propagation: Propagation,
        mount_dir: Path,
        mount_deadline_s: float,
        disuse_grace_s: float,
    ) -> None:
        super().__init__(
            catalogue=catalogue,
            registry=registry,
            references=references,
            discovery=discovery,
            ownership=ownership,
            mount_dir=mount_dir,
            resolver=resolver,
            operations=operations,
        )
        # Alone there is nobody to keep a volume from.
        self._keeper = keeper
        self._propagation = propagation
        self._mount_deadline_s = mount_deadline_s
        self._disuse_grace_s = disuse_grace_s

    def scope(self) -> str:
        """Return "global" if a volume without options is usable on every node."""
        backend = self.resolver.resolve({}).backend
        return "global" if backend.traits.reachable_from_every_node else "local"

    def engine_activated(self) -> None:
        """Note that an engine has (re)started: it may have forgotten its mounts."""
        self.references.begin_epoch()

    def create(
        self,
        name: str,
        options: Mapping[str, str],
        *,
        caller_gone: CallerGone = never,
    ) -> None:
        """
        Make the volume, or find that it exists with the same options.

        Raises:
            InvalidRequestError: the name or an option is not valid; nothing is made.
            VolumeExistsError: it exists with other options, which are named.
            BackendError, DeadlineError, StoreError, VolumeBusyError: as they say.

        """
        check_name(name)
        resolved, fill = self.understand(name, options)
        self.operations.run(
            name,
            lambda deadline: self.make(name, resolved, deadline, fill),
            deadline_s=LONG_DEADLINE_S,
            # A copy that takes longer than the engine waits goes on; see `Operations`.
            undo=self._discard if fill is None else None,
            caller_gone=caller_gone,
        )

    def remove(self, name: str, *, caller_gone: CallerGone = never) -> None:
        """
        Remove the volume and its bytes; one that does not exist is removed already.

        Raises:
            VolumeBusyError: something of this node uses it; nothing was changed.
            BackendError, DeadlineError, StoreError: as they say; repeat it.

        """
        self.operations.run(
            check_name(name),
            lambda deadline: self._remove_named(name, deadline),
            deadline_s=SHORT_DEADLINE_S,
            caller_gone=caller_gone,
        )

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
        return self.operations.run(
            name,
            lambda deadline: self._mount(name, mount_id, deadline),
            deadline_s=self._mount_deadline_s,
            undo=lambda _: self._unmount(name, mount_id, Deadline(SHORT_DEADLINE_S)),
            caller_gone=caller_gone,
        )

    def unmount(self, name: str, mount_id: str) -> None:
        """
        Count one Unmount; the last one unmounts. What is unknown is unmounted already.

        Raises:
            VolumeBusyError: a process of this node still works in it.
            BackendError, DeadlineError, StoreError: as they say.

        """
        check_name(name)
        check_mount_id(mount_id)
        self.operations.run(
            name,
            lambda deadline: self._unmount(name, mount_id, deadline),
            deadline_s=min(SHORT_DEADLINE_S, self._mount_deadline_s),
        )

    def settle(self, record: VolumeRecord, deadline: Deadline) -> bool:
        """
        Unmount the volume if nobody holds it; return whether that was done.

        Inherited references alone do not hold it for ever, but it goes on proof of
        disuse only. The lock is held.

        Raises:
            VolumeBusyError: a process still works below the mount point.
            BackendError: storage, or the proof of disuse, failed.

        """
        count = self.references.total(record.id)
        if count.live or (count.inherited and not self._grace_is_over()):
            return False
        if self._users(record):
            return False
        self.drop_mount(record, deadline)
        return True

    def finish_removal(self, stored: Stored, deadline: Deadline) -> None:
        """Remove a volume that is in phase `removing` and proven unused; lock held."""
        record = stored.record
        self.drop_mount(record, deadline)
        self.registry.get(record.backend).remove(
            record.volume(), deadline_s=deadline.remaining_s()
        )
        attempted(lambda: self._delete(stored))
        self.ownership.events.add(record, "removed")

    def _delete(self, stored: Stored) -> None:
        exclusive = self.ownership.exclusive(stored.record)
        gone = self.ownership.removal_done(stored.record) if exclusive else NO_CHANGE
        self.catalogue.delete(stored, also=gone)

    def _discard(self, volume_id: str | None) -> None:
        """Take back a creation whose caller is gone."""
        for record in self.catalogue.all():
            if record.id == volume_id:
                self._remove(record, Deadline(SHORT_DEADLINE_S))

    def _remove_named(self, name: str, deadline: Deadline) -> None:
        found = self.catalogue.find(name)
        if found is not None:
            self._remove(found.record, deadline)

    def _remove(self, seen: VolumeRecord, deadline: Deadline) -> None:
        stored = attempted(lambda: self._begin_removal(seen, deadline))
        if stored is None:
            return
        try:
            self.finish_removal(stored, deadline)
        except (BackendError, VolumeBusyError):
            # Storage said no and changed nothing. Only where the outcome is unknown
            # does the intent stay, for the reconciler to finish.
            attempted(lambda: self._cancel_removal(stored))
            raise

    def _begin_removal(self, seen: VolumeRecord, deadline: Deadline) -> Stored | None:
        """
        Return the record, now `removing`; None if nothing is left to be removed.

        Another node may have removed what was *seen*, and made its like anew.
        """
        stored = self.catalogue.find(seen.name)
        if stored is None or stored.record.id != seen.id:
            return None
        if stored.record.phase == "removing" and seen.phase != "removing":
            raise VolumeBusyError(
                f"'{seen.name}' is being removed on another node", hint="retry"
            )
        if stored.record.phase == "creating":
            self.roll_back_creation(stored, deadline)
            return None
        if stored.record.phase == "removing":
            self.require_unused(stored.record)
            return stored
        # Checked before the intent is written: a refused removal changes nothing.
        self._require_ready(stored.record)
        self.require_unused(stored.record)
        also = NO_CHANGE
        if self.ownership.exclusive(stored.record):
            also = self.ownership.removal(stored.record, deadline)
        return self.catalogue.set_phase(
            stored, "removing", node=self.ownership.node_id, also=also
        )

    def _cancel_removal(self, stored: Stored) -> None:
        kept = self.ownership.removal_cancelled(stored.record)
        self.catalogue.set_phase(stored, "ready", also=kept)

    def _mount(self, name: str, mount_id: str, deadline: Deadline) -> Path:
        record = self.existing(name).record
        if record.phase != "ready":
            raise VolumeBusyError(
                f"'{name}' is being removed", hint=f"repeat: docker volume rm {name}"
            )
        target = self.target(record)
        exclusive = self.ownership.exclusive(record)
        self.references.add(record.id, mount_id)
        epoch = 0
        try:
            if exclusive:
                epoch = self._acquire(record, deadline)
            self._mount_visibly(record, deadline)
            if epoch and self._keeper is not None:
                self._keeper.hold(record, epoch, target)
        except BaseException:
            self.references.drop(record.id, mount_id)
            # What was not acquired is not mounted; the store, which may be away, is
            # not to be waited for again.
            if epoch and not self.references.total(record.id):
                self._roll_back_mount(record)
            raise
        return target

    def _mount_visibly(self, record: VolumeRecord, deadline: Deadline) -> None:
        """Mount the volume so that the engine sees it; anew if it does not."""
        backend, volume = self.registry.get(record.backend), record.volume()
        target = self.target(record)
        for _ in range(2):
            backend.mount(volume, target, deadline_s=deadline.remaining_s())
            if self._propagation.reaches(target):
                return
            log.warning("the engine does not see %s: mounting it anew", target)
            backend.unmount(volume, target, deadline_s=deadline.remaining_s())
        self._propagation.start_anew()
        raise BackendError(
            "the engine does not see what this plugin mounts, since it started anew;"
            " the plugin is started again",
            hint="retry; if it goes on: docker plugin disable --force, then enable",
        )

    def _acquire(self, record: VolumeRecord, deadline: Deadline) -> int:
        """Return the epoch in which this node owns the volume now."""
        held = self._keeper.valid_epoch(record) if self._keeper else 0
        return held or self.ownership.acquire(record, deadline)

    def _roll_back_mount(self, record: VolumeRecord) -> None:
        """Leave nothing of a Mount that failed; what remains the reconciler takes."""
        try:
            self.drop_mount(record, Deadline(SHORT_DEADLINE_S))
        except RemoraError as error:
            log.warning(
                "a mount is rolled back later: %s",
                error,
                extra=fields(volume=record.name),
            )

    def _unmount(self, name: str, mount_id: str, deadline: Deadline) -> None:
        stored = self.catalogue.find(name)
        if stored is None:
            return
        record = stored.record
        self.references.drop(record.id, mount_id)
        if not self.settle(record, deadline) and not self.references.total(record.id):
            # The engine says that nobody has it, the kernel says who does: after a
            # `docker cp` that failed it unmounts what a running container still uses.
            self.references.inherit(record.id, mount_id)

    def drop_mount(self, record: VolumeRecord, deadline: Deadline) -> None:
        """
        Unmount, forget the references, and let other nodes have the volume.

        A crash in between repeats what is left.
        """
        self.registry.get(record.backend).unmount(
            record.volume(), self.target(record), deadline_s=deadline.remaining_s()
        )
        self.references.forget(record.id)
        if self.ownership.exclusive(record):
            self.let_go(record)

    def let_go(self, record: VolumeRecord) -> None:
        """Release the volume, which is not mounted; without the cluster, later."""
        if self._keeper is not None:
            self._keeper.drop(record)
        try:
            self.ownership.release(record)
        except StoreError as error:
            # Docker must be able to stop its containers whatever is down.
            log.warning(
                "it is released when the cluster answers: %s",
                error,
                extra=fields(volume=record.name),
            )

    def _grace_is_over(self) -> bool:
        """
        Return whether inherited references may be looked into.

        A mount that was answered just before this epoch may still be on its way into
        its container, where no namespace shows it yet.
        """
        return self.references.epoch_age_s() >= self._disuse_grace_s

    def _users(self, record: VolumeRecord) -> list[VolumeUser]:
        backend = self.registry.get(record.backend)
        return backend.users(record.volume(), self.target(record))

    def require_unheld(self, record: VolumeRecord) -> None:
        """Raise VolumeBusyError if any process of this node has the volume mounted."""
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
        if count.live:
            mounts = "1 mount" if count.live == 1 else f"{count.live} mounts"
            raise VolumeBusyError(
                f"the engine holds {mounts} of '{record.name}'",
                hint="stop its containers; if there are none: remora repair",
            )

    def _require_ready(self, record: VolumeRecord) -> None:
        self.registry.get(record.backend).require_ready(record.volume())
