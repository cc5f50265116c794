"""
Makes changeable what is immutable, or only grows: `chattr +i` and `+a`.

Who has root in a container, and CAP_LINUX_IMMUTABLE, can set these. Root cannot delete,
replace or rename such a file then, nor change what is in such a directory.

Source: ioctl_iflags(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Final

from backends.system.beneath import open_directory, opened
from backends.system.regular_files import NotRegularError, open_regular
from backends.system.walk import walk

_GET_FLAGS: Final = 0x8008_6601
_SET_FLAGS: Final = 0x4008_6602
_FLAGS: Final = struct.Struct("=I4x")
_IMMUTABLE, _APPEND_ONLY = 0x10, 0x20
_HAS_NONE: Final = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NOT_ALLOWED: Final = (
    "it is immutable, or only grows (chattr -i -a), and the daemon lacks "
    "CAP_LINUX_IMMUTABLE to change that:"
)


def make_changeable(directory: Path) -> int:
    """
    Let all in *directory*, and itself, be changed; return how many could not be.

    No link is followed, and no other filesystem entered.

    Raises:
        PermissionError: one is not to be had; this process may not.
        OSError: something cannot be read.

    """
    count = 0
    with opened(directory) as top:
        count += clear_flags(top, os.fsencode(directory))
        for path, name, parent, status in walk(top):
            if stat.S_ISDIR(status.st_mode):
                count += _of_directory(name, parent, path)
            elif stat.S_ISREG(status.st_mode):
                count += _of_file(name, parent, path)
    return count


def make_movable(directory: Path) -> None:
    """Let *directory* itself be changed and renamed; what is in it stays as it is."""
    with opened(directory) as top:
        clear_flags(top, os.fsencode(directory))


def is_changeable(directory: Path) -> bool:
    """Return whether *directory* itself can be changed, renamed and deleted."""
    with opened(directory) as top:
        return not _flags(top) & (_IMMUTABLE | _APPEND_ONLY)


def _of_directory(name: bytes, parent: int, path: bytes) -> int:
    try:
        descriptor = open_directory(name, dir_fd=parent)
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return _closing(descriptor, path)


def _of_file(name: bytes, parent: int, path: bytes) -> int:
    try:
        descriptor = open_regular(name, dir_fd=parent)
    except (FileNotFoundError, NotRegularError):
        return 0
    return _closing(descriptor, path)


def _closing(descriptor: int, path: bytes) -> int:
    try:
        return clear_flags(descriptor, path)
    finally:
        os.close(descriptor)


def clear_flags(descriptor: int, path: bytes) -> int:
    """
    Let what is open, *path*, be changed; return 1 if it could not be until now.

    Raises:
        PermissionError: this process may not.

    """
    flags = _flags(descriptor)
    kept = flags & ~(_IMMUTABLE | _APPEND_ONLY)
    if kept == flags:
        return 0
    try:
        fcntl.ioctl(descriptor, _SET_FLAGS, _FLAGS.pack(kept))
    except PermissionError:
        raise PermissionError(errno.EPERM, _NOT_ALLOWED, path) from None
    return 1


def _flags(descriptor: int) -> int:
    """Return the flags of what is open, none where the filesystem has no such."""
    try:
        told = fcntl.ioctl(descriptor, _GET_FLAGS, bytes(_FLAGS.size))
    except OSError as error:
        if error.errno in _HAS_NONE:
            return 0
        raise
    return int(_FLAGS.unpack(told)[0])
