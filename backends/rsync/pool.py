"""
The pool: the directory that this node's volumes live in, and its identity.

    <pool>/pool.json                      the pool's own identity
    <pool>/volumes/<id>/volume.json       name and options, written last at creation
    <pool>/volumes/<id>/live/             the bytes; what containers see
    <pool>/volumes/<id>/commits/<c>/      on btrfs: what they were at the last commit
    <pool>/volumes/<id>/quarantine/<c>/   what was set apart, and no other copy has
    <pool>/volumes/<id>/snapshots/<name>/ copies of them
    <pool>/copies/<token>/                copies under way
    <pool>/readonly/<id>/                 what a volume with `readonly_copy` shows
    <pool>/trash/<name>.<n>/              removed, waiting to be deleted

`pool.json` is how a pool whose disk is not mounted is told from an empty one: without
it nothing is created or mounted.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from backends import options as parse
from backends.base import VOLUME_ID, Storage, Volume
from backends.errors import BackendError, StorageAwayError
from backends.rsync.trash import Trash
from backends.system import files, quota
from backends.system.clock import Deadline
from backends.system.decoding import from_json

# Options that are numbers, and to which base.
_NUMBERS: Final[Mapping[str, tuple[parse.Parser, int]]] = {
    "size": (parse.size_bytes, 10),
    "uid": (parse.numeric_id, 10),
    "gid": (parse.numeric_id, 10),
    "mode": (parse.octal_mode, 8),
}


class _PoolFile(msgspec.Struct, frozen=True):
    """What `pool.json` holds."""

    id: str


class _VolumeFile(msgspec.Struct, frozen=True):
    """What `volume.json` holds: enough to make the record again."""

    id: str
    name: str
    options: dict[str, str]
    created_at: str


class Place(NamedTuple):
    """Which file `pool.json` is; one that is mounted anew is elsewhere."""

    device: int
    inode: int


class Pool:
    """The pool at *path*, which this node knows as *pool_id*."""

    def __init__(self, path: Path, *, pool_id: str | None) -> None:
        self.path = path
        self.volumes = path / "volumes"
        self.copies = path / "copies"
        self.trash = Trash(path / "trash")
        self._id = pool_id

    def initialise(self) -> str:
        """
        Return the pool's identity, made now if the pool is new.

        Raises:
            BackendError: the pool's directory cannot be made or read.

        """
        try:
            files.make_directories(self.path, mode=0o700)
            files.make_directories(self.volumes, mode=0o700)
            found = identity_of(self.path)
            if found is None:
                found = new_identity()
                content = identity_file(found).encode()
                files.write_durably(self.path / "pool.json", content)
        except OSError as error:
            raise failed(f"cannot make the pool {self.path}", error) from error
        self._id = found
        return found

    def home(self, volume: Volume) -> Path:
        """
        Return the directory of everything that is *volume*'s.

        Raises:
            BackendError: its id is none; the path could lead anywhere.

        """
        if not VOLUME_ID.fullmatch(volume.id):
            raise BackendError(f"'{volume.id[:80]}' is no id of a volume")
        return self.volumes / volume.id

    def place(self) -> Place | None:
        """Return where the pool is at this moment, None if it is not there."""
        try:
            self.require()
            found = (self.path / "pool.json").stat()
        except (BackendError, OSError):
            return None
        return Place(found.st_dev, found.st_ino)

    def fault(self) -> str:
        """Return what is wrong with the pool, "" if nothing is."""
        try:
            self.require()
        except BackendError as error:
            return error.cause
        return ""

    def storage(self) -> Storage:
        """Return the pool as storage, as it is now."""
        try:
            total, available = files.free_bytes(self.path)
        except OSError as error:
            return self.faulty(error.strerror)
        return Storage(str(self.path), self.fault(), total, available)

    def faulty(self, why: object) -> Storage:
        """Return the pool as storage of which *why* is all that is known."""
        return Storage(str(self.path), f"{self.path}: {why}")

    def require(self) -> None:
        """Raise BackendError unless the pool is there and is ours."""
        found = identity_of(self.path)
        if found is None:
            raise StorageAwayError(
                f"the pool {self.path} has no pool.json: its disk is not mounted",
                hint="mount it; if it is gone for good: docs/guides/operations.md",
            )
        if found != self._id:
            raise BackendError(
                f"{self.path} holds pool {found}, this node's is {self._id}",
                hint="mount the right disk",
            )


def identity_of(path: Path) -> str | None:
    """Return which pool the directory *path* holds, None if it has no `pool.json`."""
    try:
        content = files.read(f"{path}/pool.json")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BackendError(f"cannot read {path}/pool.json: {error}") from error
    return identity_in(content, path)


def identity_in(content: bytes, path: Path) -> str:
    """Return which pool *content* names, the `pool.json` of the pool *path*."""
    try:
        return from_json(content, _PoolFile).id
    except msgspec.DecodeError as error:
        raise BackendError(f"cannot read {path}/pool.json: {error}") from error


def new_identity() -> str:
    """Return an identity that no pool has."""
    return str(uuid.uuid4())


def identity_file(pool_id: str) -> str:
    """Return what stands in the `pool.json` of the pool *pool_id*."""
    return msgspec.json.encode(_PoolFile(pool_id)).decode()


def description(volume: Volume) -> bytes:
    """Return what stands in the `volume.json` of *volume*."""
    options = dict(volume.options)
    file = _VolumeFile(volume.id, volume.name, options, volume.created_at)
    return msgspec.json.encode(file)


def described_in(home: Path) -> Volume | None:
    """Return the volume in *home*, None if its creation is not done, or not ours."""
    try:
        found = from_json((home / "volume.json").read_bytes(), _VolumeFile)
    except (OSError, msgspec.DecodeError):
        return None
    if found.id != home.name:
        return None
    return Volume(found.id, found.name, found.options, found.created_at)


def make_live(directory: Path, volume: Volume, deadline: Deadline) -> None:
    """Make *directory* for the bytes of *volume*, limited if it has a `size`."""
    size_bytes = number_of(volume.name, volume.options, "size")
    quota.make_data_directory(directory)
    if size_bytes is not None:
        quota.limit(
            directory,
            volume_id=volume.id,
            size_bytes=size_bytes,
            deadline_s=deadline.remaining_s(),
        )


def number_of(name: str, options: Mapping[str, str], key: str) -> int | None:
    """
    Return the number that the record of volume *name* has for *key*, None without one.

    Raises:
        BackendError: it has something else there.

    """
    if key not in options:
        return None
    parser, base = _NUMBERS[key]
    try:
        return int(parser(options[key]), base)
    except ValueError as error:
        raise BackendError(
            f"the record of '{name}' says what no volume may have: option '{key}': "
            f"{error}, not '{options[key][:64]}'",
            hint="import what is in its directory as another volume: remora import",
        ) from None


def failed(what: str, error: OSError) -> BackendError:
    """Return the error that *what* failed with a word of the kernel."""
    return BackendError(f"{what}: {error.strerror} ({error.filename})")
