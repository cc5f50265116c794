"""
Letting the cluster know which snapshots lie on this node's disk.

The record follows the disk: each change of a volume's snapshots is told at once. Where
the cluster did not answer, or a crash came in between, `mend` makes up for it in a pass
of the reconciler. The whole disk is looked at once, after the start.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from backends.base import Snapshot, Volume
from backends.errors import RemoraError, SnapshotNotFoundError
from plugin.errors import NotOwnerError
from plugin.model import VolumeRecord
from plugin.ownership.view import OwnershipView

log = logging.getLogger(__name__)


class OwnSnapshots:
    """See the module's text; where all nodes share the bytes there is nothing to do."""

    def __init__(self, ownership: OwnershipView) -> None:
        self._ownership = ownership
        self._records = ownership.nodes.snapshots
        self._guard = threading.Lock()
        # The snapshots that the cluster is to know of; None before the first look.
        self._known: dict[str, list[Snapshot]] | None = None

    def tell(self, record: VolumeRecord) -> None:
        """Let others know which snapshots of a volume this node has now, or later."""
        if self._ownership.membership.alone or self._ownership.is_shared(record):
            return
        with self._guard:
            if self._known is not None:
                backend = self._ownership.backend_of(record)
                self._known[record.id] = backend.snapshots.all(record.volume())
        self.mend()

    def mend(self) -> None:
        """Make this node's records agree with its disk, or log why not."""
        if self._ownership.membership.alone:
            return
        own = self._ownership.node_id
        try:
            with self._guard:
                if self._known is None:
                    self._known = {each: [] for each in self._records.volumes_on(own)}
                    self._known |= self._on_disk()
                for volume_id, snapshots in list(self._known.items()):
                    self._records.write(volume_id, own, snapshots)
                    if not snapshots:
                        del self._known[volume_id]
        except (RemoraError, OSError) as error:
            log.info("which snapshots are here is told later: %s", error)

    def _on_disk(self) -> dict[str, list[Snapshot]]:
        """Return the snapshots of each volume of this node that has some."""
        found: dict[str, list[Snapshot]] = {}
        for backend in self._ownership.registry.all().values():
            if not backend.traits.reachable_from_every_node:
                for volume in backend.discover():
                    if snapshots := backend.snapshots.all(volume):
                        found[volume.id] = snapshots
        return found


@contextmanager
def on_their_node(
    ownership: OwnershipView, volume: Volume, name: str, *, command: str
) -> Iterator[None]:
    """
    Name the node that has snapshot *name*, if this one turns out not to have it.

    Raises:
        NotOwnerError: another node has it, and *command* works there.

    """
    try:
        yield
    except SnapshotNotFoundError:
        for node_id, snapshots in ownership.nodes.snapshots.of(volume.id).items():
            if any(each.name == name for each in snapshots):
                node = ownership.name_of(node_id)
                raise NotOwnerError(
                    f"snapshot '{name}' of '{volume.name}' is on node '{node}'",
                    hint=f"there: {command}",
                ) from None
        raise
