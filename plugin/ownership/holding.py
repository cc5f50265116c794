"""A volume that is mounted here, as the keeper knows it and as the guard is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from backends.replication_options import ReplicationOptions
from backends.system.mountinfo import MountEntry
from plugin.fencing.held import HeldVolume, Policy
from plugin.model import VolumeRecord


@dataclass(slots=True, eq=False)
class Holding:
    """
    A volume mounted at *target* in *epoch*, 0 while nobody could read in which.

    Without a *target* the daemon itself is about to change its bytes.
    """

    record: VolumeRecord
    epoch: int
    target: Path | None
    # What the log was told last: whether its writers may write.
    valid: bool = True
    # When another node had it and no writer was left, in `clock.monotonic_s`.
    lost_s: float = math.inf

    @property
    def fence(self) -> Policy:
        """What becomes of its writers when the volume is lost."""
        return ReplicationOptions.of(self.record.options).fence

    def as_held(
        self,
        entry: MountEntry,
        deadline_s: float | None,
        *,
        freeze_max_s: float,
        shared: bool,
    ) -> HeldVolume:
        """
        Return what the guard is told; *entry* is the mount.

        If nobody knows *deadline_s*, it goes on with what it was told before.
        """
        return HeldVolume(
            id=self.record.id,
            epoch=self.epoch,
            device=entry.device,
            root=entry.root,
            target=str(self.target),
            # JSON knows no infinity.
            deadline_s=max(deadline_s or 0.0, 0.0),
            freeze_max_s=freeze_max_s,
            policy=self.fence,
            source=entry.source if shared else "",
            as_before=deadline_s is None,
        )
