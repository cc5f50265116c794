"""All that can be done with the volumes of a node, each in its own part."""

from __future__ import annotations

from dataclasses import dataclass

from plugin.volumes.adoption import Adoption
from plugin.volumes.creation import Creation
from plugin.volumes.history import VolumeHistory
from plugin.volumes.mounting import Mounting
from plugin.volumes.operations import Operations
from plugin.volumes.quarantine import QuarantineService
from plugin.volumes.reconciler import Reconciler
from plugin.volumes.removal import Removal
from plugin.volumes.scheduled import Scheduled
from plugin.volumes.snapshots import SnapshotService
from plugin.volumes.unmounting import Unmounting
from plugin.volumes.views import VolumeViews


@dataclass(frozen=True, slots=True)
class UseCases:
    """The parts, which share *operations*."""

    views: VolumeViews
    creation: Creation
    mounting: Mounting
    unmounting: Unmounting
    removal: Removal
    snapshots: SnapshotService
    scheduled: Scheduled
    adoption: Adoption
    quarantine: QuarantineService
    history: VolumeHistory
    reconciler: Reconciler
    operations: Operations
