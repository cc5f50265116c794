"""
Whether the engine sees what the managed plugin mounts.

An engine that starts after a crash ends the plugin of its predecessor, starts it again,
and meanwhile clears away the mounts of the old one. If it is slow at that, the new
plugin has begun with copies of those mounts which the engine then no longer has: a
container would start on the empty directory below. Source: moby, plugin/manager.go
(HandleExitEvent unmounts while reload already enables).
"""

from __future__ import annotations

from pathlib import Path

from backends.system.mounts import mounted_at, shown_elsewhere


class Propagation:
    """The way of mounts below *mount_dir* into the engine's mount namespace."""

    def __init__(self, mount_dir: Path) -> None:
        """There is one if *mount_dir* was given by the engine, not made by us."""
        self._exists = mounted_at(mount_dir) is not None and not _machines_namespace()

    def reaches(self, target: Path) -> bool:
        """Return whether the engine sees the mount on *target*."""
        return not self._exists or shown_elsewhere(target)


def _machines_namespace() -> bool:
    return Path("/proc/self/ns/mnt").samefile("/proc/1/ns/mnt")
