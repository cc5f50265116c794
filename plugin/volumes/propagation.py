"""
Whether the engine sees what the managed plugin mounts.

An engine that starts after a crash ends the plugin of the engine before it, starts it
again, and meanwhile removes the old plugin's mounts. If it is slow, the new plugin has
begun with copies of those mounts, which the engine then no longer has: a container
would start on the empty directory below. Source: moby, plugin/manager.go
(HandleExitEvent unmounts while reload already enables).
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Final

from backends.system.clock import boottime_s
from backends.system.mounts import mounted_at, shown_elsewhere
from plugin.membership.lease import Facts

log = logging.getLogger(__name__)
_ENDED: Final = "ended_for_mounts_s"
_AGAIN_AFTER_S: Final = 60.0
_ANSWER_S: Final = 0.5


class Propagation:
    """How mounts below *mount_dir* get into the engine's mount namespace."""

    def __init__(self, mount_dir: Path, facts: Facts) -> None:
        """Take note whether the engine has given us *mount_dir*: else it sees all."""
        self._exists = mounted_at(mount_dir) is not None and not _machines_namespace()
        self._facts = facts

    def reaches(self, target: Path) -> bool:
        """Return whether the engine sees the mount on *target*."""
        return not self._exists or shown_elsewhere(target)

    def start_anew(self) -> None:
        """
        End the daemon in a moment, unless that was tried a moment ago.

        The engine starts the plugin again, and then sees its mounts. The end comes a
        bit later, so that our caller answers first: else the engine repeats the call,
        without its body.
        """
        now_s = boottime_s()
        passed_s = now_s - float(self._facts.fact(_ENDED) or -_AGAIN_AFTER_S)
        if self._exists and not 0 <= passed_s < _AGAIN_AFTER_S:
            self._facts.set_fact(_ENDED, f"{now_s}")
            log.error("the engine has cut off our mounts: ending, to be started again")
            end = threading.Timer(_ANSWER_S, os.kill, (os.getpid(), signal.SIGKILL))
            end.daemon = True
            end.start()


def _machines_namespace() -> bool:
    return Path("/proc/self/ns/mnt").samefile("/proc/1/ns/mnt")
