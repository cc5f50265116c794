"""
The backend contract: what a kind of storage must do to carry volumes.

A backend MUST hold to these rules; `tests/contract` checks them for every backend.

- Every method may be repeated, at any time, after a crash at any point of an earlier
  call: create of what is created, remove of what is gone, mount of what is mounted and
  unmount of what is not mounted succeed, and finish a half-done step on the way.
- Methods on one volume are never called concurrently (the daemon holds the volume's
  lock); methods on different volumes are.
- Each obeys its deadline where the work can be interrupted, never retries by itself
  (callers do) and raises only errors of `backends.errors`.
- A method that fails leaves nothing half-made that a repeat would not mend.
- What backends can and cannot do stands in `traits`; nobody asks for `kind`.

A snapshot is a copy of a volume's tree, complete or not there at all. It is as
consistent as its source was quiet: each file is taken at one moment, but not all files
at the same one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec

from backends.system.copying import Copied, Destination, Progress
from backends.system.decoding import from_objects
from backends.system.mounts import VolumeUser

# Directories have the ids of volumes as their names: nothing else may be one.
VOLUME_ID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# Names that an engine makes up for volumes that nobody has named.
ANONYMOUS: Final = re.compile(r"[0-9a-f]{64}")
# What is decoded from where others write: one line of text, and a number that SQLite
# can keep.
LineText = Annotated[
    str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f\ud800-\udfff]*\Z", max_length=4096)
]
WholeNumber = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# Puts a new volume's first bytes into the directory that it is given.
Fill = Callable[[Destination], None]
NOTHING: Final[Mapping[str, bytes]] = {}


@dataclass(frozen=True, slots=True)
class Traits:
    """
    What a backend is able to do.

    ``reachable_from_every_node``: a volume made on one node can be mounted on any
    other (decides the scope that Docker is told).
    ``catalogue_on_storage``: storage itself knows its volumes and other nodes change
    them; our records of them are a mirror. ``storage_options`` then say on which one
    a volume is: another has no say in it.
    """

    reachable_from_every_node: bool
    catalogue_on_storage: bool = False
    storage_options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Volume:
    """
    What a backend is told of a volume.

    ``options`` are canonical and complete; ``requested`` are those that the user gave,
    which decide whether a second Create asks for the same volume.
    """

    id: str
    name: str
    options: Mapping[str, str]
    created_at: str
    requested: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Storage:
    """A place that volumes live in: a pool, a share; sizes are None if unknown."""

    name: str
    error: str = ""
    total_bytes: int | None = None
    available_bytes: int | None = None
    unread: bool = False  # what volumes it has, nobody knows yet


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of a volume at some time; sizes as the files tell them."""

    name: LineText
    created_at: LineText
    files: WholeNumber
    size_bytes: WholeNumber
    attributes_lost: WholeNumber = 0

    @classmethod
    def of_copy(cls, name: str, created_at: str, copied: Copied) -> Snapshot:
        """Return the snapshot that a finished copy is."""
        return cls(
            name, created_at, copied.files, copied.size_bytes, copied.attributes_lost
        )

    @classmethod
    def of_facts(cls, name: str, facts: Mapping[str, Any]) -> Snapshot:
        """
        Return the snapshot *name* that the content of `snapshot.json` tells of.

        If it is not what it may be, how much there is and since when is lost, not the
        snapshot.
        """
        told = {"created_at": "", "files": 0, "size_bytes": 0, **facts, "name": name}
        try:
            return from_objects(told, cls)
        except msgspec.ValidationError:
            return cls(name, "", 0, 0)


class Snapshots(Protocol):
    """What a backend does with the snapshots of its volumes."""

    def create(
        self,
        volume: Volume,
        name: str,
        *,
        mounted_at: Path | None,
        progress: Progress,
    ) -> Snapshot:
        """
        Return a new snapshot of *volume*; durable.

        What was written through the mount *mounted_at* before the call is in it.

        Raises:
            SnapshotExistsError: the name is taken.
            BackendError: it was not taken; nothing of it is seen.

        """
        ...

    def all(self, volume: Volume) -> list[Snapshot]:
        """Return the snapshots of *volume*, oldest first."""
        ...

    def remove(self, volume: Volume, name: str) -> None:
        """Remove one; raises SnapshotNotFoundError."""
        ...

    def restore(
        self,
        volume: Volume,
        name: str,
        *,
        keep_as: str,
        progress: Progress,
        exchanging: AbstractContextManager[None],
    ) -> None:
        """
        Give *volume* the bytes of its snapshot; those it had become a new snapshot.

        The caller has seen that nobody on this node uses the volume. It has the one or
        the other bytes, whatever happens. Inside *exchanging*, which may refuse, they
        change places; all else, which takes long, is done before.

        Raises:
            SnapshotNotFoundError: there is none.
            SnapshotExistsError: *keep_as* is taken.
            BackendError: the volume is as it was, or the error names what is kept.

        """
        ...


class Backend(Protocol):
    """A kind of storage; see the module's text for the rules."""

    kind: str
    traits: Traits

    @property
    def snapshots(self) -> Snapshots:
        """What can be done with the snapshots of this backend's volumes."""
        ...

    def parse_options(self, raw: Mapping[str, str]) -> dict[str, str]:
        """
        Return *raw* in canonical form, without defaults; pure.

        Raises:
            InvalidRequestError: an unknown key (the valid ones are named) or a value
                that is malformed or cannot be honoured.

        """
        ...

    def default_options(self, name: str = "", /) -> dict[str, str]:
        """Return the canonical options of volume *name*, which was given none."""
        ...

    def merge_options(
        self, base: Mapping[str, str], over: Mapping[str, str]
    ) -> dict[str, str]:
        """Return canonical options *base* with *over* on top; pure."""
        ...

    def claims(self, raw: Mapping[str, str]) -> bool:
        """Return whether *raw* options can only be meant for this backend."""
        ...

    def implied(self, raw: Mapping[str, str], /) -> Collection[str]:
        """Return options of their own that the values of *raw* stand for; pure."""
        ...

    def require_creatable(self, volume: Volume, *, filled: bool) -> None:
        """
        Raise what `create` would raise at once, before any record of *volume* is made.

        *filled*: `create` is to be given a `fill`.

        Raises:
            InvalidRequestError: the options do not say all that is needed, or too much.
            BackendError: this node's storage is not there, or cannot do it.

        """
        ...

    def create(
        self,
        volume: Volume,
        *,
        deadline_s: float,
        fill: Fill | None = None,
        beside: Mapping[str, bytes] = NOTHING,
    ) -> Volume:
        """
        Make *volume*, empty or as *fill* fills it, and return it; durable on return.

        Until *fill* has returned nobody sees the volume; the time that it takes does
        not count. Owner and mode are then its own, but for those asked for. The files
        *beside* are in its `copy_directory` before that is seen, if it has one.

        What another node has made before, with the same name and the same requested
        options, is returned as it is on storage, with its own id.

        Raises:
            VolumeExistsError: storage has the name with other options.
            BackendError: refused; nothing of it is left that anybody would see.
            DeadlineError: the outcome is unknown.

        """
        ...

    def discard(self, volume: Volume, *, deadline_s: float) -> None:
        """
        Undo an unfinished `create` of exactly this id, of which nobody was told.

        What `create` found there, or another node has made, stays. Options of which
        `create` can have made nothing leave nothing to undo.
        """
        ...

    def remove(self, volume: Volume, *, deadline_s: float) -> None:
        """
        Make *volume* and its bytes unreachable; space may be freed later.

        The caller has seen that nobody uses it.

        Raises:
            BackendError, VolumeBusyError: refused; the volume is as it was.
            DeadlineError: the outcome is unknown; repeat it.

        """
        ...

    def exclusive(self, volume: Volume) -> bool:
        """Return whether one node at a time may have *volume* mounted; pure."""
        ...

    def copy_directory(self, volume: Volume) -> Path | None:
        """
        Return where this node's own copy of *volume* lies, None if it has none.

        Where all nodes share the bytes, none of them has.

        Raises:
            BackendError: that cannot be known now.

        """
        ...

    def copies(self) -> Collection[str]:
        """
        Return the ids of all volumes of which this node has anything of its own.

        It is for those who would else ask `copy_directory` for each volume that the
        cluster knows; raises as that does.
        """
        ...

    def mount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """
        Make *volume*'s bytes appear at *target*, whose parent exists.

        A volume without its bytes is an error, never an empty directory.
        """
        ...

    def unmount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """
        Undo `mount` and remove *target*.

        Raises:
            VolumeBusyError: a process of this node still works below *target*.

        """
        ...

    def users(self, volume: Volume, target: Path) -> list[VolumeUser]:
        """
        Return who on this node has *volume* mounted elsewhere than at *target*.

        Raises:
            BackendError: that cannot be known; treat the volume as used.

        """
        ...

    def status(self, volume: Volume) -> Mapping[str, object]:
        """Return facts for people from local knowledge; quick, never raises."""
        ...

    def require_removable(self, volume: Volume) -> None:
        """
        Raise, within seconds, what `remove` would refuse as things are; change nothing.

        Raises:
            BackendError, VolumeBusyError: storage is not ready, or bytes would be lost.

        """
        ...

    def storages(self) -> list[Storage]:
        """Return each place that volumes live in, as it was last seen; quick."""
        ...

    def data_directory(self, volume: Volume, snapshot: str = "") -> Path:
        """
        Return where a child process can read *volume*'s bytes, or its *snapshot*'s.

        The daemon itself must not touch the path: its storage may hang.

        Raises:
            SnapshotNotFoundError, BackendError: they are not there.

        """
        ...

    def discover(self) -> Iterable[Volume]:
        """
        Return the volumes found on storage.

        With ``catalogue_on_storage`` at once, as storage was last seen.
        """
        ...

    def knows(self, volume: Volume) -> bool:
        """Return whether `discover` would have found *volume* if it existed."""
        ...

    def find(
        self, name: str, *, deadline_s: float, beside: Volume | None = None
    ) -> Volume | None:
        """
        Return the volume of that name if storage, asked now, has it.

        Only the storage that the volume *beside* is on is asked, if one is given.

        Raises:
            BackendError, DeadlineError: it may have it, and did not answer; or several
                storages have it.

        """
        ...

    def collect_garbage(self, *, deadline_s: float) -> int:
        """Free the space of removed volumes; return how many were freed."""
        ...

    def close(self) -> None:
        """Let go of everything but the volumes' mounts."""
        ...
