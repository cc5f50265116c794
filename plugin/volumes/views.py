"""What can be seen of volumes: answered from local knowledge, whatever is down."""

from __future__ import annotations

from pathlib import Path

from backends.registry import Registry
from plugin.errors import VolumeNotFoundError
from plugin.model import VolumeRecord, VolumeSummary, VolumeView
from plugin.ownership.ownership import Ownership
from plugin.volumes.catalogue import Catalogue, Stored
from plugin.volumes.discovery import Discovery
from plugin.volumes.references import References


class VolumeViews:
    """The reading half of `VolumeService`."""

    def __init__(
        self,
        *,
        catalogue: Catalogue,
        registry: Registry,
        references: References,
        discovery: Discovery,
        ownership: Ownership,
        mount_dir: Path,
    ) -> None:
        self.catalogue = catalogue
        self.registry = registry
        self.references = references
        self.discovery = discovery
        self.ownership = ownership
        self.mount_dir = mount_dir

    def get(self, name: str) -> VolumeView:
        """
        Return the volume, from local knowledge.

        Raises:
            VolumeNotFoundError: there is none. Nothing that is merely down says so.

        """
        record = self.existing(name).record
        backend = self.registry.get(record.backend)
        count = self.references.total(record.id)
        return VolumeView(
            name=record.name,
            mountpoint=self.mountpoint(record),
            created_at=record.created_at,
            status={
                "id": record.id,
                "backend": record.backend,
                "phase": record.phase,
                "options": record.options,
                "references": {"live": count.live, "inherited": count.inherited},
                **backend.status(record.volume()),
                **self.ownership.facts(record),
                **self.ownership.replication.facts(record),
            },
        )

    def volumes(self) -> list[VolumeSummary]:
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

    def path(self, name: str) -> str:
        """Return the volume's mount point, "" while it is not mounted."""
        return self.mountpoint(self.existing(name).record)

    def mountpoint(self, record: VolumeRecord) -> str:
        """Return where *record* is mounted, "" if nobody asked for it."""
        if not self.references.total(record.id):
            return ""
        return str(self.target(record))

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
