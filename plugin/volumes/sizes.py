"""
Larger volumes: the record says it first, then each node that has a copy holds it.

Where storage has no limit for the volume, what was asked for is written down alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from backends.base import Volume
from backends.errors import BackendError, DeadlineError
from backends.system.clock import Deadline
from backends.system.mounts import mounted_at
from backends.system.run import run
from plugin.errors import (
    OutOfRangeError,
    StorageSilentError,
    VolumeNotFoundError,
)
from plugin.limits import SHORT_DEADLINE_S
from plugin.model import VolumeRecord
from plugin.store.contention import attempted
from plugin.volumes.catalogue import Catalogue
from plugin.volumes.claims import capacity_of, wanted_size
from plugin.volumes.operations import Operations
from plugin.volumes.publications import Publications
from plugin.volumes.views import VolumeViews

# Storage that hangs lets whoever looks at it hang.
_LOOK_S: Final = 3.0
# Of blocks: their size, all, the free, those that users may have; then of names.
_FIGURES: Final = "%S %b %f %a %c %d"


class Sized(msgspec.Struct, frozen=True, kw_only=True):
    """A volume's size now, and whether storage holds it."""

    capacity_bytes: int
    limited: bool


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """How full a volume is, in bytes and in names."""

    total_bytes: int
    available_bytes: int
    used_bytes: int
    total_names: int
    available_names: int
    used_names: int


# Holds this node's copy to the size that the options have, within so many seconds.
Fit = Callable[[Volume, float], None]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What can be done with the sizes of volumes."""

    views: VolumeViews
    catalogue: Catalogue
    operations: Operations
    publications: Publications
    fit: Fit
    # The sizes that this process knows to be held, by the volumes' ids.
    _held: dict[str, str] = field(default_factory=dict)

    def grow(self, name: str, required_bytes: int, limit_bytes: int) -> Sized:
        """
        Return the size that the volume has then; one that is large enough stays.

        Raises:
            VolumeNotFoundError: there is no such volume.
            OutOfRangeError: its pool could never have so many bytes.

        """
        wanted = wanted_size(required_bytes, limit_bytes)
        self.views.existing(name)
        record = self.operations.run(
            name,
            lambda _: attempted(partial(self._grow, name, wanted, limit_bytes)),
            deadline_s=SHORT_DEADLINE_S,
        )
        return Sized(
            capacity_bytes=capacity_of(record), limited="size" in record.options
        )

    def hold(self, name: str) -> Sized:
        """Hold this node's copy of the volume to its size, and return that."""
        record = self.views.existing(name).record
        self.operations.run(
            name,
            lambda deadline: self.hold_now(record, deadline),
            deadline_s=SHORT_DEADLINE_S,
        )
        return Sized(
            capacity_bytes=capacity_of(record), limited="size" in record.options
        )

    def limited(self) -> Sequence[VolumeRecord]:
        """Return the volumes whose copy here may have to be held to another size."""
        found, held = self.catalogue.limited(), self._held
        return [each for each in found if held.get(each.id) != each.options["size"]]

    def hold_now(self, record: VolumeRecord, deadline: Deadline) -> None:
        """Do as `hold`; the volume's lock is held."""
        self.fit(record.volume(), deadline.remaining_s())
        # A copy that is made later is made with the size that there is then.
        self._held[record.id] = record.options.get("size", "")

    def usage(self, name: str, target: str) -> Usage:
        """
        Return how full the volume is that is published at *target*.

        Raises:
            VolumeNotFoundError: there is no such volume, or it is not there.
            StorageSilentError: its storage did not answer.

        """
        record = self.views.existing(name).record
        found = self.publications.at(target)
        if found is None or found.volume_id != record.id:
            raise VolumeNotFoundError(f"'{name}' is not published at {target[:255]}")
        if mounted_at(Path(found.path)) is None:
            raise VolumeNotFoundError(f"'{name}' is not mounted at {target[:255]}")
        limit_bytes = capacity_of(record) if "size" in record.options else 0
        return _usage(_seen(name, found.path), limit_bytes)

    def _grow(self, name: str, wanted: int, limit_bytes: int) -> VolumeRecord:
        stored = self.views.existing(name)
        record = stored.record
        has = capacity_of(record)
        if has >= wanted:
            if limit_bytes and has > limit_bytes:
                raise OutOfRangeError(
                    f"'{name}' has {has} bytes: a volume is made larger only"
                )
            return record
        for storage in self.views.ownership.backend_of(record).storages():
            if "size" in record.options and wanted > (storage.total_bytes or wanted):
                raise OutOfRangeError(
                    f"{wanted} bytes: the pool of this node has "
                    f"{storage.total_bytes} in all"
                )
        if "size" in record.options:
            size = {"size": str(wanted)}
            asked = size if "size" in record.requested else {}
            grown = msgspec.structs.replace(
                record,
                options={**record.options, **size},
                requested={**record.requested, **asked},
            )
        else:
            grown = msgspec.structs.replace(record, asked_bytes=wanted)
        self.catalogue.replace(stored, grown)
        self.hold_now(grown, Deadline(SHORT_DEADLINE_S))
        return grown


def _seen(name: str, path: str) -> list[int]:
    """
    Return what statvfs(3) tells of *path*, as `_FIGURES` has it.

    A thread of ours that storage kept would keep the mount in use, too, for as long as
    it hangs: nobody could take it away. A program can be killed.
    """
    try:
        told = run(["stat", "-f", "-c", _FIGURES, path], deadline_s=_LOOK_S).output
        return [int(each) for each in told.split()]
    except DeadlineError:
        raise StorageSilentError(f"the storage of '{name}' does not answer") from None
    except BackendError as error:
        raise StorageSilentError(f"cannot look at '{name}': {error.cause}") from error


def _usage(seen: Sequence[int], limit_bytes: int) -> Usage:
    """Return what the filesystem tells, which holds no more than *limit_bytes*."""
    block, blocks, free, usable, names, free_names = seen
    total, used, available = blocks * block, (blocks - free) * block, usable * block
    if limit_bytes and limit_bytes < total:
        # Btrfs tells of the whole pool, whatever a volume's limit is.
        total, available = limit_bytes, min(available, limit_bytes)
        used = min(used, total)
    return Usage(
        total_bytes=total,
        available_bytes=available,
        used_bytes=used,
        total_names=names,
        available_names=free_names,
        used_names=names - free_names,
    )
