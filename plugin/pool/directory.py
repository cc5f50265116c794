"""The directory that a pool is mounted on, and what may lie there before."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backends.errors import InvalidRequestError
from backends.rsync.pool import identity_of
from backends.system import files, mounts

# What the daemon makes in a new pool.
_FILE: Final = "pool.json"
_DIRECTORIES: Final = ("volumes", "copies", "trash")
_FSTAB: Final = Path("/etc/fstab")
_GUIDE: Final = "docs/guides/install.md tells how to move them"


@dataclass(frozen=True, slots=True)
class PoolDirectory:
    """
    The directory *path* for a new pool, on a node whose pool is at *present* now.

    *known* is what the node has noted as its pool's identity, and *note* has it noted.
    """

    path: Path
    present: Path
    known: str | None
    note: Callable[[str], None]

    def check(self) -> None:
        """
        Raise InvalidRequestError unless a pool may be mounted there.

        Nothing but an empty pool of this node may lie there.
        """
        path = self.path
        if os.path.lexists(path) and not path.is_dir():
            raise InvalidRequestError(f"{path} is no directory")
        standing = next(each for each in (path, *path.parents) if each.exists())
        if fault := files.way_fault(standing):
            raise InvalidRequestError(fault, hint="chown root, chmod go-w")
        if self._is_in_fstab():
            raise InvalidRequestError(
                f"{_FSTAB} has a line for {path} already",
                hint="mount what it names, or remove the line",
            )
        if volumes := _names_in(path / "volumes"):
            raise InvalidRequestError(
                f"{path} has {len(volumes)} volumes, such as {volumes[0]}",
                hint=f"{_GUIDE}",
            )
        for name in _names_in(path):
            if name != _FILE and (name not in _DIRECTORIES or _names_in(path / name)):
                raise InvalidRequestError(
                    f"{path} is not empty: {name}", hint="--at names another directory"
                )

    def identity(self) -> str:
        """
        Return which pool the new one is to be for the node, "" if that is open.

        One without volumes is only replaced.
        """
        return identity_of(self.present) or self.known or ""

    def is_moved(self) -> bool:
        """
        Return whether the present pool has volumes, and goes on being the one it is.

        Whoever copies them brings its identity along.
        """
        return bool(_names_in(self.present / "volumes"))

    def missing(self) -> bool:
        """Return whether the node has a pool that is not where it should be."""
        return self.known is not None and identity_of(self.present) is None

    def require_gone(self, pool_id: str, mount_dir: Path) -> None:
        """
        Raise InvalidRequestError unless the node's pool *pool_id* is gone for good.

        Nothing is at its place, and no volume of it is mounted in *mount_dir*.
        """
        if self.known != pool_id:
            known = f"this node's pool is {self.known}" if self.known else "it has none"
            raise InvalidRequestError(f"{pool_id} is not this node's pool: {known}")
        if not self.missing():
            raise InvalidRequestError(
                f"{self.present} holds a pool",
                hint="it is kept; umount its disk if that is to be given up",
            )
        for entry in mounts.mount_table():
            where = Path(entry.mount_point)
            is_pools = entry.root.endswith(f"/volumes/{where.name}/live")
            if where.parent == mount_dir and is_pools:
                raise InvalidRequestError(
                    f"a volume of it is mounted: {where}",
                    hint="stop the containers that use it, or restart the machine",
                )

    def leftovers(self) -> list[Path]:
        """Return what the empty pool has there, what is to be removed first first."""
        return [
            self.path / name
            for name in (*_DIRECTORIES, _FILE)
            if os.path.lexists(self.path / name)
        ]

    def clear(self) -> None:
        """
        Remove what the empty pool has there.

        Raises:
            InvalidRequestError: it is not empty any more.

        """
        for each in self.leftovers():
            try:
                each.unlink() if each.name == _FILE else each.rmdir()
            except OSError as error:
                raise InvalidRequestError(
                    f"{each} is not empty any more: {error.strerror}",
                    hint="stop who writes there, then the same command again",
                ) from error
        files.sync_directory(self.path)

    def _is_in_fstab(self) -> bool:
        found = set()
        with suppress(FileNotFoundError):
            for line in _FSTAB.read_text("utf-8", "surrogateescape").splitlines():
                what, *where = line.split()[:2] or ["#"]
                if where and not what.startswith("#"):
                    found.add(os.path.normpath(where[0]))
        return str(self.path) in found


def _names_in(directory: Path) -> list[str]:
    try:
        return sorted(each.name for each in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
