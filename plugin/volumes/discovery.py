"""
Keeping records in step with backends whose catalogue is on storage.

Other nodes create and remove volumes there. A volume that they have made gets a record
here; the record of one that they have removed is deleted, unless this node uses it.
Storage that cannot be read changes nothing.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from backends.base import ANONYMOUS, Backend, Storage, Volume
from backends.errors import RemoraError, VolumeBusyError
from backends.registry import Registry
from backends.system.clock import Deadline, pause
from plugin.errors import NotKnownYetError
from plugin.logs import fields
from plugin.model import NAME_PATTERN, VolumeRecord
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.operations import VolumeLocks
from plugin.volumes.references import References

log = logging.getLogger(__name__)
# For the look for one name without a record: the engine waits for it.
_FIND_DEADLINE_S: Final = 1.0
_LOCK_WAIT_S: Final = 0.05
_LOOK_AGAIN_S: Final = 0.05
# What others have put on storage is told once; no more lines than these.
_TOLD_MAX: Final = 1000
# The volumes of one name, by the storage that each is on.
_Seen = dict[str, Volume]


@dataclass(frozen=True, slots=True)
class Discovery:
    """
    Mirrors the catalogues of shared storage into the records.

    *unread* says why the records themselves may lack volumes, "" if they do not.
    """

    catalogue: Catalogue
    registry: Registry
    references: References
    locks: VolumeLocks
    unread: Callable[[], str] = str
    _told: set[str] = field(default_factory=set)

    def look_for(self, name: str) -> None:
        """
        Make a record of volume *name* if storage has it and we do not know it.

        Raises:
            NotKnownYetError: it may be where nobody has looked since our start. An
                engine that hears "no" makes a volume of another driver in its place.

        """
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
        unread = [f"{each.name}: {each.error}" for each in self._unread()]
        if ANONYMOUS.fullmatch(name):
            # An engine has just made it up, or the records have it: nobody types one.
            unread = []
        if why := self.unread() or "; ".join(unread):
            raise NotKnownYetError(
                f"whether there is a volume '{name}' is not known: since the start "
                f"nobody has read {why}",
                hint="retry when it answers; remora status shows it",
            )

    def await_first_look(self, within_s: float) -> None:
        """Return when each configured share was looked at once, or after *within_s*."""
        deadline = Deadline(within_s)
        while not deadline.passed() and not all(each.error for each in self._unread()):
            pause(_LOOK_AGAIN_S)

    def synchronise(self) -> None:
        """Compare every record of shared storage with what was last seen there."""
        for backend in self._shared():
            found: dict[str, _Seen] = defaultdict(dict)
            for volume in backend.discover():
                found[volume.name][_storage_of(volume, backend)] = volume
            heads = self.catalogue.heads()
            for head in heads:
                if head.backend == backend.kind:
                    for record in self.catalogue.of_ids((head.id,)):
                        self._compare(backend, record, found.get(record.name, {}))
            # Their volumes have records, if none that can be read.
            known = {head.name for head in heads}.union(self.catalogue.unreadable())
            for name in sorted(found.keys() - known):
                self._adopt(backend, name, found[name])

    def _unread(self) -> list[Storage]:
        storages = [each for backend in self._shared() for each in backend.storages()]
        return [each for each in storages if each.unread]

    def _shared(self) -> list[Backend]:
        return [
            backend
            for backend in self.registry.all().values()
            if backend.traits.catalogue_on_storage
        ]

    def _compare(self, backend: Backend, record: VolumeRecord, seen: _Seen) -> None:
        """Check *record* by what its own storage says; others have no say in it."""
        own = _storage_of(record, backend)
        if own not in seen or seen[own].id != record.id:
            self._check(backend, record)
        for other, volume in seen.items():
            if other != own and volume.id != record.id:
                self._tell(f"'{record.name}' is a volume on {own}: not that on {other}")

    def _adopt(self, backend: Backend, name: str, seen: _Seen) -> None:
        """
        Make a record of a volume that storage had when it was last read.

        It may have been removed since, so storage is asked again, under its lock.
        """
        if len(seen) > 1:
            self._tell(
                f"'{name}' is on {' and '.join(sorted(seen))}: passed over (hint: "
                "create it with the options of the one that is meant)"
            )
            return
        [beside] = seen.values()
        try:
            with self.locks.hold(name, Deadline(_LOCK_WAIT_S)):
                if self.catalogue.find(name) is not None:
                    return
                volume = backend.find(name, deadline_s=_FIND_DEADLINE_S, beside=beside)
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

    def _check(self, backend: Backend, record: VolumeRecord) -> None:
        """
        Delete or replace a record whose volume storage did not have when last read.

        It may have been made since, so storage is asked again, under the volume's lock.
        """
        if record.phase != "ready" or self.references.total(record.id):
            return  # it is used here: its mount shows what is wrong
        try:
            with self.locks.hold(record.name, Deadline(_LOCK_WAIT_S)):
                stored = self.catalogue.find(record.name)
                if stored is None or stored.record.id != record.id:
                    return
                volume = stored.record.volume()
                if stored.record.phase != "ready" or not backend.knows(volume):
                    return
                seen = backend.find(
                    record.name, deadline_s=_FIND_DEADLINE_S, beside=volume
                )
                if not backend.knows(volume):
                    return
                if seen is None:
                    self.catalogue.delete(stored)
                    log.info("removed elsewhere", extra=fields(volume=record.name))
                elif seen.id != record.id:
                    self.catalogue.replace(
                        stored, VolumeRecord.of(seen, backend=backend.kind)
                    )
                    log.info("replaced elsewhere", extra=fields(volume=record.name))
        except VolumeBusyError:
            return
        except RemoraError as error:
            log.warning("'%s' was not checked: %s", record.name, error)
        except Exception:  # whatever is wrong with it, the others are looked at
            log.exception("'%s' was not checked", record.name)

    def _tell(self, line: str) -> None:
        """Log *line* once, as far as can be remembered."""
        if line not in self._told and len(self._told) < _TOLD_MAX:
            self._told.add(line)
            log.warning("%s", line)


def _storage_of(volume: Volume | VolumeRecord, backend: Backend) -> str:
    """Return what its options say of the storage that *volume* is on."""
    return ":".join(
        volume.options.get(key, "") for key in backend.traits.storage_options
    )
