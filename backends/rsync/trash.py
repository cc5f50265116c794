"""
The trash of a pool: what was removed, until it is deleted.

Each thing is deleted by itself, and within a bound. One that cannot be deleted (another
filesystem is in it, the disk hangs) is told of once, stays, and is tried again after a
while; all others go meanwhile.
"""

from __future__ import annotations

import logging
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

from backends.base import VOLUME_ID
from backends.errors import RemoraError
from backends.snapshots import DATA_NAME
from backends.system import files, mounts, quota
from backends.system.changeable import make_movable
from backends.system.clock import Deadline

log = logging.getLogger(__name__)
# The longest that one thing may keep the others waiting, and its pause after a failure:
# each try that hangs may leave a process behind.
_TURN_S: Final = 120.0
_PAUSE_S: Final = 600.0


class Trash:
    """The directory *path*; several threads may throw away, one empties."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._resting: dict[str, Deadline] = {}
        self._told: dict[str, str] = {}

    def throw_away(self, directory: Path) -> None:
        """Rename *directory* into the trash; durable but for its old parent."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        # The suffix lets what was restored by hand be removed again.
        thrown = self.path / f"{directory.name}.{secrets.token_hex(4)}"
        try:
            directory.rename(thrown)
        except PermissionError:
            make_movable(directory)  # it was some container's: chattr +i
            directory.rename(thrown)
        files.sync_directory(self.path)

    def empty(self, deadline: Deadline) -> int:
        """Delete what can be deleted until *deadline*; return how many things."""
        if not self.path.is_dir():
            return 0
        thrown = {each.name: each for each in sorted(self.path.iterdir())}
        for kept in (self._resting, self._told):
            for name in kept.keys() - thrown.keys():
                del kept[name]
        mounted = mounts.mount_points_below(self.path)
        count = 0
        for name, directory in thrown.items():
            resting = self._resting.get(name)
            if deadline.passed() or (resting is not None and not resting.passed()):
                continue
            if inside := [each for each in mounted if directory in each.parents]:
                self._tell(directory, f"a filesystem is mounted in it, at {inside[0]}")
                continue
            try:
                _delete(directory, Deadline(min(_TURN_S, deadline.remaining_s())))
                count += 1
            except (RemoraError, OSError) as error:
                self._resting[name] = Deadline(_PAUSE_S)
                self._tell(directory, str(error))
        return count

    def _tell(self, directory: Path, reason: str) -> None:
        if self._told.get(directory.name) != reason:
            self._told[directory.name] = reason
            log.warning("%s cannot be deleted yet: %s", directory, reason)


def _delete(directory: Path, deadline: Deadline) -> None:
    """Delete *directory*, in which nothing is mounted."""
    for data in _data_directories(directory):
        quota.discard(data, deadline_s=deadline.remaining_s())
    if VOLUME_ID.fullmatch(directory.stem):
        # A volume that had no bytes goes without a program being started.
        with suppress(OSError):
            (directory / "live").rmdir()
            (directory / "volume.json").unlink()
    files.remove_tree(directory, deadline_s=deadline.remaining_s())


def _data_directories(thrown: Path) -> list[Path]:
    """
    Return what may be subvolumes, or have a limit, in what was thrown away.

    Only where the pool puts them: all other names may be a container's, and links.
    """
    found = []
    if VOLUME_ID.fullmatch(thrown.stem):  # what is in such a directory is ours
        found += [thrown / "live", thrown / "outbox/tree"]
        snapshots = f"snapshots/*/{DATA_NAME}"
        for each in (snapshots, "commits/*", "quarantine/*", "outbox/*/tree"):
            found += thrown.glob(each)
    # A snapshot has its bytes in one; what was set apart had itself been a `live`.
    found += [thrown / DATA_NAME, thrown]
    return [each for each in found if _is_directory(each)]


def _is_directory(path: Path) -> bool:
    """Return whether *path* is a directory, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
