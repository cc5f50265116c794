"""
What `remora repair` does with records.

They are made anew for volumes that storage has but the store does not know; those of
volumes that were never made to the end go.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from backends.base import Backend, Volume
from backends.errors import RemoraError, VolumeExistsError
from backends.system.clock import Deadline
from plugin.errors import NotOwnerError, StoreError
from plugin.limits import LONG_DEADLINE_S, SHORT_DEADLINE_S
from plugin.model import VolumeRecord, check_name
from plugin.ownership.older_records import is_older
from plugin.ownership.view import OwnershipView
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.operations import Operations
from plugin.volumes.removal import Removal
from plugin.volumes.views import VolumeViews


@dataclass(frozen=True, slots=True)
class Adoption:
    """See the module's text."""

    views: VolumeViews
    catalogue: Catalogue
    operations: Operations
    ownership: OwnershipView
    removal: Removal

    def adopt(self, *, dry_run: bool) -> dict[str, list[str]]:
        """
        Return the names ``adopted``, ``undone``, and, with the reason, ``refused``.

        A volume is refused if a record has its name under another id: a person has to
        say which of the two is the right one. Nothing on storage is changed.

        Raises:
            StoreError: a record cannot be read, which may be that of any volume found.

        """
        if unreadable := self.catalogue.unreadable():
            raise StoreError(
                f"the record of '{unreadable[0]}' cannot be read, so that nobody knows "
                "which volumes have none",
                hint="mend or remove it, then repeat: remora repair",
            )
        known = self.catalogue.names()
        report: dict[str, list[str]] = {"adopted": [], "undone": [], "refused": []}
        for backend in self.ownership.registry.all().values():
            for volume in backend.discover():
                if volume.id in known:
                    continue
                try:
                    self._adopt(backend, volume, dry_run=dry_run)
                except RemoraError as error:
                    report["refused"].append(f"{volume.name} ({volume.id}): {error}")
                else:
                    report["adopted"].append(volume.name)
        self._undo_left_over(report, dry_run=dry_run)
        return report

    def _undo_left_over(self, report: dict[str, list[str]], *, dry_run: bool) -> None:
        """Undo creations that nothing goes on with; *report* them."""
        busy = self.operations.under_way()
        for name in self.views.left_over():
            seen = self.catalogue.find(name)
            if name in busy or seen is None or seen.record.phase != "creating":
                continue
            try:
                undone = dry_run or self.operations.run(
                    name, partial(self._undo, seen.record), deadline_s=SHORT_DEADLINE_S
                )
            except RemoraError as error:
                report["refused"].append(f"{name}: {error}")
            else:
                report["undone"] += [name] if undone else []

    def _undo(self, seen: VolumeRecord, deadline: Deadline) -> bool:
        """
        Return whether the creation *seen* was undone; the volume's lock is held.

        It may have been made to the end meanwhile, or another in its place.
        """
        stored = self.catalogue.find(seen.name)
        if stored is None or stored.record.id != seen.id:
            return False
        if stored.record.phase != "creating":
            return False
        self.removal.roll_back_creation(stored, deadline)
        return True

    def _adopt(self, backend: Backend, volume: Volume, *, dry_run: bool) -> None:
        check_name(volume.name)
        options = backend.parse_options(volume.options)
        if self.ownership.heads.is_removed(volume.id):
            raise VolumeExistsError(
                "it was removed on another node",
                hint="it goes to the trash when it has no snapshots and nothing is set "
                f"apart: remora snapshot ls {volume.id}, remora quarantine ls",
            )
        with self.operations.locks.hold(volume.name, Deadline(LONG_DEADLINE_S)):
            taken = self.catalogue.find(volume.name)
            if taken is not None:
                raise VolumeExistsError(
                    f"the name belongs to volume {taken.record.id}",
                    hint="remove or rename one of them",
                )
            record = VolumeRecord(
                id=volume.id,
                name=volume.name,
                backend=backend.kind,
                requested={**options, "backend": backend.kind},
                options={**backend.default_options(), **options},
                created_at=volume.created_at,
                phase="ready",
                node=self.ownership.node_id,
            )
            if not self.ownership.membership.alone and is_older(self.ownership, record):
                raise NotOwnerError(
                    "its copy here was used, and the store does not know by whom",
                    hint="load newer records: docs/guides/cluster-records.md",
                )
            if not dry_run:
                self.catalogue.insert(record)
