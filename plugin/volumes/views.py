"""What can be seen of volumes: answered from local knowledge, whatever is down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from backends.errors import InvalidRequestError, RemoraError
from backends.system.clock import Deadline
from plugin.errors import VolumeNotFoundError
from plugin.limits import GET_WAIT_S, LIST_WAIT_S
from plugin.model import VolumeRecord, VolumeSummary
from plugin.ownership.view import OwnershipFacts, OwnershipView
from plugin.replication.progress import CopyFacts
from plugin.volumes.catalogue import Catalogue, Stored
from plugin.volumes.discovery import Discovery
from plugin.volumes.patience import CallerGone, Patience
from plugin.volumes.publications import Publication
from plugin.volumes.references import Count, References


@dataclass(frozen=True, slots=True)
class VolumeView:
    """
    One volume as Docker and the CLI see it.

    ``mountpoint`` is "" if it is not mounted; ``storage`` are the backend's own facts.
    Without a cluster there is no ``ownership``, and without copies on other nodes
    nothing is said of ``copies``. ``published`` is where schedulers have it.
    """

    record: VolumeRecord
    mountpoint: str
    references: Count
    storage: Mapping[str, object]
    ownership: OwnershipFacts | None
    copies: CopyFacts | None
    published: Sequence[Publication] = ()

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
        if self.record.claim:
            status["claim"] = self.record.claim
        if self.published:
            status["published"] = [each.shown() for each in self.published]
        if self.ownership is not None:
            status |= msgspec.to_builtins(self.ownership)
        if self.copies is not None:
            status |= msgspec.to_builtins(self.copies)
        return status


@dataclass(frozen=True, slots=True)
class VolumeViews:
    """
    Answers Get, Path and List.

    An engine has *patience* while nobody knows yet whether there is such a volume.
    """

    catalogue: Catalogue
    references: References
    discovery: Discovery
    ownership: OwnershipView
    copies: Callable[[VolumeRecord], CopyFacts | None]
    mount_dir: Path
    patience: Patience

    def get_for_engine(self, name: str, *, caller_gone: CallerGone) -> VolumeView:
        """
        Return the volume as `get` does; it takes its time before it cannot say.

        Raises:
            VolumeNotFoundError: there is none.
            NotKnownYetError: nobody could say in `GET_WAIT_S`.

        """
        return self.patience.run(
            f"the look for '{name[:255]}'",
            lambda _: self.get(name),
            Deadline(GET_WAIT_S),
            caller_gone=caller_gone,
        )

    def all_for_engine(self) -> list[VolumeSummary]:
        """Return `all`, once each share was looked at, or soon after the start."""
        self.discovery.await_first_look(LIST_WAIT_S)
        return self.all()

    def get(self, name: str) -> VolumeView:
        """
        Return the volume, from local knowledge.

        Raises:
            VolumeNotFoundError: there is none; never because something is down.

        """
        record = self.existing(name).record
        storage = dict(self.ownership.backend_of(record).status(record.volume()))
        if lacking := self.ownership.warnings(record):
            storage["warnings"] = lacking
        return VolumeView(
            record=record,
            mountpoint=self._mountpoint(record),
            references=self.references.total(record.id),
            storage=storage,
            ownership=self.ownership.facts(record),
            copies=self.copies(record),
            published=self.references.publications.of(record.id),
        )

    def look_at(self, name: str) -> VolumeView:
        """
        Return the volume for people: as `get` does, and also one that is being made.

        Of such a one nothing but the record is shown: there may be nothing else yet.

        Raises:
            VolumeNotFoundError: there is none.

        """
        stored = self.catalogue.find(name)
        if stored is None or stored.record.phase != "creating":
            return self.get(name)
        facts = {"being_made_on": self.ownership.name_of(stored.record.node)}
        return VolumeView(stored.record, "", Count(), facts, None, None)

    def left_over(self) -> list[str]:
        """Return the volumes whose making has begun and is for this node to end."""
        ids = {each.id for each in self.catalogue.heads() if each.phase == "creating"}
        found = self.catalogue.of_ids(ids)
        is_ours = self.ownership.is_ours_to_finish
        return [each.name for each in found if is_ours(each)]

    def all(self, *, being_made: bool = False) -> list[VolumeSummary]:
        """
        Return what a list shows of all volumes, from local knowledge.

        Those that are *being_made* are for people: an engine would take them for there.
        """
        mounted = set(self.references.volumes())
        return [
            VolumeSummary(
                id=head.id,
                name=head.name,
                backend=head.backend,
                mountpoint=self.path_of(head.id) if head.id in mounted else "",
                created_at=head.created_at,
            )
            for head in self.catalogue.heads()
            if being_made or head.phase != "creating"
        ]

    def unreadable(self) -> Sequence[str]:
        """Return the names of volumes whose records cannot be read."""
        return self.catalogue.unreadable()

    def require_readable(self, volume_id: str) -> None:
        """Raise StoreError if what the store says of the volume cannot be read."""
        self.ownership.heads.read(volume_id)

    def is_healthy(self, record: VolumeRecord) -> bool:
        """Return whether the storage of the volume's backend was well, last time."""
        # The status of a volume says more, if the backend knows its storage.
        storages = self.ownership.backend_of(record).storages()
        return not any(each.error for each in storages)

    def is_there(self, name: str) -> bool:
        """Return whether a volume could be mounted, as far as is known here."""
        try:
            record = self.existing(name).record
        except RemoraError:
            return False
        backend = self.ownership.backend_of(record)
        if self.ownership.exclusive(record) and self.ownership.membership.fault():
            return False
        if backend.traits.catalogue_on_storage:
            health = backend.status(record.volume()).get("health", "ok")
            return record.phase == "ready" and health == "ok"
        return record.phase == "ready" and self.is_healthy(record)

    def held_or_mounted(self) -> list[VolumeRecord]:
        """Return the volumes with references, or with a mount point's directory."""
        ids = set(self.references.volumes())
        ids.update(each.name for each in self.mount_dir.iterdir())
        return self.catalogue.of_ids(ids)

    def path(self, name: str) -> str:
        """Return where the volume is mounted, or would be."""
        return self.path_of(self.existing(name).record.id)

    def path_of(self, volume_id: str) -> str:
        """
        Return where the volume is mounted, or would be.

        Never "": a script that puts `/*` behind it would mean the root directory.
        """
        return f"{self.mount_dir}/{volume_id}"

    def target(self, record: VolumeRecord) -> Path:
        """Return the mount point that belongs to *record*."""
        return self.mount_dir / record.id

    def existing(self, name: str) -> Stored:
        """
        Return the record of *name*.

        Raises:
            VolumeNotFoundError: there is none.
            NotKnownYetError: nobody can say.

        """
        stored = self.catalogue.find(name)
        if stored is None:
            self.discovery.look_for(name)
            stored = self.catalogue.find(name)
        if stored is None or stored.record.phase == "creating":
            raise VolumeNotFoundError(f"there is no volume '{name[:255]}'")
        return stored

    def with_snapshots(self, name: str) -> VolumeRecord:
        """
        Return the volume; or, by name or id, what is left here of a removed one.

        Raises:
            VolumeNotFoundError: there is none.
            InvalidRequestError: several removed volumes had that name.

        """
        try:
            return self.existing(name).record
        except VolumeNotFoundError:
            found: list[VolumeRecord] = []
            for volume_id, tomb in self.ownership.heads.tombs().items():
                if name not in (volume_id, tomb.name):
                    continue
                backend = self.ownership.registry.get(tomb.backend)
                left = VolumeRecord(
                    id=volume_id,
                    name=tomb.name,
                    backend=tomb.backend,
                    requested={},
                    options=backend.default_options(),
                    created_at="",
                    phase="removing",
                )
                if backend.copy_directory(left.volume()) is not None:
                    found.append(left)
            if not found:
                raise
        if len(found) > 1:
            ids = ", ".join(sorted(each.id for each in found)[:5])
            raise InvalidRequestError(
                f"several removed volumes were called '{name}'",
                hint=f"use the id: {ids}",
            )
        return found[0]

    def _mountpoint(self, record: VolumeRecord) -> str:
        """Return where *record* is mounted, "" if it has no references."""
        held = self.references.total(record.id)
        return self.path_of(record.id) if held else ""
