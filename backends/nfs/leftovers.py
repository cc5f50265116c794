"""What a daemon that was killed has left of its shares: agents and control mounts."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from pathlib import Path

from backends.errors import BackendError, RemoraError
from backends.nfs import mounting
from backends.nfs.agent import main as agent_main
from backends.system.mounts import mount_points_below

log = logging.getLogger(__name__)


def sweep(directory: Path, *, but: Path) -> None:
    """
    End every agent below *directory* and unmount what is mounted there.

    *but* is the part of it that is in use. An agent that was waiting for a dead server
    would go on, once that is back, with what nobody remembers having asked for.
    """
    for pid in _agents(f"{directory}/", but=f"{but}/"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for point in mount_points_below(directory):
        if but in point.parents:
            continue
        try:
            mounting.unmount(point, where=str(point))
        except RemoraError as error:
            log.warning("a control mount of an earlier daemon stays: %s", error)
    remove_empty(directory, but=but)


def remove_empty(directory: Path, *, but: Path | None = None) -> None:
    """Remove the mount points below *directory* on which nothing is mounted."""
    mounted = {directory, *mount_points_below(directory)}
    for part in directory.iterdir():
        # Not even looked into while it is an NFS mount itself.
        if part == but or part in mounted:
            continue
        with suppress(OSError, BackendError):
            for point in part.iterdir():
                if point not in mounted:
                    mounting.remove_mount_point(point)
            part.rmdir()


def _agents(below: str, *, but: str) -> list[int]:
    """Return the agents whose control mount is *below* it, *but* not below that."""
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            text = (process / "cmdline").read_bytes().decode(errors="replace")
            words = text.split("\0")
            ours = any(each.startswith(below) for each in words)
            in_use = any(each.startswith(but) for each in words)
            if agent_main.__name__ in text and ours and not in_use:
                found.append(int(process.name))
    return found
