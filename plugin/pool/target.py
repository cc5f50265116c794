"""
Where a pool's filesystem lies: on a device, or in a file; and how far it has come.

It is made under a name for the time being: a file beside the one that is wanted, and a
label that says so. The last thing that is done to a whole one is to name it. So what a
crash has left is known, and the same command makes it anew; what has another name is
somebody's, and is never written to.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from backends.errors import InvalidRequestError
from backends.system import block_devices, files, mounts
from backends.system.run import find_program, run

# XFS takes twelve characters.
WHOLE: Final = "remora-pool"
UNFINISHED: Final = "remora-new"
# mkfs.xfs makes nothing below 300 MiB, and such a pool would be of no use.
_SIZE_MIN: Final = 512 * 2**20
# What the filesystem of the file keeps for others, the machine's own programs and logs.
_LEFT_MIN: Final = 2**30
# Blocks that were reserved there are overwritten in place. On btrfs each write takes
# new ones, and others may be elsewhere or in memory.
_RESERVING: Final = ("ext4", "xfs")
# They stand in units and in fstab, each of which has characters that mean something.
_PLAIN: Final = re.compile(r"/[A-Za-z0-9_./+:@=-]*")

# What mkfs.btrfs writes first, in place of a signature that wipefs knows, and where.
# Source: btrfs-progs, kernel-shared/ctree.h (BTRFS_MAGIC_TEMPORARY, btrfs_super_block).
_BTRFS_BEGUN: Final = (b"!BHRfS_M", 0x10040)
_BTRFS_LABEL: Final = (UNFINISHED.encode() + b"\0", 0x1012B)

_MODULE_DEADLINE_S: Final = 60.0
_LOOPS: Final = Path("/dev/loop-control")
# Where XFS counts for quotas. Not every kernel was built so.
_XFS_QUOTAS: Final = Path("/proc/fs/xfs/xqmstat")

State = Literal["none", "unfinished", "whole"]


@dataclass(frozen=True, slots=True)
class Kind:
    """A filesystem that clones files, and what makes it."""

    name: str
    package: str
    make: tuple[str, ...]
    make_in_file: tuple[str, ...]
    options_in_file: str
    more_program: str

    def programs(self) -> dict[str, str]:
        """Return the programs that are needed, with their Debian packages."""
        ours = dict.fromkeys((self.make[0], self.more_program), self.package)
        return ours | {
            "wipefs": "util-linux",
            "fallocate": "util-linux",
            "unshare": "util-linux",
            "findmnt": "util-linux",
            "mount": "mount",
            "losetup": "mount",
        }


# What a filesystem in a file gives back would make a hole there, whose blocks others
# could take: neither mkfs nor btrfs itself is to discard anything.
KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(
            name="xfs",
            package="xfsprogs",
            make=("mkfs.xfs", "-q", "-m", "reflink=1", "-L", UNFINISHED),
            make_in_file=("-K",),
            options_in_file="",
            more_program="xfs_io",
        ),
        Kind(
            name="btrfs",
            package="btrfs-progs",
            make=("mkfs.btrfs", "-q", "-L", UNFINISHED),
            make_in_file=("--nodiscard",),
            options_in_file="nodiscard",
            more_program="btrfs",
        ),
    )
}


@dataclass(frozen=True, slots=True)
class Target:
    """The device *path*, or a file of *size_bytes* there, with filesystem *kind*."""

    path: Path
    kind: Kind
    in_file: bool
    size_bytes: int

    def __str__(self) -> str:
        size = f", {self.size_bytes // 2**20} MiB" if self.in_file else ""
        return f"{self.path} ({self.kind.name}{size})"

    @property
    def draft(self) -> Path:
        """Where the filesystem lies until it is whole."""
        return (
            self.path.with_name(f".{self.path.name}.new") if self.in_file else self.path
        )

    def options_on_trial(self) -> list[str]:
        """Return the options without which it is not to be mounted."""
        found = ["loop", self.kind.options_in_file] if self.in_file else []
        return [each for each in found if each]

    def options(self) -> list[str]:
        """Return the options to mount it with, after it was mounted once."""
        quotas = ["prjquota"] if self.has_quotas() else []
        return [*self.options_on_trial(), *quotas]

    def has_quotas(self) -> bool:
        """Return whether XFS counts for projects; known when it has been mounted."""
        return self.kind.name == "xfs" and _XFS_QUOTAS.exists()

    def labelling(self, at: Path) -> list[str]:
        """Return the command that names it as whole, where it is mounted."""
        if self.kind.name == "xfs":
            return ["xfs_io", "-c", f"label -s {WHOLE}", str(at)]
        return ["btrfs", "filesystem", "label", str(at), WHOLE]

    def give_up(self) -> None:
        """Give back the room of a file that is not whole."""
        if self.in_file:
            self.draft.unlink(missing_ok=True)

    def is_at(self, directory: Path) -> bool:
        """
        Return whether it is mounted on *directory*.

        Raises:
            InvalidRequestError: something else is.

        """
        entry = mounts.mounted_at(directory)
        if entry is None:
            return False
        sources = block_devices.sources_of(entry)
        if self.path not in sources or entry.filesystem != self.kind.name:
            shown = sources[-1] if sources else entry.source
            raise InvalidRequestError(
                f"{entry.filesystem} of {shown} is mounted at {directory}",
                hint="--at DIRECTORY names another place; or umount it",
            )
        return True

    def state(self) -> State:
        """
        Return how far it has come; it is not mounted.

        Raises:
            InvalidRequestError: it may not be used, or belongs to somebody.
            BackendError: it cannot be read.

        """
        check_path(self.path)
        check_programs(self.kind.programs())
        self._check_kernel()
        return self._state_of_file() if self.in_file else self._state_of_device()

    def _check_kernel(self) -> None:
        """Raise InvalidRequestError if the kernel could not mount it."""
        if not _loaded(self.kind.name, lambda: self.kind.name in _known_filesystems()):
            raise InvalidRequestError(f"this kernel has no {self.kind.name}")
        if self.in_file and not _loaded("loop", _LOOPS.exists):
            raise InvalidRequestError(
                f"this machine has no loop devices ({_LOOPS})",
                hint="a container needs them from its host; or --device",
            )

    def _state_of_device(self) -> State:
        if fault := block_devices.use_fault(self.path):
            raise InvalidRequestError(fault, hint="nothing was changed")
        size = block_devices.size_bytes(self.path)
        if size < _SIZE_MIN:
            raise InvalidRequestError(f"{self.path} holds {size // 2**20} MiB; {_MIN}")
        found = block_devices.signatures(self.path)
        if not found:
            return self._state_without_signature()
        if {each.label for each in found} == {UNFINISHED}:
            return "unfinished"
        if self._is_pool(found):
            return "whole"
        raise InvalidRequestError(
            f"{self.path} is not empty: {_told(found)}",
            hint=self._to_empty(),
        )

    def _state_without_signature(self) -> State:
        begins = block_devices.beginning(self.path)
        if not begins.strip(b"\0"):
            return "none"
        if begins.startswith(*_BTRFS_BEGUN) and begins.startswith(*_BTRFS_LABEL):
            return "unfinished"
        # A database's own, what is encrypted without a header, a damaged filesystem.
        raise InvalidRequestError(
            f"{self.path} is not empty: it begins with bytes of an unknown kind",
            hint=self._to_empty(),
        )

    def _to_empty(self) -> str:
        zeros = f"dd if=/dev/zero of={self.path} bs=1M count=1"
        return f"if nobody needs that: wipefs --all {self.path} && {zeros}"

    def _state_of_file(self) -> State:
        if self.size_bytes < _SIZE_MIN:
            raise InvalidRequestError(_MIN)
        parent = self.path.parent
        if not parent.is_dir():
            raise InvalidRequestError(f"{parent} is no directory", hint="make it")
        if fault := files.way_fault(parent):
            raise InvalidRequestError(
                fault, hint="the pool's file must lie where only root writes"
            )
        if self.path.is_symlink() or self.path.exists():
            return self._state_of_old_file()
        filesystem = mounts.entry_covering(parent).filesystem
        if filesystem not in _RESERVING:
            raise InvalidRequestError(
                f"{parent} lies on {filesystem}, where no room can be kept for a file",
                hint="ext4 or xfs is needed; on btrfs a plain directory is a pool",
            )
        self._check_room(parent)
        return "unfinished" if self._old_draft_bytes() else "none"

    def _state_of_old_file(self) -> State:
        found = self.path.lstat()
        if stat.S_ISREG(found.st_mode) and self._is_pool(
            block_devices.signatures(self.path)
        ):
            if loops := block_devices.loops_of(self.path):
                raise InvalidRequestError(
                    f"{self.path} is in use as {', '.join(loops)}",
                    hint="findmnt shows where it is mounted; umount it",
                )
            if found.st_size == self.size_bytes:
                return "whole"
            raise InvalidRequestError(
                f"{self.path} is a pool of {found.st_size} bytes, "
                f"asked for {self.size_bytes}",
                hint="name its size, or another file",
            )
        raise InvalidRequestError(
            f"{self.path} exists and is no pool on {self.kind.name}",
            hint="nothing is written to it: name another file, or remove it",
        )

    def _is_pool(self, found: list[block_devices.Signature]) -> bool:
        return [(each.type, each.label) for each in found] == [(self.kind.name, WHOLE)]

    def _check_room(self, parent: Path) -> None:
        _, available = files.free_bytes(parent)
        available += self._old_draft_bytes()
        if available < self.size_bytes + _LEFT_MIN:
            raise InvalidRequestError(
                f"{parent} has {available // 2**20} MiB free; "
                f"{self.size_bytes // 2**20} MiB are asked for, and "
                f"{_LEFT_MIN // 2**20} MiB have to stay free",
                hint="a smaller --size, or another disk",
            )

    def _old_draft_bytes(self) -> int:
        """Return what a command that was killed has left there, 0 if nothing."""
        try:
            found = self.draft.lstat()
        except FileNotFoundError:
            return 0
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in {0, os.geteuid()}:
            raise InvalidRequestError(f"{self.draft} is in the way", hint="move it")
        return max(1, found.st_blocks * 512)

    def uuid(self) -> str:
        """Return the filesystem's own identity."""
        found = block_devices.signatures(self.path)
        return next((each.uuid for each in found if each.uuid), "")


_MIN: Final = f"a pool has at least {_SIZE_MIN // 2**20} MiB"


def check_path(path: Path) -> None:
    """Raise InvalidRequestError unless units and fstab can name *path* as it is."""
    if not _PLAIN.fullmatch(str(path)):
        raise InvalidRequestError(
            f"'{path}' cannot stand in a unit",
            hint="letters, digits and _ . / + : @ = - can",
        )


def check_programs(needed: dict[str, str]) -> None:
    """Raise InvalidRequestError if a program of *needed* is missing."""
    for program, package in needed.items():
        if find_program(program) is None:
            raise InvalidRequestError(
                f"{program} is not installed", hint=f"apt-get install {package}"
            )


def _loaded(module: str, is_there: Callable[[], bool]) -> bool:
    """Return whether the kernel has it, after an attempt to load *module*."""
    if not is_there() and find_program("modprobe"):
        command = ["modprobe", "--quiet", module]
        run(command, deadline_s=_MODULE_DEADLINE_S, allowed=range(256))
    return is_there()


def _known_filesystems() -> list[str]:
    lines = Path("/proc/filesystems").read_text("ascii").splitlines()
    return [line.split()[-1] for line in lines]


def _told(found: list[block_devices.Signature]) -> str:
    return ", ".join(
        f"{each.type} '{each.label}'" if each.label else each.type for each in found
    )
