"""
A share whose server has another name now: its volumes are looked for there.

Nobody but people can say so. What answers under another name with the same identity may
be an older copy of the share, and a database would begin with what that has.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import msgspec

from backends.base import Volume
from backends.errors import InvalidRequestError
from backends.system.clock import Deadline
from plugin.errors import VolumeNotFoundError
from plugin.limits import SHORT_DEADLINE_S
from plugin.logs import fields
from plugin.model import VolumeRecord
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.operations import Operations
from plugin.volumes.shares import ShareRecords
from plugin.volumes.unmounting import Unmounting

log = logging.getLogger(__name__)
_MOVED: Final = ("server", "share")


class Storage(Protocol):
    """The backend that has shares."""

    def place_of(self, share: str) -> dict[str, str]:
        """Return `server` and `share` of SERVER:/PATH, or raise InvalidRequestError."""
        ...

    def find(
        self, name: str, *, deadline_s: float, beside: Volume | None = None
    ) -> Volume | None:
        """Return the volume *name* of the share that *beside* would be on."""
        ...

    def rewrite(self, volume: Volume, *, deadline_s: float) -> None:
        """Have the share of *volume* say what it is."""
        ...


@dataclass(frozen=True, slots=True)
class ShareMove:
    """Answers `remora share move`."""

    storage: Storage
    records: ShareRecords
    catalogue: Catalogue
    unmounting: Unmounting
    operations: Operations

    def move(self, share: str, to: str) -> list[str]:
        """
        Return the names of the volumes of *share* that are looked for on *to* now.

        Both are `server:/path`. It may be repeated: what an earlier call has moved is
        found moved.

        Raises:
            InvalidRequestError: *to* is no share, or another one; nothing has changed.
            VolumeBusyError: a volume is mounted; those before it have moved.
            NfsError, DeadlineError: *to* did not answer, or another node has one.

        """
        place = self.storage.place_of(to)
        share, to = _named(self.storage.place_of(share)), _named(place)
        records = sorted(self.records.on(share), key=lambda each: each.name)
        if not records and self.records.identity(share) == "":
            raise InvalidRequestError(
                f"no share '{share[:255]}' is known here",
                hint="remora status names them",
            )
        for record in records:
            self._require_there(record, _moved(record, place), share, to)
        for record in records:
            self.operations.run(
                record.name,
                partial(self._move, record, place),
                deadline_s=SHORT_DEADLINE_S,
            )
        return [each.name for each in records]

    def _require_there(
        self, record: VolumeRecord, moved: VolumeRecord, share: str, to: str
    ) -> None:
        """Raise unless the share *to* is the one that was *share*, with the volume."""
        found = self.storage.find(
            record.name, deadline_s=SHORT_DEADLINE_S, beside=moved.volume()
        )
        known = self.records.identity(share)
        if known and self.records.identity(to) not in ("", known):
            raise InvalidRequestError(
                f"{to} is another share than {share}",
                hint="a server that was replaced on purpose: remora share accept",
            )
        is_made = record.phase == "ready"
        if is_made and (found is None or found.id != record.id):
            raise InvalidRequestError(
                f"'{record.name}' of {share} is not on {to}",
                hint=f"if it was removed there: remora rm {record.name}",
            )

    def _move(
        self, seen: VolumeRecord, place: dict[str, str], deadline: Deadline
    ) -> None:
        stored = self.catalogue.find(seen.name)
        if stored is None or stored.record.id != seen.id:
            raise VolumeNotFoundError(f"'{seen.name}' was removed meanwhile")
        moved = _moved(stored.record, place)
        # Of what a crash or a dead server has left half made or removed only the record
        # moves, and with it the reconciler's work.
        if stored.record.phase == "ready":
            self.unmounting.require_unused(stored.record)
            # The old server, which may be dead, has no lease of an idle volume.
            if not self.unmounting.is_idle(stored.record):
                self.unmounting.drop_mount(stored.record, deadline)
            self.storage.rewrite(moved.volume(), deadline_s=deadline.remaining_s())
        self.catalogue.replace(stored, moved)
        log.info("its share has another name now", extra=fields(volume=seen.name))


def _named(place: dict[str, str]) -> str:
    """Return what records call the share."""
    return f"{place['server']}:{place['share']}"


def _moved(record: VolumeRecord, place: dict[str, str]) -> VolumeRecord:
    """Return *record* with its share at *place*; what was not asked for is not."""
    asked = {key: place[key] for key in _MOVED if key in record.requested}
    return msgspec.structs.replace(
        record,
        requested=record.requested | asked,
        options=record.options | place,
    )
