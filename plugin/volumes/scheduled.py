"""What schedulers can do with volumes, each in its own part; engines have no need."""

from __future__ import annotations

from dataclasses import dataclass

from plugin.ownership.granting import Grant
from plugin.ownership.parts import Asking
from plugin.ownership.wishes import Action
from plugin.volumes.claimed_snapshots import ClaimedSnapshots
from plugin.volumes.claims import Claims
from plugin.volumes.creation import Creation
from plugin.volumes.elsewhere import Elsewhere
from plugin.volumes.mounting import Mounting
from plugin.volumes.publishing import Percent, Publishing
from plugin.volumes.sizes import Fit, Sizes
from plugin.volumes.snapshots import SnapshotService


@dataclass(frozen=True, slots=True)
class Scheduled:
    """The parts."""

    publishing: Publishing
    claims: Claims
    snapshots: ClaimedSnapshots
    sizes: Sizes

    @classmethod
    def of(
        cls,
        mounting: Mounting,
        creation: Creation,
        snapshots: SnapshotService,
        *,
        asking: Asking | None,
        percent: Percent,
        fit: Fit,
    ) -> Scheduled:
        """Return the parts, made of what engines and people have."""
        catalogue, operations = creation.catalogue, creation.operations
        publications = mounting.references.publications
        elsewhere = Elsewhere(creation.ownership, asking)
        return cls(
            Publishing(mounting, publications, asking, percent),
            Claims(creation, catalogue, elsewhere),
            ClaimedSnapshots(snapshots, catalogue, operations, elsewhere),
            Sizes(creation.views, catalogue, operations, publications, fit),
        )

    def grants(self) -> dict[Action, Grant]:
        """Return what is done here for nodes that wish it in the store."""
        return {
            "yield": self.publishing.grant,
            "create": self.claims.grant,
            "snapshot": self.snapshots.grant_create,
            "forget-snapshot": self.snapshots.grant_remove,
        }
