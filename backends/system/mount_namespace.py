"""
Mount namespaces, for programs that start in a bare Python.

`mounts.py` is for the daemon; what it imports takes longer to load than those programs
run. Source: mount(2), unshare(2), pivot_root(2).
"""

import os

from backends.system import libc
from backends.system.mountinfo import parse_mountinfo

_NOTHING_SPECIAL = libc.MS_NOSUID | libc.MS_NODEV
_NEW_MOUNTS = 0x00020000


def enter_own_mounts() -> None:
    """Give this process mounts of its own, which no other namespace hears of."""
    libc.call("unshare", _NEW_MOUNTS, about="mounts")
    libc.mount(b"none", b"/", None, libc.MS_REC | libc.MS_PRIVATE)


def mount_memory(target: str, options: str, *, source: str = "remora") -> None:
    """Mount an empty filesystem in memory, which the tables call *source*."""
    what = source.encode(), target.encode(), b"tmpfs"
    libc.mount(*what, _NOTHING_SPECIAL, options.encode())


def bind(
    descriptor: int, target: str, *, read_only: bool = False, programs: bool = False
) -> None:
    """
    Make the file or directory open as *descriptor* appear at *target*.

    Devices in it cannot be opened, nor programs run but with *programs*.
    """
    source = b"/proc/self/fd/%d" % descriptor
    libc.mount(source, os.fsencode(target), None, libc.MS_BIND)
    restrict(target, read_only=read_only, programs=programs)


def restrict(target: str, *, read_only: bool, programs: bool = False) -> None:
    """Take from the mount at *target* what `bind` says."""
    flags = libc.MS_BIND | libc.MS_REMOUNT | _NOTHING_SPECIAL
    flags |= libc.MS_RDONLY if read_only else 0
    flags |= 0 if programs else libc.MS_NOEXEC
    libc.mount(None, os.fsencode(target), None, flags)


def detach_below(directory: str) -> None:
    """Take every mount at and below *directory* out of sight, whoever uses it."""
    with open("/proc/self/mountinfo", "rb") as file:
        entries = list(parse_mountinfo(os.fsdecode(file.read())))
    # The last ones first: they may lie on the others.
    for entry in reversed(entries):
        if f"{entry.mount_point}/".startswith(f"{directory}/"):
            libc.umount(os.fsencode(entry.mount_point), libc.MNT_DETACH)


def pivot(new_root: str) -> None:
    """Make *new_root* this process's root; nothing of the old one is left in reach."""
    os.chdir(new_root)
    # Source: pivot_root(2), NOTES: the old root is stacked on the new one.
    libc.call("pivot_root", b".", b".", about=new_root)
    libc.umount(b".", libc.MNT_DETACH)
    os.chdir("/")
