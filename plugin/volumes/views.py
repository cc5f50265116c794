"""What can be seen of volumes: answered from local knowledge, whatever is down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from plugin.errors import VolumeNotFoundError
from plugin.model import VolumeRecord, VolumeSummary
from plugin.ownership.view import OwnershipFacts, OwnershipView
from plugin.replication.progress import TransferFacts
from plugin.volumes.catalogue import Catalogue, Stored
from plugin.volumes.discovery import Discovery
from plugin.volumes.references import Count, References


@dataclass(frozen=True, slots=True)
class VolumeView:
    """
    One volume as Docker and the CLI see it.

    ``mountpoint`` is "" if it is not mounted; ``storage`` are the backend's own facts.
    Without a cluster there is no ``ownership``, without copies there are no
    ``transfers``.
    """

    record: VolumeRecord
    mountpoint: str
    references: Count
    storage: Mapping[str, object]
    ownership: OwnershipFacts | None
    transfers: Sequence[TransferFacts] | None

    def status(self) -> dict[str, object]:
        """Return all but name and mount point, as it is shown in one object."""
        record = self.record
        status: dict[str, object] = {
            "id": record.id,
            "backend": record.backend,
            "phase": record.phase,
            "options": record.options,
            "references": {
                "live": self.references.live,
                "inherited": self.references.inherited,
            },
            **self.storage,
        }
        if self.ownership is not None:
            status |= msgspec.to_builtins(self.ownership)
        if self.transfers is not None:
            status["transfers"] = msgspec.to_builtins(self.transfers)
        return status


@dataclass(frozen=True, slots=True)
class VolumeViews:
    """Answers Get, Path and List."""

    catalogue: Catalogue
    references: References
    discovery: Discovery
    ownership: OwnershipView
    transfers: Callable[[VolumeRecord], Sequence[TransferFacts] | None]
    mount_dir: Path

    def get(self, name: str) -> VolumeView:
        """
        Return the volume, from local knowledge.

        Raises:
            VolumeNotFoundError: there is none; never because something is down.

        """
        record = self.existing(name).record
        backend = self.ownership.backend_of(record)
        return VolumeView(
            record=record,
            mountpoint=self._mountpoint(record),
            references=self.references.total(record.id),
            storage=backend.status(record.volume()),
            ownership=self.ownership.facts(record),
            transfers=self.transfers(record),
        )

    def all(self) -> list[VolumeSummary]:
        """Return what a list shows of all volumes, from local knowledge."""
        mounted = set(self.references.volumes())
        return [
            VolumeSummary(
                id=head.id,
                name=head.name,
                backend=head.backend,
                mountpoint=f"{self.mount_dir}/{head.id}" if head.id in mounted else "",
                created_at=head.created_at,
            )
            for head in self.catalogue.heads()
            if head.phase != "creating"
        ]

    def is_healthy(self, record: VolumeRecord) -> bool:
        """Return whether the storage of the volume's backend was well, last time."""
        # The status of a volume says more, if the backend knows its storage.
        storages = self.ownership.backend_of(record).storages()
        return not any(each.error for each in storages)

    def held_or_mounted(self) -> list[VolumeRecord]:
        """Return the volumes with references, or with a mount point's directory."""
        ids = set(self.references.volumes())
        ids.update(each.name for each in self.mount_dir.iterdir())
        return self.catalogue.of_ids(ids)

    def path(self, name: str) -> str:
        """Return the volume's mount point, "" while it is not mounted."""
        return self._mountpoint(self.existing(name).record)

    def target(self, record: VolumeRecord) -> Path:
        """Return the mount point that belongs to *record*."""
        return self.mount_dir / record.id

    def existing(self, name: str) -> Stored:
        """Return the record of *name*, or raise VolumeNotFoundError."""
        stored = self.catalogue.find(name)
        if stored is None:
            self.discovery.look_for(name)
            stored = self.catalogue.find(name)
        if stored is None or stored.record.phase == "creating":
            raise VolumeNotFoundError(f"there is no volume '{name[:255]}'")
        return stored

    def _mountpoint(self, record: VolumeRecord) -> str:
        """Return where *record* is mounted, "" if it has no references."""
        held = self.references.total(record.id)
        return str(self.target(record)) if held else ""
