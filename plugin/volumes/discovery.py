"""
Keeping records in step with backends whose catalogue is on storage.

Other nodes create and remove volumes there. A volume that they have made gets a record
here; the record of one that they have removed is deleted, unless this node uses it.
Storage that cannot be read changes nothing.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Final

from backends.base import Backend
from backends.errors import RemoraError, VolumeBusyError
from backends.registry import Registry
from backends.system.clock import Deadline
from plugin.logs import fields
from plugin.model import NAME_PATTERN, VolumeHead, VolumeRecord
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.operations import VolumeLocks
from plugin.volumes.references import References

log = logging.getLogger(__name__)
# For the look for one name without a record: the engine waits for it.
_FIND_DEADLINE_S: Final = 1.0
_LOCK_WAIT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Discovery:
    """Mirrors the catalogues of shared storage into the records."""

    catalogue: Catalogue
    registry: Registry
    references: References
    locks: VolumeLocks

    def look_for(self, name: str) -> None:
        """Make a record of volume *name* if storage has it and we do not know it."""
        if not NAME_PATTERN.fullmatch(name):
            return
        for backend in self._shared():
            try:
                volume = backend.find(name, deadline_s=_FIND_DEADLINE_S)
                if volume is not None:
                    self.catalogue.insert(VolumeRecord.of(volume, backend=backend.kind))
                    return
            except RemoraError as error:
                log.warning("'%s' was not looked for: %s", name, error)

    def synchronise(self) -> None:
        """Compare every record of shared storage with what was last seen there."""
        for backend in self._shared():
            found = {volume.name: volume for volume in backend.discover()}
            for head in self.catalogue.heads():
                if head.backend != backend.kind:
                    found.pop(head.name, None)  # the name is taken here
                    continue
                seen = found.pop(head.name, None)
                if seen is None or seen.id != head.id:
                    self._check(backend, head)
            # Their volumes have records, if none that can be read.
            for name in sorted({*found}.difference(self.catalogue.unreadable())):
                self._adopt(backend, name)

    def _shared(self) -> list[Backend]:
        return [
            backend
            for backend in self.registry.all().values()
            if backend.traits.catalogue_on_storage
        ]

    def _adopt(self, backend: Backend, name: str) -> None:
        """
        Make a record of a volume that storage had when it was last read.

        It may have been removed since, so storage is asked again, under its lock.
        """
        try:
            with self.locks.hold(name, Deadline(_LOCK_WAIT_S)):
                if self.catalogue.find(name) is not None:
                    return
                volume = backend.find(name, deadline_s=_FIND_DEADLINE_S)
                if volume and self.catalogue.insert(
                    VolumeRecord.of(volume, backend=backend.kind)
                ):
                    log.info("found", extra=fields(volume=name, id=volume.id))
        except VolumeBusyError:
            return
        except RemoraError as error:
            log.warning("'%s' was not looked at: %s", name, error)
        except Exception:  # whatever is wrong with it, the others are looked at
            log.exception("'%s' was not looked at", name)

    def _check(self, backend: Backend, head: VolumeHead) -> None:
        """
        Delete or replace a record whose volume storage did not have when last read.

        It may have been made since, so storage is asked again, under the volume's lock.
        """
        if head.phase != "ready" or self.references.total(head.id):
            return  # it is used here: its mount shows what is wrong
        try:
            with self.locks.hold(head.name, Deadline(_LOCK_WAIT_S)):
                stored = self.catalogue.find(head.name)
                if stored is None or stored.record.id != head.id:
                    return
                volume = stored.record.volume()
                if stored.record.phase != "ready" or not backend.knows(volume):
                    return
                seen = backend.find(head.name, deadline_s=_FIND_DEADLINE_S)
                if not backend.knows(volume):
                    return
                if seen is None:
                    self.catalogue.delete(stored)
                    log.info("removed elsewhere", extra=fields(volume=head.name))
                elif seen.id != head.id:
                    self.catalogue.replace(
                        stored, VolumeRecord.of(seen, backend=backend.kind)
                    )
                    log.info("replaced elsewhere", extra=fields(volume=head.name))
        except VolumeBusyError:
            return
        except RemoraError as error:
            log.warning("'%s' was not checked: %s", head.name, error)
        except Exception:  # whatever is wrong with it, the others are looked at
            log.exception("'%s' was not checked", head.name)
