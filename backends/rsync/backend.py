"""
The backend `rsync` against the contract: volumes as plain directories of a pool.

A volume directory without `volume.json` is a creation that a crash cut short. A removal
is one rename into the trash.

How a volume's bytes come to other nodes is in `journal/`; a node that is alone keeps
the options that say so, and `status` says `unreplicated`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from backends import options as parse
from backends import replication_options as replication
from backends.base import NOTHING, VOLUME_ID, Fill, Storage, Volume
from backends.errors import BackendError, DeadlineError, VolumeBusyError
from backends.rsync.pool import (
    Pool,
    described_in,
    description,
    failed,
    make_live,
    number_of,
)
from backends.rsync.quarantine import Quarantine
from backends.rsync.snapshots import RsyncSnapshots
from backends.rsync.traits import TRAITS
from backends.snapshots import require_none
from backends.system import btrfs, files, mounts, quota
from backends.system.aside import Looks
from backends.system.clock import Deadline
from backends.system.copying import Destination
from backends.system.mounts import VolumeUser

_PARSERS: Final[Mapping[str, parse.Parser]] = {
    "mode": parse.octal_mode,
    "suid": parse.boolean,
    "uid": parse.numeric_id,
    "gid": parse.numeric_id,
    "size": parse.size_bytes,
    "from": parse.source_volume,
    **replication.PARSERS,
}
# A pool is renamed by people, and seldom.
_LOOKS_MAX: Final = 3
_DEFAULTS: Final = {"gid": "0", "mode": "0755", "uid": "0", **replication.DEFAULTS}


class RsyncBackend:
    """
    Volumes as directories of *pool* on the node's own disk.

    *pool_id* is the identity of this node's pool; a node that never had one gets it
    from `Pool.initialise`, before anything else is called.
    """

    kind = "rsync"
    traits = TRAITS

    def __init__(self, pool: Path, *, pool_id: str | None) -> None:
        self.pool = Pool(pool, pool_id=pool_id)
        self.snapshots = RsyncSnapshots(self.pool)
        self.quarantine = Quarantine(self.pool)
        self._looks = Looks()

    def parse_options(self, raw: Mapping[str, str]) -> dict[str, str]:
        """Return *raw* in canonical form; see `Backend.parse_options`."""
        return parse.parse_options(raw, _PARSERS, backend=self.kind)

    def default_options(self, _name: str = "", /) -> dict[str, str]:
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

    def implied(self, _raw: Mapping[str, str], /) -> Collection[str]:
        """Return none: each option of ours stands for itself."""
        return ()

    def require_creatable(self, volume: Volume, *, filled: bool) -> None:
        """Raise unless the pool is there and the options can be kept."""
        del filled
        replication.ReplicationOptions.of(volume.options).require_possible()
        self.pool.require()
        if "size" in volume.options:
            quota.require_enforceable(self.pool.volumes)

    def create(
        self,
        volume: Volume,
        *,
        deadline_s: float,
        fill: Fill | None = None,
        beside: Mapping[str, bytes] = NOTHING,
    ) -> Volume:
        """Make the directory; `volume.json` comes last and proves it whole."""
        deadline = Deadline(deadline_s)
        self.pool.require()
        home = self.pool.home(volume)
        if (home / "volume.json").exists():
            return volume
        self.require_creatable(volume, filled=fill is not None)
        live = home / "live"
        try:
            home.mkdir(mode=0o700, exist_ok=True)
            if not live.is_dir():
                make_live(live, volume, deadline)
            if fill is not None:
                fill(Destination(live))
            _own(live, volume, keep=fill is not None)
            for name, told in beside.items():
                files.write_durably(home / name, told)
            # Who has a copy goes by what lies in it, whatever has become of its making;
            # what else is new is thrown away until its record is ready.
            write = files.write_durably if beside else files.write_new
            write(home / "volume.json", description(volume))
            files.sync_directory(self.pool.volumes)
        except OSError as error:
            raise failed(f"cannot create volume '{volume.name}'", error) from error
        return volume

    def discard(self, volume: Volume, *, deadline_s: float) -> None:
        """Remove what there is of it: the id is new, so all of it is ours."""
        self.remove(volume, deadline_s=deadline_s)

    def remove(self, volume: Volume, *, deadline_s: float) -> None:
        """Rename the directory into the trash, which `collect_garbage` empties."""
        del deadline_s  # one rename; nothing to interrupt
        self.require_removable(volume)
        try:
            self.pool.trash.throw_away(self.pool.home(volume))
        except FileNotFoundError:
            return
        except OSError as error:
            raise failed(f"cannot remove volume '{volume.name}'", error) from error
        files.sync_directory(self.pool.volumes)

    def make_live(self, volume: Volume, *, deadline_s: float) -> None:
        """
        Make the directory of *volume*'s bytes anew, empty, as `create` had made it.

        It is there with its limit and owner, or not at all.

        Raises:
            BackendError: the pool refuses.

        """
        live = self.pool.home(volume) / "live"
        made = live.with_name("live.new")
        deadline = Deadline(deadline_s)
        try:
            if made.is_dir():  # a crash has left it, empty
                quota.discard(made, deadline_s=deadline.remaining_s())
                with suppress(FileNotFoundError):
                    made.rmdir()
            make_live(made, volume, deadline)
            _own(made, volume, keep=False)
            made.rename(live)
            files.sync_directory(live.parent)
        except OSError as error:
            raise failed(f"cannot make {live}", error) from error

    def exclusive(self, volume: Volume) -> bool:
        """Return True: copies would part if two nodes wrote to theirs."""
        del volume
        return True

    def copy_directory(self, volume: Volume) -> Path | None:
        """Return the volume's directory if it was completely made."""
        self.pool.require()
        home = self.pool.home(volume)
        try:
            return home if (home / "volume.json").exists() else None
        except OSError as error:
            raise failed(
                f"cannot see whether there is a copy in {home}", error
            ) from error

    def copies(self) -> Collection[str]:
        """Return the names of the pool's directories that are ids of volumes."""
        self.pool.require()
        try:
            names = [each.name for each in self.pool.volumes.iterdir()]
        except OSError as error:
            raise failed("cannot list the pool's volumes", error) from error
        return list(filter(VOLUME_ID.fullmatch, names))

    def mount(self, volume: Volume, target: Path, *, deadline_s: float) -> None:
        """Bind the volume's live directory to *target*."""
        deadline = Deadline(deadline_s)
        self.pool.require()
        home = self.pool.home(volume)
        if not (home / "volume.json").exists():
            raise BackendError(
                f"the data of volume '{volume.name}' is missing: {home} is not there",
                hint="restore the directory, or docker volume rm it to forget it",
            )
        if self._is_bound(volume, target):
            return
        target.mkdir(mode=0o700, exist_ok=True)
        try:
            suid = volume.options.get("suid") == "true"
            mounts.bind(home / "live", target, suid=suid)
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

        Raises:
            BackendError: it cannot be seen, so that nothing is proven.

        """
        for _ in range(_LOOKS_MAX):
            device, root = self._place(volume, target)
            users = mounts.users_of_root(root, device=device, own=(target,))
            # Renamed meanwhile, it has another name in the tables that were read last.
            if users or self._place(volume, target) == (device, root):
                return users
        raise BackendError(
            f"the directory of '{volume.name}' is being renamed all the time",
            hint="retry when that has ended",
        )

    def _place(self, volume: Volume, target: Path) -> tuple[str, str]:
        """Return the filesystem that has the volume, and its path in there."""
        # A disk that is mounted from here on is seen by the next look.
        table = mounts.MountTable()
        own = table.at(target)
        if own is not None:
            return own.device, own.root
        self.pool.require()
        live = self.pool.home(volume) / "live"
        own = table.covering(live)
        return own.device, own.inside(live)

    def status(self, volume: Volume) -> Mapping[str, object]:
        """Return where the bytes are and that they are not replicated."""
        path = str(self.pool.home(volume) / "live")
        facts: dict[str, object] = {"replication": "unreplicated", "path": path}
        try:
            size_bytes = number_of(volume.name, volume.options, "size")
            facts |= {} if size_bytes is None else {"size_bytes": size_bytes}
        except BackendError as error:
            facts |= {"health": "error", "error": str(error)}
        return facts | self._looks.at(
            partial(self._on_disk, volume), dict[str, object]()
        )

    def _on_disk(self, volume: Volume) -> dict[str, object]:
        """Return how commits are made, of snapshots or not, and what is set apart."""
        btrfs_has_it = btrfs.subvolume(self.pool.home(volume) / "live")
        engine = "btrfs" if btrfs_has_it else "journal"
        with suppress(BackendError):
            if apart := self.quarantine.of(volume.id):
                return {"engine": engine, "set_apart": [each.commit for each in apart]}
        return {"engine": engine}

    def require_removable(self, volume: Volume) -> None:
        """Raise unless the pool is there, and has nothing that would be lost."""
        self.pool.require()
        if inside := mounts.mount_points_below(self.pool.home(volume)):
            raise VolumeBusyError(
                f"'{volume.name}' has another filesystem mounted in it, at {inside[0]}",
                hint="unmount that, then remove the volume",
            )
        require_none(volume, self.snapshots.all(volume))
        self._require_nothing_apart(volume)

    def storages(self) -> list[Storage]:
        """Return the pool."""
        hung = self.pool.faulty("the disk does not answer")
        return [self._looks.at(self.pool.storage, hung)]

    def data_directory(self, volume: Volume, snapshot: str = "") -> Path:
        """Return the live directory, or the snapshot's."""
        self.pool.require()
        if snapshot:
            return self.snapshots.data_directory(volume, snapshot)
        if not (self.pool.home(volume) / "volume.json").exists():
            raise BackendError(f"the data of volume '{volume.name}' is missing")
        return self.pool.home(volume) / "live"

    def discover(self) -> Iterator[Volume]:
        """Yield each complete volume of the pool."""
        self.pool.require()
        for home in sorted(self.pool.volumes.iterdir()):
            if found := described_in(home):
                yield found

    def knows(self, volume: Volume) -> bool:
        """Return whether the pool is there: what it has not, is not."""
        del volume
        return not self.pool.fault()

    def find(self, name: str, **_: object) -> Volume | None:
        """Return None: the records know every volume of the pool."""
        del name
        return None

    def close(self) -> None:
        """Do nothing: nothing is held."""

    def collect_garbage(self, *, deadline_s: float) -> int:
        """Delete what is in the trash; return how many things that were."""
        if self.pool.fault():
            return 0
        try:
            self.snapshots.copies.sweep()
        finally:
            freed = self.pool.trash.empty(Deadline(deadline_s))
        return freed

    def _require_nothing_apart(self, volume: Volume) -> None:
        """Raise BackendError while there are bytes that only people may delete."""
        if self.quarantine.is_empty(volume.id):
            return
        apart = self.quarantine.of(volume.id)
        where = f"commit {apart[0].commit}" if apart else "what is no commit"
        commit = apart[0].commit if apart else ""
        raise BackendError(
            f"'{volume.name}' has bytes that no other copy has: {where}",
            hint=f"save them, then: remora quarantine discard {volume.name} {commit}"
            if apart
            else f"look into {self.pool.home(volume)}/quarantine",
        )

    def _is_bound(self, volume: Volume, target: Path) -> bool:
        """Return whether *target* already shows this volume's bytes."""
        if mounts.mounted_at(target) is None:
            return False
        shown = target.stat()
        live = (self.pool.home(volume) / "live").stat()
        if (shown.st_dev, shown.st_ino) == (live.st_dev, live.st_ino):
            return True
        # Somebody replaced the directory: what is mounted is not this volume.
        mounts.unmount(target)
        return False


def _own(live: Path, volume: Volume, *, keep: bool) -> None:
    """Give *live* its owner and mode; with *keep*, only those that were asked for."""
    wanted = volume.requested if keep else volume.options
    keys = ("uid", "gid", "mode")
    uid, gid, mode = (number_of(volume.name, wanted, key) for key in keys)
    os.chown(live, -1 if uid is None else uid, -1 if gid is None else gid)
    # After chown, which clears set-id bits; umask does not apply to chmod.
    if mode is not None:
        live.chmod(mode)
