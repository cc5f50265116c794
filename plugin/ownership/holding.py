"""A volume that is mounted here, as the keeper knows it and as the guard is told."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backends.errors import BackendError
from backends.replication_options import ReplicationOptions
from backends.system.aside import begun
from backends.system.mountinfo import MountEntry
from plugin.fencing.held import HeldVolume, Policy
from plugin.model import VolumeRecord
from plugin.ownership.view import OwnershipView


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


class LeftCopies:
    """Reads the states of copies that an earlier process has left live."""

    def __init__(self, ownership: OwnershipView) -> None:
        self._ownership = ownership
        self._reading: Future[None] | None = None

    def learn(self, holdings: Sequence[Holding]) -> None:
        """Have read what is not known yet; nobody waits, for a disk may hang."""
        if self._reading is not None and not self._reading.done():
            return
        records = [each.record for each in holdings]
        unknown = [each for each in records if not self._ownership.knows_copy(each)]
        if unknown:
            self._reading = begun(partial(self._read, unknown), name="copies")

    def _read(self, records: Sequence[VolumeRecord]) -> None:
        for each in records:
            with suppress(BackendError):  # who uses the copy will tell
                self._ownership.copy_state(each)
