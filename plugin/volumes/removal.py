"""
How a volume is removed: its bytes, then its record; also after a failed creation.

The record is `removing` before the backend deletes anything. So a crash between any two
steps leaves a note of what to finish, and the reconciler finishes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from backends.errors import BackendError, VolumeBusyError
from backends.system.clock import Deadline
from plugin.limits import SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import VolumeRecord, check_name
from plugin.ownership.bytes_port import Replication
from plugin.ownership.removal import removal, removal_cancelled, removal_done
from plugin.ownership.view import OwnershipView
from plugin.store.base import NO_CHANGE
from plugin.store.contention import attempted
from plugin.volumes.catalogue import Catalogue, Stored
from plugin.volumes.operations import Operations, never
from plugin.volumes.patience import CallerGone
from plugin.volumes.unmounting import Unmounting

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Removal:
    """Answers Remove."""

    catalogue: Catalogue
    operations: Operations
    ownership: OwnershipView
    unmounting: Unmounting
    replication: Replication

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

    def remove_seen(self, seen: VolumeRecord, deadline: Deadline) -> None:
        """Remove *seen*, but no other volume that has its name by now; lock held."""
        stored = attempted(lambda: self._begin(seen, deadline))
        if stored is None:
            return
        try:
            self.finish(stored, deadline)
        except (BackendError, VolumeBusyError):
            # Storage said no and changed nothing. If the outcome is unknown, or was of
            # an earlier try, the record stays `removing`, and the reconciler goes on.
            if seen.phase != "removing":
                attempted(lambda: self._cancel(stored, seen.node))
            raise

    def finish_begun(self, stored: Stored, deadline: Deadline) -> None:
        """Finish a removal that has begun; lock held; raises as `remove`."""
        self.unmounting.require_unused(stored.record)
        self.finish(stored, deadline)

    def discard(self, volume_id: str | None) -> None:
        """Take back a creation whose caller is gone."""
        for record in self.catalogue.of_ids([volume_id] if volume_id else []):
            self.remove_seen(record, Deadline(SHORT_DEADLINE_S))

    def finish(self, stored: Stored, deadline: Deadline) -> None:
        """Remove a volume that is in phase `removing` and proven unused; lock held."""
        record = stored.record
        self.unmounting.drop_mount(record, deadline)
        self.ownership.backend_of(record).remove(
            record.volume(), deadline_s=deadline.remaining_s()
        )
        attempted(lambda: self._delete(stored))
        self.ownership.events.add(record, "removed")

    def roll_back_creation(
        self,
        stored: Stored,
        deadline: Deadline,
        *,
        leave: Callable[[BackendError], bool] = lambda _: False,
    ) -> None:
        """
        Undo a creation that nobody was told of; the volume's lock is held.

        What storage does not take back, it keeps, if *leave* says so of its error.

        Raises:
            VolumeBusyError: it is another node's.
            BackendError, DeadlineError, StoreError: it is as it was.

        """
        record = stored.record
        if not self.ownership.is_ours_to_finish(record):
            raise VolumeBusyError(
                f"'{record.name}' is being made on another node, "
                f"'{self.ownership.name_of(record.node)}'",
                hint="retry; or, if nothing goes on with it there, on that node: "
                f"remora rm {record.name}",
            )
        # The record may be ready by now: what the store was asked last may have been
        # done without an answer, or be done late. After this change it is not.
        stored = self.catalogue.replace(stored, record)
        try:
            self.ownership.backend_of(record).discard(
                record.volume(), deadline_s=deadline.remaining_s()
            )
        except BackendError as error:
            if not leave(error):
                raise
            log.warning(
                "what was begun of it stays on storage: %s",
                error,
                extra=fields(volume=record.name),
            )
        self.catalogue.delete(stored)

    def _remove_named(self, name: str, deadline: Deadline) -> None:
        found = self.catalogue.find(name)
        if found is not None:
            self.remove_seen(found.record, deadline)

    def _begin(self, seen: VolumeRecord, deadline: Deadline) -> Stored | None:
        """
        Return the record, now `removing`; None if nothing is left to be removed.

        Another node may have removed *seen*, and made a volume of the same name.
        """
        stored = self.catalogue.find(seen.name)
        if stored is None or stored.record.id != seen.id:
            return None
        if stored.record.phase == "removing" and seen.phase != "removing":
            raise VolumeBusyError(
                f"'{seen.name}' is being removed on another node", hint="retry"
            )
        if stored.record.phase == "creating":
            self._forget_creation(stored, deadline)
            return None
        removing = msgspec.structs.replace(
            stored.record, phase="removing", node=self.ownership.node_id
        )
        if stored.record.phase == "removing":
            self.unmounting.require_unused(stored.record)
            # Whoever has begun it takes it back no more: a copy of ours is to go.
            return self.catalogue.replace(stored, removing)
        # All checks come before the first write: a refused removal changes nothing.
        record = stored.record
        self.ownership.backend_of(record).require_removable(record.volume())
        self.unmounting.require_unused(record)
        also = NO_CHANGE
        if self.ownership.exclusive(record):
            also = removal(self.ownership, self.replication, record, deadline)
        return self.catalogue.replace(stored, removing, also=also)

    def _forget_creation(self, stored: Stored, deadline: Deadline) -> None:
        """
        Undo a creation; if storage refuses, let it go without: nobody was told.

        Raises:
            BackendError: storage is away, and may have some of it; it is as it was.

        """
        self.roll_back_creation(
            stored,
            deadline,
            leave=lambda error: not (error.transient or self._is_away(stored.record)),
        )

    def _is_away(self, record: VolumeRecord) -> bool:
        """Return whether this node's own storage for the volume is not there."""
        healthy = self.unmounting.views.is_healthy(record)
        # A share that is away says so in its errors; others do not matter here.
        return not (healthy or self.ownership.is_shared(record))

    def _cancel(self, stored: Stored, maker: str) -> None:
        """Make the record what it was: only its *maker*'s copy begins with bytes."""
        kept = removal_cancelled(self.ownership, stored.record)
        record = msgspec.structs.replace(stored.record, phase="ready", node=maker)
        self.catalogue.replace(stored, record, also=kept)

    def _delete(self, stored: Stored) -> None:
        record, gone = stored.record, NO_CHANGE
        if self.ownership.exclusive(record):
            gone = removal_done(self.ownership, record)
        self.catalogue.delete(stored, also=gone)
