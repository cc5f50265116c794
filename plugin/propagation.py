"""
Whether the engine sees what the managed plugin mounts.

An engine that starts after a crash ends the plugin of its predecessor, starts it again,
and meanwhile clears away the mounts of the old one. If it is slow at that, the new
plugin has begun with copies of those mounts which the engine then no longer has: a
container would start on the empty directory below. Source: moby, plugin/manager.go
(HandleExitEvent unmounts while reload already enables).
"""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

from backends.system.mounts import mounted_at, shown_elsewhere

log = logging.getLogger(__name__)


class Propagation:
    """The way of mounts below *mount_dir* into the engine's mount namespace."""

    def __init__(self, mount_dir: Path) -> None:
        """There is one if *mount_dir* was given by the engine, not made by us."""
        self._exists = mounted_at(mount_dir) is not None and not _machines_namespace()
        self._worked = self._exists and shown_elsewhere(mount_dir)

    def reaches(self, target: Path) -> bool:
        """Return whether the engine sees the mount on *target*."""
        return not self._exists or shown_elsewhere(target)

    def start_anew(self) -> None:
        """
        End the daemon, if the way was there when it started.

        The engine starts the plugin again, with a new way, and repeats the call that
        was not answered: nothing fails.
        """
        if self._worked:
            log.error("the engine has cut off our mounts: ending, to be started again")
            os.kill(os.getpid(), signal.SIGKILL)


def _machines_namespace() -> bool:
    return Path("/proc/self/ns/mnt").samefile("/proc/1/ns/mnt")
