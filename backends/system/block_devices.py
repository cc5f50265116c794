"""
Block devices, and files that stand in for them: what is on them, and who uses them.

Source: wipefs(8), open(2) (O_EXCL on a block device), sysfs: block, loop.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from backends.errors import BackendError
from backends.system import mounts
from backends.system.decoding import from_json
from backends.system.mountinfo import MountEntry
from backends.system.run import run

_CLASS: Final = Path("/sys/class/block")
_NUMBERS: Final = Path("/sys/dev/block")
_DEADLINE_S: Final = 60.0


class Signature(msgspec.Struct, frozen=True):
    """One mark that a filesystem, a partition table or the like has left."""

    type: str
    uuid: str | None = None
    label: str | None = None


class _Signatures(msgspec.Struct, frozen=True):
    signatures: list[Signature] = []


def signatures(path: Path) -> list[Signature]:
    """
    Return what is found on the device or file *path*; nothing if it is empty.

    Raises:
        BackendError: it cannot be read.

    """
    done = run(["wipefs", "--no-act", "--json", str(path)], deadline_s=_DEADLINE_S)
    if not done.output.strip():
        return []
    try:
        return from_json(done.output.encode(), _Signatures).signatures
    except msgspec.DecodeError as error:
        raise BackendError(f"cannot read what wipefs says of {path}: {error}") from None


def beginning(path: Path) -> bytes:
    """Return the first MiB of the device or file *path*."""
    with path.open("rb") as file:
        return file.read(2**20)


def size_bytes(path: Path) -> int:
    """Return how many bytes the device or file *path* holds."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def use_fault(path: Path) -> str:
    """Return who uses the block device *path*, or why it is none; "" if it is free."""
    try:
        found = path.stat()
        if not stat.S_ISBLK(found.st_mode):
            return f"{path} is no block device"
        number = f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
        if fault := _share_fault(Path(os.path.realpath(_NUMBERS / number))):
            return f"{path} {fault}"
        for entry in mounts.mount_table():
            if entry.device == number or path in sources_of(entry):
                return f"{path} is mounted at {entry.mount_point}"
        # The kernel lets nobody have a device for himself that anybody uses.
        os.close(os.open(path, os.O_RDWR | os.O_EXCL))
    except OSError as error:
        return f"{path} is in use or not there: {error.strerror}"
    return ""


def _share_fault(about: Path) -> str:
    """Return what else is made of the device that sysfs tells of in *about*."""
    if parts := sorted(each.parent.name for each in about.glob("*/partition")):
        return f"has partitions: {', '.join(parts)}"
    if holders := sorted(each.name for each in about.glob("holders/*")):
        return f"is part of {', '.join(holders)}"
    if (about / "ro").read_text("ascii").strip() == "1":
        return "is read-only"
    return ""


def sources_of(entry: MountEntry) -> list[Path]:
    """
    Return the device that *entry* shows, and the file behind it if it is a loop.

    What has no device (a network, an overlay) shows none.
    """
    if not entry.source.startswith("/"):
        return []
    device = Path(os.path.realpath(entry.source))
    return [each for each in (device, _file_behind(device.name)) if each]


def loops_of(path: Path) -> list[str]:
    """Return the loop devices that show the file *path*, in whatever namespace."""
    found = (each.name for each in _CLASS.glob("loop*"))
    return sorted(name for name in found if _file_behind(name) == path)


def _file_behind(device: str) -> Path | None:
    try:
        behind = (_CLASS / device / "loop/backing_file").read_bytes()
    except OSError:
        return None  # no loop device, or one that shows nothing
    return Path(os.fsdecode(behind).removesuffix("\n"))


def sync(path: Path) -> None:
    """Make what was written to the device or file *path* durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
