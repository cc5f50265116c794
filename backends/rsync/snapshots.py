"""
Snapshots in a pool: copies beside the live bytes, which share blocks if they can.

A copy is made in `copies/` and renamed into place when it is complete. To restore, the
copy becomes a snapshot first and then changes places with the live directory, in one
step of the filesystem: whatever happens, both are there.
"""

from __future__ import annotations

import errno
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import msgspec

from backends.base import Snapshot, Volume
from backends.errors import BackendError, RemoraError, SnapshotExistsError
from backends.rsync.copies import CopiesUnderWay
from backends.rsync.pool import Pool, failed, make_live
from backends.snapshots import DATA_NAME, FACTS_NAME, not_found
from backends.system import clock, files, libc
from backends.system.changeable import make_movable
from backends.system.clock import Deadline
from backends.system.copying import Copied, Destination, Progress, copy_tree
from backends.system.decoding import from_json

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
_QUOTA_DEADLINE_S: Final = 30.0


class RsyncSnapshots:
    """The snapshots of the volumes of *pool*; see `backends.snapshots.Snapshots`."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.copies = CopiesUnderWay(pool)

    def create(
        self,
        volume: Volume,
        name: str,
        *,
        mounted_at: Path | None,
        progress: Progress,
    ) -> Snapshot:
        """Copy the live directory; its writers and we share the kernel's cache."""
        del mounted_at
        self._pool.require()
        self._require_free(volume, name)
        with self.copies.new() as copy:
            data = copy / DATA_NAME
            data.mkdir(mode=0o700)
            live = self._pool.home(volume) / "live"
            copied = copy_tree(live, Destination(data), progress=progress)
            return self._keep(volume, name, copy, copied)

    def all(self, volume: Volume) -> list[Snapshot]:
        """Return the snapshots, oldest first."""
        found = []
        try:
            names = sorted(each.name for each in self._directory(volume).iterdir())
        except FileNotFoundError:
            return []
        for name in names:
            path = self._directory(volume) / name / FACTS_NAME
            try:
                facts = from_json(path.read_bytes(), dict[str, Any])
            except (OSError, msgspec.DecodeError):
                facts = {}  # when it was made is lost, not the snapshot
            found.append(Snapshot.of_facts(name, facts))
        return sorted(found, key=lambda each: each.created_at)

    def remove(self, volume: Volume, name: str) -> None:
        """Rename it into the trash."""
        self._pool.require()
        self.data_directory(volume, name)
        try:
            self._pool.trash.throw_away(self._directory(volume) / name)
            files.sync_directory(self._directory(volume))
        except OSError as error:
            raise failed(f"cannot remove snapshot '{name}'", error) from error

    def restore(
        self,
        volume: Volume,
        name: str,
        *,
        keep_as: str,
        progress: Progress,
        exchanging: AbstractContextManager[None],
    ) -> None:
        """Copy the snapshot, then let the copy and the live directory change places."""
        self._pool.require()
        source = self.data_directory(volume, name)
        self._require_free(volume, keep_as)
        with self.copies.new() as copy:
            data = copy / DATA_NAME
            make_live(data, volume, Deadline(_QUOTA_DEADLINE_S))
            copied = copy_tree(source, Destination(data), progress=progress)
            self._keep(volume, keep_as, copy, copied)
        kept = self._directory(volume) / keep_as
        live = self._pool.home(volume) / "live"
        exchanged = False
        try:
            # From the exchange on the bytes count: a promise may seal them at once.
            files.sync_filesystem(kept)
            make_movable(live)
            with exchanging:
                _exchange(kept / DATA_NAME, live)
                exchanged = True
                files.sync_directory(kept)
                files.sync_directory(live.parent)
        except (RemoraError, OSError) as error:
            if exchanged:  # what is kept are the newest bytes now
                raise BackendError(
                    f"'{volume.name}' was restored, and the disk has not kept that yet:"
                    f" {error}",
                    hint=f"the bytes of before are snapshot '{keep_as}'; restore again",
                ) from error
            self._pool.trash.throw_away(kept)
            if isinstance(error, RemoraError):
                raise
            raise failed(f"cannot restore '{volume.name}'", error) from error

    def data_directory(self, volume: Volume, name: str) -> Path:
        """Return where the snapshot's bytes are, or raise SnapshotNotFoundError."""
        data = self._directory(volume) / name / DATA_NAME
        if not data.is_dir():
            raise not_found(volume, name)
        return data

    def _directory(self, volume: Volume) -> Path:
        return self._pool.home(volume) / "snapshots"

    def _require_free(self, volume: Volume, name: str) -> None:
        if (self._directory(volume) / name).exists():
            raise SnapshotExistsError(
                f"volume '{volume.name}' has a snapshot '{name}'",
                hint="use another name, or remove it: remora snapshot rm",
            )

    def _keep(self, volume: Volume, name: str, copy: Path, copied: Copied) -> Snapshot:
        """Give a complete copy its name and place."""
        snapshot = Snapshot.of_copy(name, clock.now_rfc3339(), copied)
        files.write_durably(copy / FACTS_NAME, msgspec.json.encode(snapshot))
        directory = self._directory(volume)
        # Without parents: a volume that was removed meanwhile has no place for it.
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            self._require_free(volume, name)
            copy.rename(directory / name)
        except FileNotFoundError:
            raise BackendError(
                f"volume '{volume.name}' was removed meanwhile"
            ) from None
        files.sync_directory(directory)
        files.sync_directory(directory.parent)
        return snapshot


def _exchange(one: Path, other: Path) -> None:
    """Let two directories change places, in one step. Source: renameat2(2)."""
    try:
        libc.call(
            "renameat2",
            *(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)),
            _RENAME_EXCHANGE,
            about=str(one),
        )
    except OSError as error:
        if error.errno == errno.EINVAL:
            said = "this filesystem cannot exchange two directories"
            raise OSError(error.errno, said, str(one)) from None
        raise
