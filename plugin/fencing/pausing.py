"""
All writers of a volume standing still for a moment, so that a commit can be made of it.

Only control groups of version 2 that hold nothing but containers of the volume are
frozen. If anybody else may write to it, nobody is. The guard does it, and lets them go
on after a second at most, whatever becomes of us; nothing is ever killed for it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from backends.system.clock import monotonic_s
from plugin.errors import FencingError
from plugin.fencing import cgroups, freezer, writers
from plugin.fencing.client import Guard
from plugin.fencing.freezer import Target
from plugin.fencing.held import HeldVolume


class NotPausedError(FencingError):
    """The volume's writers cannot be paused, or have not stood still all the time."""


@dataclass(slots=True)
class Paused:
    """Who stands still, and in the end for how long all of them did."""

    targets: Collection[Target] = ()
    took_s: float = 0.0

    def inodes(self, device: int) -> set[int]:
        """
        Return the files of filesystem *device* that they have open, or can store into.

        No event tells of all that is written to a file which stays open.
        """
        groups = (cgroups.members(each.path) or set() for each in self.targets)
        return {
            inode for pid in set[int]().union(*groups) for inode in _open(pid, device)
        }


class Pausing:
    """Pauses the writers of volumes that *guard* holds."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    @contextmanager
    def paused(self, volume_id: str, paused: Paused) -> Iterator[None]:
        """
        Have all that can write to the volume stand still until the block is left.

        Who, and for how long, is in *paused*, also if it fails.

        Raises:
            NotPausedError: that is not possible, or it did not last: what was made of
                the volume in the block may be of several moments.
            FencingError: the guard does not answer.

        """
        volume = self._guard.held(volume_id)
        if volume is None:
            raise NotPausedError("the volume is not held here")
        paused.targets = targets = _groups(volume, open_files=True)
        still, began_s = False, monotonic_s()
        try:
            if not self._guard.pause(volume_id, targets):
                raise NotPausedError("its containers do not stand still in time")
            yield
            still = self._guard.resume(volume_id)
        finally:
            if not still:
                self._guard.resume(volume_id)
            paused.took_s = monotonic_s() - began_s
        if not still:
            raise NotPausedError("its containers did not stand still for long enough")
        if not _groups(volume, open_files=False) <= targets:
            raise NotPausedError("another container has begun to write to it meanwhile")


def _groups(volume: HeldVolume, *, open_files: bool) -> set[Target]:
    """
    Return the control groups that all writers of the volume are in.

    Raises:
        NotPausedError: there are none, or one cannot be frozen alone.

    """
    found = writers.find([volume], never=(), open_files=open_files)[volume.id]
    planned = freezer.plan(found, {})
    # Who has ended meanwhile may be in no control group any more.
    targets = {each for each in planned if each.kind != "process" or each.lives}
    if not targets and open_files:
        raise NotPausedError("no container is known that writes to it")
    if "process" in {each.kind for each in targets}:
        raise NotPausedError(
            "a process writes to it that has no control group of its own, or shares "
            "one with others"
        )
    if "v1" in {each.kind for each in targets}:
        raise NotPausedError("its containers are in control groups of version 1")
    return targets


def _open(pid: int, device: int) -> Iterator[int]:
    """Yield the inodes on *device* that the process may write to without a name."""
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                status = os.stat(f"/proc/{pid}/fd/{name}")
                if status.st_dev == device and stat.S_ISREG(status.st_mode):
                    yield status.st_ino
    with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            # Range, rights, offset, device, inode. Source: proc_pid_maps(5).
            _, rights, _, at, inode, *_ = line.split(None, 5)
            major, _, minor = at.partition(b":")
            is_on = os.makedev(int(major, 16), int(minor, 16)) == device
            if is_on and rights.endswith(b"s"):
                yield int(inode)
