"""
All writers of volumes standing still for a moment, so that commits can be made of them.

Only control groups of version 2 that hold nothing but containers of a volume are
frozen. If anybody else may write to it, nobody is. The guard does it, and lets them go
on after a second at most, whatever becomes of us; nothing is ever killed for it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from backends.system.clock import Deadline, monotonic_s
from plugin.errors import FencingError
from plugin.fencing import cgroups, freezer, processes, writers
from plugin.fencing.client import Guard
from plugin.fencing.freezer import Target
from plugin.fencing.held import PAUSE_MAX_S, HeldVolume


class NotPausedError(FencingError):
    """The volume's writers cannot be paused, or have not stood still all the time."""


class NotStillError(NotPausedError):
    """The containers in ``targets`` do not stand still in time."""

    def __init__(self, targets: AbstractSet[Target]) -> None:
        super().__init__("its containers do not stand still in time")
        self.targets = targets


@dataclass(slots=True)
class Paused:
    """
    Who is to stand still for commits of ``volumes``, and in the end for how long.

    Of several volumes, not each has to have somebody who writes to it.
    """

    volumes: Sequence[HeldVolume]
    targets: AbstractSet[Target]
    took_s: float = 0.0

    @classmethod
    def of(cls, several: Iterable[Paused]) -> Paused:
        """Return all of *several* as one pause."""
        listed = [*several]
        volumes = [volume for each in listed for volume in each.volumes]
        return cls(volumes, set[Target]().union(*(each.targets for each in listed)))

    def inodes(self) -> set[int]:
        """
        Return the files that they have open, or can store into, of any filesystem.

        No event tells of all that is written to a file which stays open.

        Raises:
            NotPausedError: the kernel does not tell, or not in time.

        """
        deadline = Deadline(PAUSE_MAX_S)
        found = set[int]()
        groups = (cgroups.members(each.path) or set() for each in self.targets)
        for pid in set[int]().union(*groups):
            for inode in _open(pid):
                found.add(inode)
                if deadline.passed():
                    raise NotPausedError("its containers have too many files open")
        return found


class Pausing:
    """Pauses the writers of volumes that *guard* holds."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def find(self, volume_id: str) -> Paused:
        """
        Return who would have to stand still.

        Raises:
            NotPausedError: who else may write to it could not.

        """
        volume = self._guard.held(volume_id)
        if volume is None:
            raise NotPausedError("the volume is not held here")
        return Paused([volume], _groups(volume, open_files=True))

    def is_written(self, volume_id: str) -> bool:
        """Return whether a process of this node may write to what is held here."""
        volume = self._guard.held(volume_id)
        if volume is None:
            return False
        found = writers.find([volume], never=(), open_files=True)[volume_id]
        return bool(found.pids or found.namespaces or found.unfinished)

    @contextmanager
    def paused(self, paused: Paused) -> Iterator[None]:
        """
        Have all that can write to the volumes stand still until the block is left.

        Who does is in *paused*, from `find`; then for how long, also if it fails.

        Raises:
            NotStillError: some cannot be stopped.
            NotPausedError: that is not possible, or it did not last: what was made of
                the volumes in the block may be of several moments.
            FencingError: the guard does not answer.

        """
        if not paused.targets:
            raise NotPausedError("no container is known that writes to it")
        # The guard knows each pause by a volume; it is one pause, whosever they are.
        volume_id = paused.volumes[0].id
        still, began_s = False, monotonic_s()
        try:
            if late := self._guard.pause(volume_id, paused.targets):
                raise NotStillError(late)
            yield
            still = self._guard.resume(volume_id)
        finally:
            if not still:
                self._guard.resume(volume_id)
            paused.took_s = monotonic_s() - began_s
        if not still:
            raise NotPausedError("its containers did not stand still for long enough")
        for volume in paused.volumes:
            if not _groups(volume, open_files=False) <= paused.targets:
                raise NotPausedError(
                    "another container has begun to write to it meanwhile"
                )


def _groups(volume: HeldVolume, *, open_files: bool) -> set[Target]:
    """
    Return the control groups that all writers of the volume are in.

    Raises:
        NotPausedError: one cannot be frozen alone.

    """
    found = writers.find([volume], never=(), open_files=open_files)[volume.id]
    planned = freezer.plan(found, {})
    # Who has ended meanwhile may be in no control group any more.
    targets = {each for each in planned if each.kind != "process" or each.lives}
    if found.unfinished:
        raise NotPausedError("the machine has too many files open to look at them all")
    if "process" in {each.kind for each in targets}:
        raise NotPausedError(
            "a process writes to it that has no control group of its own, or shares "
            "one with others"
        )
    if "v1" in {each.kind for each in targets}:
        raise NotPausedError("its containers are in control groups of version 1")
    return targets


def _open(pid: int) -> Iterator[int]:
    """
    Yield the inodes that the process may write to without a name, of any filesystem.

    None of its files is asked: the server of one that is elsewhere may be silent.
    """
    for thread in processes.file_tables(pid):
        with suppress(OSError):
            for name in os.listdir(f"{thread}/fd"):
                with suppress(OSError):
                    # Sockets and the like have no path; there may be many.
                    if os.readlink(f"{thread}/fd/{name}").startswith("/"):
                        yield _inode(f"{thread}/fdinfo/{name}")
        for mapped in processes.shared_mappings(thread):
            yield mapped.inode


def _inode(path: str) -> int:
    """Return the inode that an open file's entry in fdinfo names, 0 if it is closed."""
    text = processes.read(path)
    if not text:
        return 0
    for line in text.splitlines():
        if line.startswith(b"ino:"):
            return int(line[4:])
    raise NotPausedError("before Linux 5.14 it is not known which files are open")
