"""
The backend `rsync`: a volume is a plain directory in the node's pool.

    <pool>/pool.json                 the pool's own identity
    <pool>/volumes/<id>/volume.json  name and options, written last at creation
    <pool>/volumes/<id>/live/        the bytes; what containers see
    <pool>/trash/<id>.<n>/           removed, waiting to be deleted

`pool.json` is how a pool whose disk is not mounted is told from an empty one: without
it nothing is created or mounted. A volume directory without `volume.json` is a creation
that a crash cut short. A removal is one rename into the trash.

With a single node nothing is replicated; the options that say how are checked and
kept, and `status` says `unreplicated`.
"""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

from backends import options as parse
from backends.base import Storage, Traits, Volume, VolumeUser
from backends.errors import BackendError, DeadlineError, VolumeBusyError
from backends.system import files, mounts, quota
from backends.system.clock import Deadline
from backends.system.run import run

_PARSERS: Final[Mapping[str, parse.Parser]] = {
    "mode": parse.octal_mode,
    "uid": parse.numeric_id,
    "gid": parse.numeric_id,
    "size": parse.size_bytes,
    "replicas": parse.whole_number(1, 16),
    "members": parse.node_names,
    "interval": parse.duration,
    "min_acks": parse.whole_number(0, 15),
    "failover": parse.one_of("accept_loss", "refuse"),
    "fence": parse.one_of("freeze", "kill", "none"),
}
_DEFAULTS: Final = {
    "failover": "accept_loss",
    "fence": "freeze",
    "gid": "0",
    "interval": "10s",
    "min_acks": "0",
    "mode": "0755",
    "replicas": "1",
    "uid": "0",
}


class _VolumeFile(msgspec.Struct, frozen=True):
    """What `volume.json` holds: enough to make the record again."""

    id: str
    name: str
    options: dict[str, str]
    created_at: str


class _PoolFile(msgspec.Struct, frozen=True):
    """What `pool.json` holds."""

    id: str


class RsyncBackend:
    """
    Volumes as directories of *pool* on the node's own disk.

    *pool_id* is the identity of this node's pool; a node that never had one gets it
    from `initialise`, before anything else is called.
    """

    kind = "rsync"
    traits = Traits(reachable_from_every_node=False)

    def __init__(self, pool: Path, *, pool_id: str | None) -> None:
        self._pool = pool
        self._volumes = pool / "volumes"
        self._trash = pool / "trash"
        self._pool_id = pool_id

    def initialise(self) -> str:
        """
        Return the pool's identity, made now if the pool is new.

        Raises:
            BackendError: the pool's directory cannot be made or read.

        """
        try:
            files.make_directories(self._pool, mode=0o711)
            files.make_directories(self._volumes, mode=0o711)
            found = self._read_pool_id()
            if found is None:
                found = str(uuid.uuid4())
                files.write_durably(
                    self._pool / "pool.json", msgspec.json.encode(_PoolFile(found))
                )
        except OSError as error:
            raise _failed(f"cannot make the pool {self._pool}", error) from error
        self._pool_id = found
        return found

    def parse_options(self, raw: Mapping[str, str]) -> dict[str, str]:
        """Return *raw* in canonical form; see `Backend.parse_options`."""
        return parse.parse_options(raw, _PARSERS, backend=self.kind)

    def default_options(self) -> dict[str, str]:
        """Return the options of a volume that was given none."""
        return dict(_DEFAULTS)

    def merge_options(
        self, base: Mapping[str, str], over: Mapping[str, str]
    ) -> dict[str, str]:
        """Return *base* with *over* on top."""
        return {**base, **over}

    def claims(self, raw: Mapping[str, str]) -> bool:
        """Return False: every option of ours makes sense elsewhere."""
        del raw
        return False

    def create(self, volume: Volume, *, deadline_s: float) -> Volume:
        """Make the directory; `volume.json` comes last and proves it whole."""
        deadline = Deadline(deadline_s)
        self._require_pool()
        home = self._home(volume)
        if (home / "volume.json").exists():
            return volume
        if "size" in volume.options:
            quota.require_enforceable(self._volumes)
        live = home / "live"
        try:
            home.mkdir(mode=0o700, exist_ok=True)
            if not live.is_dir():
                quota.make_data_directory(live, deadline_s=deadline.remaining_s())
            if "size" in volume.options:
                quota.limit(
                    live,
                    volume_id=volume.id,
                    size_bytes=int(volume.options["size"]),
                    deadline_s=deadline.remaining_s(),
                )
            os.chown(live, int(volume.options["uid"]), int(volume.options["gid"]))
            # After chown, which clears set-id bits; umask does not apply to chmod.
            live.chmod(int(volume.options["mode"], 8))
            content = _VolumeFile(
                volume.id, volume.name, dict(volume.options), volume.created_at
            )
            files.write_durably(home / "volume.json", msgspec.json.encode(content))
            files.sync_directory(self._volumes)
        except OSError as error:
            raise _failed(f"cannot create volume '{volume.name}'", error) from error
        return volume

    def discard(self, volume: Volume, *, deadline_s: float) -> None:
        """Remove what there is of it: the id is new, so all of it is ours."""
        self.remove(volume, deadline_s=deadline_s)

    def remove(self, volume: Volume, *, deadline_s: float) -> None:
        """Rename the directory into the trash, which `collect_garbage` empties."""
        del deadline_s  # one rename; nothing to interrupt
        self._require_pool()
        home = self._home(volume)
        if inside := mounts.mount_points_below(home):
            raise VolumeBusyError(
                f"'{volume.name}' has another filesystem mounted in it, at {inside[0]}",
                hint="unmount that, then remove the volume",
            )
        try:
            self._trash.mkdir(mode=0o700, exist_ok=True)
            # The suffix lets a volume that was restored by hand be removed again.
            home.rename(self._trash / f"{volume.id}.{secrets.token_hex(4)}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise _failed(f"cannot remove volume '{volume.name}'", error) from error
        files.sync_directory(self._volumes)
        files.sync_directory(self._trash)

    def mount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """Bind the volume's live directory to *target*."""
        deadline = Deadline(deadline_s)
        self._require_pool()
        home = self._home(volume)
        if not (home / "volume.json").exists():
            raise BackendError(
                f"the data of volume '{volume.name}' is missing: {home} is not there",
                hint="restore the directory, or docker volume rm it to forget it",
            )
        if self._is_bound(volume, target):
            return
        target.mkdir(mode=0o700, exist_ok=True)
        try:
            mounts.bind(home / "live", target)
        except BackendError:
            target.rmdir()
            raise
        if deadline.passed():
            self.unmount(volume, target, deadline_s=0)
            raise DeadlineError(f"mounting '{volume.name}' took too long")

    def unmount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """
        Remove the bind and its mount point.

        Removing the directory is a guard: whoever still holds the path gets an error,
        never an empty directory to start a database in.
        """
        del volume, deadline_s
        mounts.unmount(target)
        try:
            target.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise BackendError(
                f"the mount point {target} is not empty: {error.strerror}",
                hint="something wrote there while it was unmounted: move it away",
            ) from error

    def users(self, volume: Volume, target: Path) -> list[VolumeUser]:
        """
        Return who has the volume's directory mounted elsewhere.

        Our own mount says which directory that is, wherever its path leads by now (a
        disk unmounted lazily, a pool renamed). Without one the path must be trusted.
        """
        own = mounts.mounted_at(target)
        if own is not None:
            device, root = own.device, own.root
        else:
            self._require_pool()
            live = self._home(volume) / "live"
            covering = mounts.entry_covering(live)
            device = covering.device
            inside = live.relative_to(covering.mount_point)
            root = str(Path(covering.root) / inside)
        return mounts.users_of_root(device, root, own_names=(volume.id,))

    def status(self, volume: Volume) -> Mapping[str, object]:
        """Return where the bytes are and that they are not replicated."""
        facts: dict[str, object] = {
            "replication": "unreplicated",
            "path": str(self._home(volume) / "live"),
        }
        if "size" in volume.options:
            facts["size_bytes"] = int(volume.options["size"])
        return facts

    def health(self, volume: Volume) -> str:
        """Return "" if the pool is there and is the one this node knows."""
        del volume  # all live in one pool
        return self._pool_fault()

    def storages(self) -> list[Storage]:
        """Return the pool."""
        try:
            total, available = files.free_bytes(self._pool)
        except OSError as error:
            return [Storage(str(self._pool), f"{self._pool}: {error.strerror}")]
        return [Storage(str(self._pool), self._pool_fault(), total, available)]

    def data_directory(self, volume: Volume) -> Path:
        """Return the live directory."""
        return self._home(volume) / "live"

    def discover(self) -> Iterator[Volume]:
        """Yield each complete volume of the pool."""
        self._require_pool()
        for home in sorted(self._volumes.iterdir()):
            try:
                found = msgspec.json.decode(
                    (home / "volume.json").read_bytes(), type=_VolumeFile
                )
            except (OSError, msgspec.DecodeError):
                continue  # an unfinished creation, or not ours
            if found.id == home.name:
                yield Volume(found.id, found.name, found.options, found.created_at)

    def knows(self, volume: Volume) -> bool:
        """Return whether the pool is there: what it has not, is not."""
        del volume
        return not self._pool_fault()

    def find(self, name: str, *, deadline_s: float) -> Volume | None:
        """Return None: the records know every volume of the pool."""
        del name, deadline_s
        return None

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def collect_garbage(self, *, deadline_s: float) -> int:
        """Delete what is in the trash; return how many volumes that were."""
        deadline = Deadline(deadline_s)
        if self._pool_fault() or not self._trash.is_dir():
            return 0
        count = 0
        for home in sorted(self._trash.iterdir()):
            if deadline.passed() or mounts.mount_points_below(home):
                continue
            if (home / "live").is_dir():
                quota.discard(home / "live", deadline_s=deadline.remaining_s())
            # rm never leaves the filesystem, whatever is mounted in there.
            run(
                ["rm", "-rf", "--one-file-system", "--", str(home)],
                deadline_s=deadline.remaining_s(),
            )
            count += 1
        return count

    def _home(self, volume: Volume) -> Path:
        return self._volumes / volume.id

    def _is_bound(self, volume: Volume, target: Path) -> bool:
        """Return whether *target* already shows this volume's bytes."""
        if mounts.mounted_at(target) is None:
            return False
        shown = target.stat()
        live = (self._home(volume) / "live").stat()
        if (shown.st_dev, shown.st_ino) == (live.st_dev, live.st_ino):
            return True
        # Somebody replaced the directory: what is mounted is not this volume.
        mounts.unmount(target)
        return False

    def _pool_fault(self) -> str:
        """Return what is wrong with the pool, "" if nothing is."""
        try:
            self._require_pool()
        except BackendError as error:
            return error.cause
        return ""

    def _require_pool(self) -> None:
        """Raise unless the pool is there and is ours."""
        found = self._read_pool_id()
        if found is None:
            raise BackendError(
                f"the pool {self._pool} has no pool.json: its disk is not mounted",
                hint="mount it; nothing is created or mounted without it",
            )
        if found != self._pool_id:
            raise BackendError(
                f"{self._pool} holds pool {found}, this node's is {self._pool_id}",
                hint="mount the right disk",
            )

    def _read_pool_id(self) -> str | None:
        try:
            content = (self._pool / "pool.json").read_bytes()
            return msgspec.json.decode(content, type=_PoolFile).id
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise BackendError(
                f"cannot read {self._pool}/pool.json: {error}"
            ) from error


def _failed(what: str, error: OSError) -> BackendError:
    return BackendError(f"{what}: {error.strerror} ({error.filename})")
