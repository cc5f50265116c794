"""
The read-only copies in this node's pool: made at a Mount, gone after the last Unmount.

    <pool>/readonly/<id>/data        on btrfs a snapshot, else a tree that shares blocks
                                     if the filesystem can
    <pool>/readonly/<id>/copy.json   what it is a copy of

A copy is made aside and renamed into place when it is complete. What a crash has left,
or a removal on another node, is what nobody has mounted: the sweep throws it away.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from backends.base import VOLUME_ID, Volume
from backends.errors import BackendError, DeadlineError, RemoraError
from backends.readonly.sources import Sources, Tree
from backends.rsync.backend import RsyncBackend
from backends.rsync.journal.outbox import lacking_space
from backends.rsync.pool import failed
from backends.snapshots import DATA_NAME
from backends.system import btrfs, clock, files, mounts
from backends.system.clock import Deadline
from backends.system.copying import Copied, Destination, Progress, copy_tree
from backends.system.decoding import from_json
from backends.system.mounts import VolumeUser

log = logging.getLogger(__name__)
_FACTS_NAME: Final = "copy.json"
# A container that reads for longer was to be started anew for each backup.
_OLD_S: Final = 86_400.0
# For what comes after the copying in one Mount.
_MARGIN_S: Final = 3.0


class CopyFacts(msgspec.Struct, frozen=True):
    """What `copy.json` holds: for people."""

    readonly_copy: str
    commit: str
    quality: str
    moment: str
    newer: str
    lacks: str
    taken_at: str


class ReadonlyCopies:
    """The copies in the pool of *rsync*, which appear in *mount_dir*."""

    def __init__(self, rsync: RsyncBackend, sources: Sources, mount_dir: Path) -> None:
        self._pool = rsync.pool
        self._under_way = rsync.snapshots.copies
        self._sources = sources
        self._mount_dir = mount_dir
        self._directory = rsync.pool.path / "readonly"
        self._guard = threading.Lock()
        self._used: set[str] = set()

    def mount(
        self, volume: Volume, name: str, target: Path, deadline: Deadline
    ) -> None:
        """
        Show at *target* what this node has of the last commit of volume *name*.

        Who mounts it while it is mounted here sees the same copy.

        Raises:
            RemoraError: there is none here, or it cannot be taken; nothing is left.

        """
        self._pool.require()
        data = self._home(volume) / DATA_NAME
        with self._using(volume):
            if _shows(target, data):
                return
            mounts.unmount(target)
            # Its mount alone was lost, maybe with our mount namespace.
            is_read = bool(self.users(volume, target))
            try:
                if not is_read:
                    self._throw_away(volume)
                    self._take(volume, name, deadline)
                target.mkdir(mode=0o700, exist_ok=True)
                mounts.bind(data, target, suid=False, read_only=True)
            except (RemoraError, OSError) as error:
                with suppress(FileNotFoundError):
                    target.rmdir()
                if not is_read:
                    self._throw_away(volume)
                if isinstance(error, RemoraError):
                    raise
                raise failed(f"cannot take a copy of '{name}'", error) from error

    def unmount(self, volume: Volume, target: Path) -> None:
        """Take away the mount, its mount point, and what it shows."""
        mounts.unmount(target)
        with suppress(FileNotFoundError):
            target.rmdir()
        if not self._pool.fault():
            self._throw_away(volume)

    def users(self, volume: Volume, target: Path) -> list[VolumeUser]:
        """Return who has the copy mounted elsewhere than at *target*."""
        shown = mounts.mounted_at(target)
        if shown is not None:
            return mounts.users_of_root(shown.root, device=shown.device, own=(target,))
        data = self._home(volume) / DATA_NAME
        return mounts.users_of(data) if data.is_dir() else []

    def facts(self, volume: Volume) -> dict[str, object]:
        """Return what is known of the copy that is here, nothing without one."""
        path = self._home(volume) / _FACTS_NAME
        try:
            facts = from_json(path.read_bytes(), CopyFacts)
            age_s = clock.wall_s() - path.stat().st_mtime
        except (OSError, msgspec.DecodeError):
            return {}
        told: dict[str, object] = msgspec.to_builtins(facts)
        found = {key: each for key, each in told.items() if each}
        return found if age_s < _OLD_S else {**found, "warnings": [_old(facts)]}

    def sweep(self) -> None:
        """Throw away the copies that nobody has mounted, whatever has left them."""
        if not self._directory.is_dir():
            return
        for home in sorted(self._directory.iterdir()):
            try:
                with self._guard:
                    if home.name not in self._used:
                        self._sweep(home)
            except (RemoraError, OSError) as error:
                log.info("%s stays for now: %s", home, error)

    def _sweep(self, home: Path) -> None:
        """Throw away *home* unless it is used; the guard is held."""
        if VOLUME_ID.fullmatch(home.name):
            volume = Volume(home.name, home.name, options={}, created_at="")
            target = self._mount_dir / home.name
            mounted = mounts.mounted_at(target) is not None
            if mounted and self._sources.has_record(volume.id):
                return
            if self.users(volume, target):
                return
            if mounted:  # it was removed on another node, and nobody reads it any more
                self.unmount(volume, target)
                return
        self._pool.trash.throw_away(home)

    def _take(self, volume: Volume, name: str, deadline: Deadline) -> None:
        """Make the copy; it is there as a whole or not at all."""
        with (
            self._sources.reading(name, deadline) as tree,
            self._under_way.new() as copy,
        ):
            _copy(name, tree, copy / DATA_NAME, self._within(name, deadline))
            facts = CopyFacts(
                *(name, tree.commit, tree.quality, tree.moment, tree.newer, tree.lacks),
                clock.now_rfc3339(),
            )
            files.write_durably(copy / _FACTS_NAME, msgspec.json.encode(facts))
            self._directory.mkdir(mode=0o700, exist_ok=True)
            copy.rename(self._home(volume))

    def _within(self, name: str, deadline: Deadline) -> Progress:
        """Return what breaks off a copy that takes too much time, or room."""
        end = Deadline(max(0.0, deadline.remaining_s() - _MARGIN_S))
        hint = (
            "put the pool on btrfs or XFS, where a copy takes neither; or, without a "
            f"deadline: remora snapshot create {name} NOW, remora clone {name}@NOW COPY"
        )

        def check(_copied: Copied) -> None:
            if end.passed():
                raise DeadlineError(
                    f"a copy of '{name}' takes longer than a Mount may", hint=hint
                )
            if lacking := lacking_space(self._pool.path, 1):
                raise BackendError(
                    f"a copy of '{name}' has no room: {lacking}", hint=hint
                )

        return check

    @contextmanager
    def _using(self, volume: Volume) -> Iterator[None]:
        """Keep the sweep away from a copy that is yet to be mounted."""
        with self._guard:
            self._used.add(volume.id)
        try:
            yield
        finally:
            with self._guard:
                self._used.discard(volume.id)

    def _throw_away(self, volume: Volume) -> None:
        """Throw away the copy, if it is there; the sweep does it where that fails."""
        try:
            self._pool.trash.throw_away(self._home(volume))
        except FileNotFoundError:
            pass
        except OSError as error:
            log.info("a copy of '%s' stays for now: %s", volume.name, error)

    def _home(self, volume: Volume) -> Path:
        """Return the directory of the copy; its id is a path only if it is an id."""
        return self._directory / self._pool.home(volume).name


def _old(facts: CopyFacts) -> str:
    return (
        f"it shows what was there at {facts.taken_at}, when it was mounted: whoever is "
        "to see newer commits has to be started anew for each backup"
    )


def _copy(name: str, tree: Tree, data: Path, progress: Progress) -> None:
    """Make *data* a copy of *tree* of volume *name*: if possible, of one moment."""
    if btrfs.subvolume(tree.directory):
        btrfs.snapshot(tree.directory, data)
        if btrfs.has_subvolumes(tree.directory):  # of them a snapshot has nothing
            raise BackendError(
                f"'{name}' has a subvolume in it that a container has made: no copy "
                "can have what is in it",
                hint="move what is in it to a plain directory, and delete it",
            )
        return
    data.mkdir(mode=0o700)
    copy_tree(tree.directory, Destination(data), progress=progress)


def _shows(target: Path, data: Path) -> bool:
    """Return whether the copy *data* is mounted at *target*."""
    if mounts.mounted_at(target) is None:
        return False
    try:
        shown, there = target.stat(), data.stat()
    except OSError:
        return False
    return (shown.st_dev, shown.st_ino) == (there.st_dev, there.st_ino)
