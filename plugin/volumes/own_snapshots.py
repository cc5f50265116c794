"""
Letting the cluster know which snapshots lie on this node's disk.

The record follows the disk: each change of a volume's snapshots is told at once. Where
the cluster did not answer, or a crash came in between, `mend` makes up for it in a pass
of the reconciler. The whole disk is looked at after the start, and now and then: people
and backups change it too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from backends.base import Backend, Snapshot, Volume
from backends.errors import BackendError, RemoraError, SnapshotNotFoundError
from backends.system import clock
from plugin.errors import NotOwnerError
from plugin.model import VolumeRecord
from plugin.ownership.view import OwnershipView

log = logging.getLogger(__name__)
_LOOK_EVERY_S: Final = 300.0


class OwnSnapshots:
    """See the module's text; where all nodes share the bytes there is nothing to do."""

    def __init__(self, ownership: OwnershipView) -> None:
        self._ownership = ownership
        self._records = ownership.nodes.snapshots
        self._guard = threading.Lock()
        # The snapshots that the cluster is to know of, as far as the disk was seen.
        self._known: dict[str, list[Snapshot]] = {}
        self._look_due_s = 0.0

    def tell(self, record: VolumeRecord) -> None:
        """Let others know which snapshots of a volume this node has now, or later."""
        if self._ownership.membership.alone or self._ownership.is_shared(record):
            return
        try:
            with self._guard:
                backend = self._ownership.backend_of(record)
                snapshots = backend.snapshots.all(record.volume())
                _require_there(backend)
                self._known[record.id] = snapshots
                self._write()
        except (RemoraError, OSError) as error:
            self._look_due_s = 0.0  # what this call could not see, `mend` will
            log.info("which snapshots are here is told later: %s", error)

    def mend(self) -> None:
        """Make this node's records agree with its disk, or log why not."""
        if self._ownership.membership.alone:
            return
        try:
            with self._guard:
                now_s = clock.monotonic_s()
                if now_s >= self._look_due_s:
                    recorded = self._records.volumes_on(self._ownership.node_id)
                    nothing: dict[str, list[Snapshot]] = {each: [] for each in recorded}
                    # A disk that cannot be seen says nothing: what is known stays.
                    self._known = nothing | self._on_disk()
                    self._look_due_s = now_s + _LOOK_EVERY_S
                self._write()
        except (RemoraError, OSError) as error:
            log.info("which snapshots are here is told later: %s", error)

    def _write(self) -> None:
        """Write the records that differ from what is known; the guard is held."""
        for volume_id, snapshots in list(self._known.items()):
            self._records.write(volume_id, self._ownership.node_id, snapshots)
            if not snapshots:
                del self._known[volume_id]

    def _on_disk(self) -> dict[str, list[Snapshot]]:
        """
        Return the snapshots of each volume of this node that has some.

        Raises:
            BackendError: a pool is not there, or went meanwhile.

        """
        found: dict[str, list[Snapshot]] = {}
        for backend in self._ownership.registry.all().values():
            if not backend.traits.reachable_from_every_node:
                for volume in backend.discover():
                    if snapshots := backend.snapshots.all(volume):
                        found[volume.id] = snapshots
                _require_there(backend)
        return found


def _require_there(backend: Backend) -> None:
    """Raise BackendError if what was not found may only be out of sight."""
    for storage in backend.storages():
        if storage.error:
            raise BackendError(storage.error)


@contextmanager
def on_their_node(
    ownership: OwnershipView, volume: Volume, name: str, *, command: str
) -> Iterator[None]:
    """
    Name the other node that has snapshot *name*, if this one turns out not to.

    Raises:
        NotOwnerError: another node has it, and *command* works there.

    """
    try:
        yield
    except SnapshotNotFoundError:
        for node_id, snapshots in ownership.nodes.snapshots.of(volume.id).items():
            # Here the disk counts: our own record may be older.
            elsewhere = node_id != ownership.node_id
            if elsewhere and any(each.name == name for each in snapshots):
                node = ownership.name_of(node_id)
                raise NotOwnerError(
                    f"snapshot '{name}' of '{volume.name}' is on node '{node}'",
                    hint=f"there: {command}",
                ) from None
        raise
