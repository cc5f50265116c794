"""
Mount namespaces, through libc, for programs that start in a bare Python.

`backends/system/mounts.py` is for the daemon; what it imports takes longer to load than
the programs of this package run. Source: mount(2), unshare(2), pivot_root(2).
"""

import ctypes
import os
import re

READ_ONLY = 0x1 | 0x2 | 0x4  # MS_RDONLY, MS_NOSUID, MS_NODEV
_REMOUNT = 0x20
_BIND = 0x1000
_RECURSIVE_PRIVATE = 0x4000 | 0x40000
_NEW_MOUNTS = 0x00020000
_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def enter_own_mounts() -> None:
    """Give this process mounts of its own, which no other namespace hears of."""
    _checked(_libc.unshare(_NEW_MOUNTS), "unshare")
    _mount(b"none", b"/", None, _RECURSIVE_PRIVATE, None)


def mount_memory(target: str, options: str) -> None:
    """Mount an empty filesystem in memory on *target*."""
    _mount(b"remora", target.encode(), b"tmpfs", READ_ONLY & ~1, options.encode())


def bind(descriptor: int, target: str, *, read_only: bool = False) -> None:
    """Make the directory open as *descriptor* appear at *target*."""
    _mount(b"/proc/self/fd/%d" % descriptor, os.fsencode(target), None, _BIND, None)
    if read_only:
        make_read_only(target)


def make_read_only(target: str) -> None:
    """Take the right to write from the mount at *target*."""
    _mount(None, os.fsencode(target), None, _BIND | _REMOUNT | READ_ONLY, None)


def detach_below(directory: str) -> None:
    """Take every mount at and below *directory* out of sight, whoever uses it."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [_unescaped(line.split(b" ")[4]) for line in file]
    # The last ones first: they may lie on the others.
    for point in reversed(points):
        if f"{point}/".startswith(f"{directory}/"):
            _checked(_libc.umount2(os.fsencode(point), _DETACH), f"umount {point}")


def pivot(new_root: str) -> None:
    """Make *new_root* this process's root; nothing of the old one is left in reach."""
    os.chdir(new_root)
    # Source: pivot_root(2), NOTES: the old root is stacked on the new one.
    _checked(_libc.pivot_root(b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", _DETACH), "umount2")
    os.chdir("/")


def _unescaped(field: bytes) -> str:
    """Return a path of mountinfo as it is. Source: proc_pid_mountinfo(5)."""
    plain = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
    return os.fsdecode(plain)


def _mount(
    source: bytes | None,
    target: bytes,
    kind: bytes | None,
    flags: int,
    options: bytes | None,
) -> None:
    _checked(
        _libc.mount(source, target, kind, ctypes.c_ulong(flags), options),
        f"mount {os.fsdecode(target)}",
    )


def _checked(result: int, what: str) -> None:
    if result:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
