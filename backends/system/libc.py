"""
The kernel's calls that Python 3.11 does not have; the one place that opens libc.

It imports the standard library alone, and little of it: programs that start in a bare
Python, and the guard, call the kernel through it too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # to load these takes longer than each Unmount's program runs
    from collections.abc import Collection
    from typing import Any

MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x2, 0x4, 0x8
MS_RDONLY, MS_REMOUNT, MS_BIND = 0x1, 0x20, 0x1000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
MNT_FORCE, MNT_DETACH, UMOUNT_NOFOLLOW = 1, 2, 8

CAPABILITIES_MAX = 64
_PR_SET_PDEATHSIG, _PR_GET_PDEATHSIG = 1, 2
_PR_SET_SECCOMP, _FILTER = 22, 2
_AT_FDCWD = -100
_STATFS_SIZE_MAX, _LONG = 256, struct.calcsize("@l")
_CAPABILITY_VERSION = 0x20080522
# The same on all machines.
_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_CLOEXEC, _CREATE = 1, 6
_OPEN_TREE_CLONE, _AT_EMPTY_PATH, _FROM_DESCRIPTOR = 1, 0x1000, 4
MOUNT_READ_ONLY, MOUNT_NOSUID, MOUNT_NODEV = 0x1, 0x2, 0x4
# On the machines that we run on; 0 is no such call.
_KCMP = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, 0)
_KCMP_FILES = 2
_AT_SYMLINK_NOFOLLOW, _AT_NO_AUTOMOUNT = 0x100, 0x800
_STATX_SIZE, _MOUNT_ROOT = 256, 0x2000
_STATX_BIRTH, _BIRTH_AT = 0x800, 80
RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x2, 0x4, 0x8

_M_ARENA_MAX = -8

_libc = ctypes.CDLL(None, use_errno=True)
# ctypes passes an int unless it knows of a wider type.
_libc.mount.argtypes = (
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p),
    *(ctypes.c_ulong, ctypes.c_char_p),
)
_libc.prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
_libc.syscall.argtypes = (ctypes.c_long, *(ctypes.c_void_p,) * 5)
_libc.syscall.restype = ctypes.c_long
_libc.ioctl.argtypes = ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p
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
FALLOCATE_KEEP_SIZE, FALLOCATE_PUNCH, FALLOCATE_COLLAPSE = 1, 2, 8
FALLOCATE_ZERO, FALLOCATE_INSERT = 16, 32


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


def share_files(one: int, other: int) -> bool:
    """
    Return whether two threads have one table of open files, as far as the kernel tells.

    Source: kcmp(2).
    """
    arguments = (one, other, _KCMP_FILES, None, None)
    return bool(_KCMP) and _libc.syscall(_KCMP, *arguments) == 0


def share_memory_between_threads() -> None:
    """
    Have all threads take memory from two places, not from eight for each processor.

    What one of many threads has freed stays with its place, and is of no use to others.
    Source: mallopt(3), M_ARENA_MAX.
    """
    call("mallopt", _M_ARENA_MAX, 2)


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

    Source: sync_file_range(2).
    """
    if filesystem_type(descriptor) in (_EXT4, _XFS):
        call("sync_file_range", descriptor, 0, 0, _WAIT_WRITE_WAIT)
    else:
        os.fdatasync(descriptor)


def ioctl(descriptor: int, request: int, content: bytearray) -> None:
    """
    Have the kernel read and write *content*, whatever its size.

    `fcntl.ioctl` lets no other thread go on meanwhile if that is more than 1024 bytes,
    and a file's writers or its disk may be waited for. Source: ioctl(2).
    """
    buffer = (ctypes.c_char * len(content)).from_buffer(content)
    call("ioctl", descriptor, request, ctypes.addressof(buffer))


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """Make *length* bytes at *offset* of a file a hole."""
    fallocate(descriptor, FALLOCATE_KEEP_SIZE | FALLOCATE_PUNCH, offset, length)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """
    Change which blocks a file has, as *mode* says.

    Source: fallocate(2).
    """
    place = ctypes.c_int64(offset), ctypes.c_int64(length)
    call("fallocate", descriptor, mode, *place)


def umount(target: bytes, flags: int) -> None:
    """Unmount what is at *target*. Source: umount2(2)."""
    call("umount2", target, flags, about=os.fsdecode(target))


def sync_filesystem(descriptor: int, *, about: str | None = None) -> None:
    """Make the whole filesystem of *descriptor* durable. Source: syncfs(2)."""
    call("syncfs", descriptor, about=about)


def open_at(directory: int, path: bytes, flags: int, resolve: int) -> int:
    """
    Return *path*, which exists below the open *directory*, as *resolve* allows.

    Source: openat2(2), Linux 5.6.
    """
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)
    arguments = _OPENAT2, directory, path, how, len(how), None
    return call("syscall", *arguments, about=os.fsdecode(path))


def bind(
    source: bytes, target: bytes, attributes: int, *, directory: int = _AT_FDCWD
) -> None:
    """
    Make directory *source* appear at *target*, with *attributes* from its first moment.

    A bind that is changed afterwards has been copied to other namespaces before. A name
    as *target* in an open *directory* is no link that leads elsewhere.
    Source: open_tree(2), mount_setattr(2), move_mount(2), Linux 5.12.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    arguments: tuple[Any, ...] = _OPEN_TREE, _AT_FDCWD, source, flags, None, None
    tree = call("syscall", *arguments, about=os.fsdecode(source))
    try:
        wanted = struct.pack("=4Q", attributes, 0, 0, 0)
        arguments = _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, wanted, len(wanted)
        call("syscall", *arguments, about=os.fsdecode(target))
        arguments = _MOVE_MOUNT, tree, b"", directory, target, _FROM_DESCRIPTOR
        call("syscall", *arguments, about=os.fsdecode(target))
    finally:
        os.close(tree)


def mounted_nowhere(kind: bytes) -> int:
    """
    Return a new descriptor of a filesystem of this *kind*, which has no path.

    Source: fsopen(2), fsmount(2), Linux 5.2.
    """
    about = os.fsdecode(kind)
    made = call("syscall", _FSOPEN, kind, _CLOEXEC, None, None, None, about=about)
    try:
        call("syscall", _FSCONFIG, made, _CREATE, None, None, 0, about=about)
        return call("syscall", _FSMOUNT, made, _CLOEXEC, 0, None, None, about=about)
    finally:
        os.close(made)


def set_capabilities(kept: Collection[int]) -> None:
    """Keep *kept* alone of this thread's capabilities. Source: capset(2)."""
    bits = sum(1 << each for each in kept)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    call("capset", header, struct.pack("=6I", low, low, 0, high, high, 0))


def is_mount(name: bytes, *, directory: int) -> bool:
    """
    Return whether something is mounted on *name* in the open *directory*.

    Source: statx(2), STATX_ATTR_MOUNT_ROOT, Linux 5.8.
    """
    told = ctypes.create_string_buffer(_STATX_SIZE)
    flags = _AT_SYMLINK_NOFOLLOW | _AT_NO_AUTOMOUNT
    call("statx", directory, name, flags, 0, told, about=os.fsdecode(name))
    return bool(int.from_bytes(told.raw[8:16], sys.byteorder) & _MOUNT_ROOT)


def death_signal() -> int:
    """Return the signal that we get when our caller ends, 0 for none."""
    told = ctypes.c_int()
    call("prctl", _PR_GET_PDEATHSIG, ctypes.addressof(told), 0, 0, 0)
    return told.value


def set_death_signal(number: int) -> None:
    """
    Get signal *number* when our caller ends.

    A change of this process's user undoes that. Source: PR_SET_PDEATHSIG(2const).
    """
    call("prctl", _PR_SET_PDEATHSIG, number, 0, 0, 0)


def birth_ns(name: bytes, *, directory: int) -> int | None:
    """
    Return when *name* in the open *directory* was made, None if nothing tells.

    Source: statx(2), STATX_BTIME.
    """
    told = ctypes.create_string_buffer(_STATX_SIZE)
    arguments = directory, name, _AT_SYMLINK_NOFOLLOW, _STATX_BIRTH, told
    call("statx", *arguments, about=os.fsdecode(name))
    seconds, parts_ns = struct.unpack_from("=qI", told, _BIRTH_AT)
    known = int.from_bytes(told.raw[:4], sys.byteorder) & _STATX_BIRTH
    return seconds * 10**9 + parts_ns if known else None


def filesystem_type(descriptor: int) -> int:
    """Return the number of the kind of filesystem. Source: fstatfs(2)."""
    content = ctypes.create_string_buffer(_STATFS_SIZE_MAX)
    call("fstatfs", descriptor, content)
    return int.from_bytes(content.raw[:_LONG], sys.byteorder)


def set_filter(length: int, steps: bytes) -> None:
    """
    Ask the *length* *steps* about each system call from now on.

    A kernel that has no filters does without. Source: seccomp(2).
    """
    content = ctypes.create_string_buffer(steps, len(steps))
    program = struct.pack("@HP", length, ctypes.addressof(content))
    about = ctypes.create_string_buffer(program, len(program))
    try:
        call("prctl", _PR_SET_SECCOMP, _FILTER, ctypes.addressof(about), 0, 0)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
