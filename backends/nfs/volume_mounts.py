"""
Mounting a volume: its lease, the mount itself, and whether what is mounted is sound.

With `mountMode=share` the share is mounted, its subdirectory bound to the target, and
the share unmounted again: for servers that refuse to have a subdirectory mounted.
"""

from __future__ import annotations

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

from backends.base import Volume
from backends.errors import BackendError, DeadlineError, RemoraError
from backends.nfs import mounting, server
from backends.nfs.errors import NfsError
from backends.nfs.options import (
    DEFAULTS,
    export_of,
    is_direct,
    mount_entries,
    owner_of,
    subdir_of,
)
from backends.nfs.records import complete
from backends.nfs.shares import Shares
from backends.system import mounts
from backends.system.clock import Deadline
from backends.system.mounts import VolumeUser

log = logging.getLogger(__name__)

_RELEASE_BUDGET_S: Final = 3.0


class VolumeMounts:
    """The mounts on this node of the volumes of *shares*."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares

    def mount(self, volume: Volume, target: Path, deadline: Deadline) -> None:
        """Take the lease, mount, and see that it answers; else leave nothing."""
        volume = complete(volume)
        self._hold(volume, deadline)
        if mounts.mounted_at(target) is not None:
            if server.has_moved(export_of(volume.options), target):
                self._require_unused(volume, target)
            elif self._is_sound(volume, target, deadline):
                return
            # The server has moved, or the directory was replaced on it: only a new
            # mount shows it.
            log.warning("%s at %s is stale: mounted anew", volume.name, target)
            self._unmount(volume, target)
        try:
            target.mkdir(mode=0o700, exist_ok=True)
            self._mount(volume, target, deadline)
            self._check(volume, target, deadline)
        except (BackendError, DeadlineError) as error:
            try:
                self.unmount(volume, target)
            except RemoraError as leftover:
                log.warning("'%s' is unmounted later: %s", volume.name, leftover)
            if error.code == "NFS-NOEXPORT":
                self._require_directory(volume, deadline)
            raise

    def unmount(self, volume: Volume, target: Path) -> None:
        """Unmount, by force if the server is dead; then give the lease back."""
        try:
            volume = complete(volume)
        except BackendError as error:  # whatever is there, it has to go
            log.warning("no lease is given back: %s", error)
            mounting.unmount(target, where=volume.name)
            mounting.remove_mount_point(target)
            return
        is_dead = self._unmount(volume, target)
        mounting.remove_mount_point(target)
        if not _is_mounted_beside(volume, target):
            self._release(volume, is_dead=is_dead)

    def users(self, volume: Volume, target: Path) -> list[VolumeUser]:
        """
        Return who has our mount of the volume elsewhere than its mount point.

        The kernel shows the same of all mounts of one export. So those of the host (in
        fstab, by autofs) and of other volumes are none of it, nor are their copies
        in other namespaces. While there are such, a container may have theirs: then a
        plain export, of which nothing depends on the answer, has no users but those who
        are counted by their references.
        """
        volume = replace(volume, options={**DEFAULTS, **volume.options})
        if not {"server", "share"} <= volume.options.keys():
            return []  # nothing could be mounted by such a record
        source, root = source_of(volume)
        others = [
            Path(each.mount_point)
            for each in mounts.mount_table()
            if (each.source, each.root) == (source, root)
            and each.mount_point != str(target)
        ]
        if others and is_direct(volume) and volume.options.get("exclusive") != "true":
            return []
        own = (target, self._shares.directory, *others)
        return mounts.users_of_root(root, source=source, own=own)

    def _mount(self, volume: Volume, target: Path, deadline: Deadline) -> None:
        export, entries = export_of(volume.options), mount_entries(volume)
        subdir = "" if is_direct(volume) else subdir_of(volume)
        if volume.options["mountMode"] != "share":
            mounting.mount(
                export, target, subdir=subdir, entries=entries, deadline=deadline
            )
            return
        # Beside the control mounts, where the next start finds what a crash leaves.
        whole = self._shares.of(volume).control_mount.with_name(target.name)
        whole.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            mounting.mount(export, whole, subdir="", entries=entries, deadline=deadline)
            mounting.bind(whole, subdir, target, where=str(export))
        finally:
            mounting.unmount(whole, where=str(export))
            mounting.remove_mount_point(whole)

    def _hold(self, volume: Volume, deadline: Deadline) -> None:
        """Take the lease and see that the volume is still what we know."""
        if is_direct(volume):
            server.ping(export_of(volume.options))
            return
        share = self._shares.of(volume)
        owner = owner_of(volume)
        share.call("hold", deadline=deadline, name=volume.name, id=volume.id, **owner)
        share.held.add(volume.id)

    def _require_unused(self, volume: Volume, target: Path) -> None:
        """
        Raise NfsError MOVED if a container has the volume from where the server was.

        The server may come back there. And with our mount its lease would go, while the
        container goes on to write.
        """
        if users := self.users(volume, target):
            raise NfsError(
                "MOVED",
                f"the server has another address now, and {users[0]} has it from "
                "the old one",
                export_of(volume.options).source(),
            )

    def _release(self, volume: Volume, *, is_dead: bool) -> None:
        """Give the lease back; with a dead server it ends by itself."""
        if is_direct(volume):
            return
        share = self._shares.of(volume)
        share.held.discard(volume.id)
        if is_dead:
            log.warning("the lease of '%s' ends by itself", volume.name)
            return
        try:
            share.call("release", deadline=Deadline(_RELEASE_BUDGET_S), id=volume.id)
        except (NfsError, DeadlineError) as error:
            log.warning("the lease of '%s' ends by itself: %s", volume.name, error)

    def _is_sound(self, volume: Volume, target: Path, deadline: Deadline) -> bool:
        """Return whether what is mounted at *target* answers; the volume is held."""
        try:
            self._check(volume, target, deadline)
        except NfsError as error:
            if error.code != "NFS-STALE":
                raise
            return False
        return True

    def _check(self, volume: Volume, target: Path, deadline: Deadline) -> None:
        """Raise NfsError unless the server knows what is mounted at *target*."""
        if not is_direct(volume):
            share, request = self._shares.of(volume), owner_of(volume)
            share.check(deadline=deadline, target=str(target), **request)

    def _require_directory(self, volume: Volume, deadline: Deadline) -> None:
        """Raise STALE if the share, which is there, lacks the volume's directory."""
        if is_direct(volume):
            return
        share, subdir = self._shares.of(volume), subdir_of(volume)
        try:
            share.check(deadline=deadline, directory=subdir, **owner_of(volume))
        except NfsError as error:
            if os.strerror(errno.ENOENT) in error.cause:
                cause = f"directory '{subdir}' is gone"
                raise NfsError("STALE", cause, str(share.export)) from error

    def _unmount(self, volume: Volume, target: Path) -> bool:
        """Unmount; return whether a server that does not answer kept it waiting."""
        export = export_of(volume.options)
        return mounting.unmount(target, where=export.source(), export=export)


def _is_mounted_beside(volume: Volume, target: Path) -> bool:
    """Return whether the volume has another mount point of ours: it is read there."""
    source, root = source_of(volume)
    return any(
        (each.source, each.root) == (source, root)
        and Path(each.mount_point).parent == target.parent
        and each.mount_point != str(target)
        for each in mounts.mount_table()
    )


def source_of(volume: Volume) -> tuple[str, str]:
    """Return the source that the kernel shows for the volume's mount, and the root."""
    export = export_of(volume.options)
    if is_direct(volume):
        return export.source(), "/"
    if volume.options["mountMode"] == "share":
        return export.source(), f"/{subdir_of(volume)}"
    return export.source(subdir_of(volume)), "/"
