"""
What btrfs alone can: subvolumes, snapshots, and which inodes have changed since one.

The kernel stamps each inode's item with the transaction that wrote it last, and a
snapshot with the one that made it.

Source: include/uapi/linux/btrfs.h, btrfs_tree.h; ioctl_btrfs in btrfs-ioctl(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from backends.errors import BackendError
from backends.system import libc
from backends.system.beneath import Way, opened
from backends.system.btrfs_search import EXTENT_DATA, OFFSET_LAST, TYPE_LAST, items
from backends.system.changeable import clear_flags, is_changeable
from backends.system.walk import walk

# The root of every subvolume has it. Source: btrfs-subvolume(8).
ROOT_INODE: Final = 256
# Source: include/uapi/linux/magic.h.
FILESYSTEM_TYPE: Final = 0x9123_683E
# What a snapshot has in the place of a subvolume. Source: btrfs-subvolume(8).
PLACEHOLDER_INODE: Final = 2
_INODE_LAST: Final = 2**64 - 256

_SUBVOLUME_CREATE: Final = 0x5000_940E
_SNAPSHOT_CREATE: Final = 0x5000_9417  # version 2
_DESTROY: Final = 0x5000_940F
_GET_FLAGS: Final = 0x8008_9419
_SET_FLAGS: Final = 0x4008_941A
_SUBVOLUME_INFO: Final = 0x81F8_943C
_SUBVOLUMES_IN: Final = 0xD000_943D

# Descriptor, transaction, flags, nothing, name.
_SNAPSHOT: Final = struct.Struct("=qQQ32s4040s")
_READ_ONLY: Final = 2
_SUBVOLUME_FLAGS: Final = struct.Struct("=Q")
_NAME: Final = struct.Struct("=8x4088s")
# Identities of itself and of what it was taken of; the transactions.
_INFO: Final = struct.Struct("=296x16s16s16xQQ144x")
# Which are in it, up to 255; how many.
_IN: Final = struct.Struct("=4088xB7x")
_INODE_ITEM: Final = 1
_INODE: Final = struct.Struct("=8xQ36xI")  # the transaction; the mode
_EXTENT: Final = struct.Struct("=Q")  # the transaction


@dataclass(frozen=True, slots=True)
class Subvolume:
    """
    What a subvolume or snapshot is.

    ``taken_of`` is the identity of a snapshot's origin, zeros if it is none;
    ``transaction`` the one that made it, ``changed_in`` the last one with a change of
    any inode. What was written to files, but not yet to the disk, shows in none.
    """

    identity: bytes
    taken_of: bytes
    changed_in: int
    transaction: int


@dataclass(frozen=True, slots=True)
class Changed:
    """
    The inodes of a subvolume that have changed.

    ``written`` are those of ``files`` whose contents have: what is still to be written
    when a snapshot is made comes later than the file's times.
    """

    files: set[int] = field(default_factory=set)
    directories: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)


def subvolume(directory: Path) -> Subvolume | None:
    """
    Return what the subvolume *directory* is, None if it is none or not there.

    Before Linux 4.18 nothing counts as one.
    """
    try:
        if directory.lstat().st_ino != ROOT_INODE:
            return None  # the cheapest no
        with opened(directory) as descriptor:
            content = bytearray(_INFO.size)
            fcntl.ioctl(descriptor, _SUBVOLUME_INFO, content)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if error.errno != errno.ENOTTY:
            raise
        return None  # another filesystem
    return Subvolume(*_INFO.unpack(content))


def has_subvolumes(directory: Path) -> bool:
    """Return whether others are in the subvolume *directory*, at any depth."""
    content = bytearray(_IN.size)
    with opened(directory) as descriptor:
        try:
            fcntl.ioctl(descriptor, _SUBVOLUMES_IN, content)
        except OSError as error:
            if error.errno != errno.EOVERFLOW:
                raise
            return True
    return bool(_IN.unpack(content)[0])


def create(directory: Path) -> None:
    """
    Make *directory* an empty subvolume.

    Raises:
        OSError: EEXIST, ENOSPC and others.

    """
    _call_by_name(_SUBVOLUME_CREATE, directory)


def snapshot(source: Path, target: Path) -> None:
    """
    Make *target* a read-only snapshot of the subvolume *source*, durably.

    Raises:
        OSError: EEXIST, ENOSPC and others.

    """
    with opened(source) as origin, opened(target.parent) as parent:
        name = os.fsencode(target.name)
        content = _SNAPSHOT.pack(origin, 0, _READ_ONLY, b"", name)
        libc.ioctl(parent, _SNAPSHOT_CREATE, bytearray(content))
    if not is_changeable(target):  # else nobody could rename or delete it
        _make_movable(target)


def delete(directory: Path) -> None:
    """
    Delete *directory* if it is a subvolume; its blocks become free in the background.

    Containers can make subvolumes in it, without any capability: they go as well.

    Raises:
        BackendError: it, or one in it, is mounted, for instance.

    """
    try:
        if not subvolume(directory):
            return
        if not is_changeable(directory):
            _make_movable(directory)
        try:
            _call_by_name(_DESTROY, directory)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY:
                raise
            with opened(directory) as top:
                _delete_nested(top)
            _call_by_name(_DESTROY, directory)
    except OSError as error:
        raise BackendError(f"cannot delete {directory}: {error.strerror}") from error


def _make_movable(subvolume: Path) -> None:
    """Let *subvolume*, read-only or not, be renamed and deleted; it is as it was."""
    with opened(subvolume) as top:
        flags = fcntl.ioctl(top, _GET_FLAGS, bytes(_SUBVOLUME_FLAGS.size))
        fcntl.ioctl(top, _SET_FLAGS, bytes(_SUBVOLUME_FLAGS.size))
        clear_flags(top, os.fsencode(subvolume))
        fcntl.ioctl(top, _SET_FLAGS, flags)


def _delete_nested(top: int) -> None:
    """Delete all subvolumes in the open directory *top*, the innermost first."""
    way = Way(top)
    # Of each subvolume on the way, the paths in it of those that are to go.
    doomed = [_nested(top)]
    try:
        while doomed[-1] or len(doomed) > 1:
            if doomed[-1]:
                for name in doomed[-1][-1].split(b"/"):
                    way.down(name)
                # Its maker may have made it read-only.
                fcntl.ioctl(way.last(), _SET_FLAGS, bytes(_SUBVOLUME_FLAGS.size))
                clear_flags(way.last(), doomed[-1][-1])
                doomed.append(_nested(way.last()))
                continue
            doomed.pop()
            *above, name = doomed[-1].pop().split(b"/")
            way.up()
            libc.ioctl(way.last(), _DESTROY, bytearray(_NAME.pack(name)))
            for _ in above:
                way.up()
    finally:
        way.close()


def _nested(top: int) -> list[bytes]:
    """Return the paths of the subvolumes in the open directory *top*, not in others."""
    device = os.fstat(top).st_dev
    return [path for path, _, _, found in walk(top) if found.st_dev != device]


def _call_by_name(request: int, directory: Path) -> None:
    with opened(directory.parent) as parent:
        content = _NAME.pack(os.fsencode(directory.name))
        libc.ioctl(parent, request, bytearray(content))


def changed(directory: Path, *, since: int) -> Changed:
    """
    Return what a later transaction than *since* has written in subvolume *directory*.

    What was deleted shows in the directory that it was in.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN.

    """
    found = Changed()
    first, last = (ROOT_INODE, 0, 0), (_INODE_LAST, TYPE_LAST, OFFSET_LAST)
    with opened(directory) as descriptor:
        for (number, kind, _), item in items(
            descriptor, first=first, last=last, transaction_min=since + 1
        ):
            if kind == _INODE_ITEM:
                transaction, mode = _INODE.unpack_from(item)
                if transaction > since:
                    which = found.directories if stat.S_ISDIR(mode) else found.files
                    which.add(number)
            elif kind == EXTENT_DATA and _EXTENT.unpack_from(item)[0] > since:
                found.written.add(number)
    return found
