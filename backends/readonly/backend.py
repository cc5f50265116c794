"""
The backend `readonly`: a volume that is the last commit of another one, to be read.

    docker volume create -d remora -o readonly_copy=db db-backup

Nobody owns it: it may be mounted on every node that has a copy of `db`, at once, while
`db` is in use elsewhere. What it shows is taken at the first Mount on a node and goes
with the last Unmount there; of a volume on a share it is the share, mounted read-only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from backends import options as parse
from backends.base import NOTHING, Fill, Snapshot, Storage, Volume
from backends.errors import BackendError, InvalidRequestError, RemoraError
from backends.nfs.backend import NfsBackend
from backends.readonly.copies import ReadonlyCopies
from backends.readonly.sources import Source, Sources
from backends.readonly.traits import OPTION, TRAITS
from backends.rsync.backend import RsyncBackend
from backends.snapshots import not_found
from backends.system import mounts
from backends.system.aside import Looks
from backends.system.clock import Deadline
from backends.system.copying import Progress
from backends.system.mounts import VolumeUser

_PARSERS: Final[Mapping[str, parse.Parser]] = {OPTION: parse.volume_name}
_FIND_DEADLINE_S: Final = 10.0


class ReadonlyBackend:
    """Shows what *rsync* and *nfs* have of the volumes that *sources* knows."""

    kind = "readonly"
    traits = TRAITS

    def __init__(
        self, rsync: RsyncBackend, nfs: NfsBackend, sources: Sources, mount_dir: Path
    ) -> None:
        self._nfs, self._shared_kind, self._copied_kind = nfs, nfs.kind, rsync.kind
        self._sources = sources
        self._copies = ReadonlyCopies(rsync, sources, mount_dir)
        self._looks = Looks()
        self.snapshots = _NoSnapshots()

    def parse_options(self, raw: Mapping[str, str]) -> dict[str, str]:
        """Return *raw* in canonical form; see `Backend.parse_options`."""
        return parse.parse_options(raw, _PARSERS, backend=self.kind)

    def default_options(self, _name: str = "", /) -> dict[str, str]:
        """Return none: which volume is read has to be said."""
        return {}

    def merge_options(
        self, base: Mapping[str, str], over: Mapping[str, str]
    ) -> dict[str, str]:
        """Return *base* with *over* on top."""
        return {**base, **over}

    def claims(self, raw: Mapping[str, str]) -> bool:
        """Return whether *raw* names a volume to be read."""
        return OPTION in {key.lower() for key in raw}

    def implied(self, _raw: Mapping[str, str], /) -> Collection[str]:
        """Return none: the option stands for itself."""
        return ()

    def require_creatable(self, volume: Volume, *, filled: bool) -> None:
        """
        Raise unless the options name what can be read.

        A volume that is not there yet may come: Compose makes all volumes of a file in
        no order.
        """
        if OPTION not in volume.options:
            raise InvalidRequestError(
                f"backend 'readonly' needs the option '{OPTION}'",
                hint=f"-o {OPTION}=VOLUME",
            )
        name = _source_name(volume)
        if name == volume.name:
            raise InvalidRequestError(
                f"'{name}' cannot show itself", hint=f"-o {OPTION}=ANOTHER-VOLUME"
            )
        if filled:
            raise InvalidRequestError(
                f"'{volume.name}' shows the bytes of '{name}': nothing can be copied "
                "into it",
                hint=f"for a volume of its own with these bytes: -o from={name}",
            )
        source = self._sources.find(name)
        if source is not None and source.kind == self.kind:
            raise InvalidRequestError(
                f"option '{OPTION}': '{name}' is a read-only copy itself",
                hint=f"-o {OPTION}={_source_name(source.volume)}",
            )

    def create(
        self,
        volume: Volume,
        *,
        deadline_s: float,
        fill: Fill | None = None,
        beside: Mapping[str, bytes] = NOTHING,
    ) -> Volume:
        """Return *volume*: there is nothing to make before it is mounted."""
        del deadline_s, beside
        self.require_creatable(volume, filled=fill is not None)
        return volume

    def discard(self, volume: Volume, *, deadline_s: float) -> None:
        """Do nothing: nothing was made."""

    def remove(self, volume: Volume, *, deadline_s: float) -> None:
        """Do nothing: what it showed has gone with its last Unmount, or is swept."""

    def exclusive(self, volume: Volume) -> bool:
        """Return False: any number of nodes may read."""
        del volume
        return False

    def copy_directory(self, volume: Volume) -> Path | None:
        """Return None: the copies are those of the volume that is read."""
        del volume
        return None

    def copies(self) -> Collection[str]:
        """Return nothing, as `copy_directory`."""
        return ()

    def mount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """Show the last commit that this node has, or the share, at *target*."""
        name, deadline = _source_name(volume), Deadline(deadline_s)
        source = self._sources.find(name) or self._on_share(name, deadline)
        if source.kind == self._shared_kind:
            self._nfs.mount(
                _read_only(source), target, deadline_s=deadline.remaining_s()
            )
        elif source.kind == self._copied_kind:
            self._copies.mount(volume, name, target, deadline)
        else:
            raise BackendError(f"'{name}' is a read-only copy itself")

    def unmount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """Undo `mount`, also if the volume that was read has gone meanwhile."""
        shown = mounts.mounted_at(target)
        if shown is not None and shown.filesystem.startswith("nfs"):
            read = self._shared(volume) or replace(volume, options={})
            self._nfs.unmount(read, target, deadline_s=deadline_s)
        else:
            self._copies.unmount(volume, target)

    def users(self, volume: Volume, target: Path) -> list[VolumeUser]:
        """
        Return who has it mounted elsewhere than at *target*.

        The kernel shows the same of all mounts of a volume on a share. So while the
        volume itself is mounted here as well, references alone count: nothing is lost
        with a mount through which nobody writes.
        """
        shown = mounts.mounted_at(target)
        if shown is None or not shown.filesystem.startswith("nfs"):
            return self._copies.users(volume, target)
        read = self._shared(volume)
        beside = [
            each
            for each in mounts.mount_table()
            if (each.source, each.root) == (shown.source, shown.root)
            and each.mount_point != str(target)
        ]
        return [] if read is None or beside else self._nfs.users(read, target)

    def status(self, volume: Volume) -> Mapping[str, object]:
        """Return what it shows, and since when."""
        name = _source_name(volume)
        try:
            source = self._sources.find(name)
        except RemoraError as error:
            return {"health": "error", "error": error.cause}
        if source is None:
            return {"health": "error", "error": _none_of(name).cause}
        if source.kind == self._shared_kind:
            # Its mount is known by the id of this volume.
            return self._nfs.status(replace(_read_only(source), id=volume.id))
        nothing = dict[str, object]()
        return self._looks.at(partial(self._copies.facts, volume), nothing)

    def require_removable(self, volume: Volume) -> None:
        """Do nothing: no bytes go with it."""

    def storages(self) -> list[Storage]:
        """Return none of its own."""
        return []

    def data_directory(self, volume: Volume, snapshot: str = "") -> Path:
        """Refuse: what it shows comes and goes."""
        if snapshot:
            raise not_found(volume, snapshot)
        _refuse(volume, "it has no bytes of its own")

    def discover(self) -> Iterator[Volume]:
        """Return none: their records are all that there is of them."""
        return iter(())

    def knows(self, volume: Volume) -> bool:
        """Return False: storage knows none."""
        del volume
        return False

    def find(self, name: str, **_: object) -> Volume | None:
        """Return None: the records know each."""
        del name
        return None

    def collect_garbage(self, *, deadline_s: float) -> int:
        """Throw away what nobody has mounted any more; the pool's trash counts it."""
        del deadline_s
        self._copies.sweep()
        return 0

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def _shared(self, volume: Volume) -> Volume | None:
        """Return the volume on a share that *volume* reads, None if it has gone."""
        try:
            source = self._sources.find(_source_name(volume))
        except RemoraError:
            return None
        is_shared = source is not None and source.kind == self._shared_kind
        return _read_only(source) if source and is_shared else None

    def _on_share(self, name: str, deadline: Deadline) -> Source:
        """
        Return the volume *name* of which a share alone knows.

        Raises:
            BackendError, DeadlineError: there is none, or a share does not answer.

        """
        limit_s = min(_FIND_DEADLINE_S, deadline.remaining_s())
        found = self._nfs.find(name, deadline_s=limit_s)
        if found is None:
            raise _none_of(name)
        return Source(self._shared_kind, found)


class _NoSnapshots:
    """Refuses to make what can be had of the volume that is read."""

    def create(
        self,
        volume: Volume,
        name: str,
        *,
        mounted_at: Path | None,
        progress: Progress,
    ) -> Snapshot:
        """Refuse."""
        del name, mounted_at, progress
        _refuse(volume, "it can have no snapshots")

    def all(self, volume: Volume) -> list[Snapshot]:
        """Return none."""
        del volume
        return []

    def remove(self, volume: Volume, name: str) -> None:
        """Refuse: there is none."""
        raise not_found(volume, name)

    def restore(
        self,
        volume: Volume,
        name: str,
        *,
        keep_as: str,
        progress: Progress,
        exchanging: AbstractContextManager[None],
    ) -> None:
        """Refuse: there is none."""
        del keep_as, progress, exchanging
        raise not_found(volume, name)


def _refuse(volume: Volume, why: str) -> NoReturn:
    name = volume.options.get(OPTION, "")
    raise BackendError(
        f"'{volume.name}' is a read-only copy of '{name}': {why}",
        hint=f"do it with '{name}'",
    )


def _none_of(name: str) -> BackendError:
    return BackendError(
        f"there is no volume '{name}' to be read", hint="docker volume ls names them"
    )


def _source_name(volume: Volume) -> str:
    """Return the name of what is read; of a record that says nonsense none is found."""
    return volume.options.get(OPTION, "")


def _read_only(source: Source) -> Volume:
    """Return the volume on a share as it is mounted to be read."""
    return replace(source.volume, options={**source.volume.options, "readOnly": "true"})
