"""All that can be done with the volumes of a node, each in its own part."""

from __future__ import annotations

from dataclasses import dataclass

from plugin.ownership.granting import Grant
from plugin.ownership.wishes import Action
from plugin.volumes.adoption import Adoption
from plugin.volumes.claimed_snapshots import ClaimedSnapshots
from plugin.volumes.claims import Claims
from plugin.volumes.creation import Creation
from plugin.volumes.history import VolumeHistory
from plugin.volumes.mounting import Mounting
from plugin.volumes.operations import Operations
from plugin.volumes.publishing import Publishing
from plugin.volumes.quarantine import QuarantineService
from plugin.volumes.reconciler import Reconciler
from plugin.volumes.removal import Removal
from plugin.volumes.sizes import Sizes
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
    publishing: Publishing
    removal: Removal
    snapshots: SnapshotService
    claims: Claims
    claimed_snapshots: ClaimedSnapshots
    sizes: Sizes
    adoption: Adoption
    quarantine: QuarantineService
    history: VolumeHistory
    reconciler: Reconciler
    operations: Operations

    def grants(self) -> dict[Action, Grant]:
        """Return what is done here for nodes that wish it in the store."""
        return {
            "yield": self.publishing.grant,
            "create": self.claims.grant,
            "snapshot": self.claimed_snapshots.grant_create,
            "forget-snapshot": self.claimed_snapshots.grant_remove,
        }
