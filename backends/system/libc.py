"""
The kernel's calls that Python 3.11 does not have; the one place that opens libc.

It imports the standard library alone, and little of it: programs that start in a bare
Python, and the guard, call the kernel through it too.
"""

import ctypes
import os
from typing import Any

MS_NOSUID, MS_NODEV = 0x2, 0x4
MS_RDONLY, MS_REMOUNT, MS_BIND = 0x1, 0x20, 0x1000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8

_libc = ctypes.CDLL(None, use_errno=True)
# ctypes passes an int unless it knows of a wider type.
_libc.mount.argtypes = (
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p),
    *(ctypes.c_ulong, ctypes.c_char_p),
)
_libc.fanotify_mark.argtypes = (
    *(ctypes.c_int, ctypes.c_uint, ctypes.c_uint64),
    *(ctypes.c_int, ctypes.c_char_p),
)
_libc.sync_file_range.argtypes = (
    *(ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    ctypes.c_uint,
)
# Where `sync_file_range` reaches all pages of a file. On overlayfs it does nothing.
_EXT4, _XFS = 0xEF53, 0x58465342
_WAIT_WRITE_WAIT = 1 | 2 | 4
_STATFS_SIZE_MAX = 256


def call(function: str, *arguments: Any, about: str | None = None) -> int:
    """
    Return what *function* of libc returned.

    Raises:
        OSError: it was less than 0; *about* is what the error names.

    """
    result: int = getattr(_libc, function)(*arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), about)
    return result


def mount(
    source: bytes | None,
    target: bytes,
    kind: bytes | None,
    flags: int,
    options: bytes | None = None,
) -> None:
    """
    Make a mount at *target*, or change the one that is there.

    Source: mount(2).
    """
    about = os.fsdecode(target)
    call("mount", source, target, kind, flags, options, about=about)


def write_out(descriptor: int) -> None:
    """
    Write the pages of a file out, so that none stays dirty.

    Where possible that is all: the flush of a disk costs more than a small file. A
    later flush of anything on the same filesystem makes them durable.

    Source: sync_file_range(2), statfs(2).
    """
    told = ctypes.create_string_buffer(_STATFS_SIZE_MAX)
    call("fstatfs", descriptor, told)
    if ctypes.c_long.from_buffer(told).value in (_EXT4, _XFS):
        call("sync_file_range", descriptor, 0, 0, _WAIT_WRITE_WAIT)
    else:
        os.fdatasync(descriptor)


def umount(target: bytes, flags: int) -> None:
    """Unmount what is at *target*. Source: umount2(2)."""
    call("umount2", target, flags, about=os.fsdecode(target))


def sync_filesystem(descriptor: int, *, about: str | None = None) -> None:
    """Make the whole filesystem of *descriptor* durable. Source: syncfs(2)."""
    call("syncfs", descriptor, about=about)
