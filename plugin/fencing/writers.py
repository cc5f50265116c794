"""
Which processes can write to a volume.

In a namespace that shows the volume's directory at a mount point of its own (a
container) every process can. Where it is seen only through the daemon's mount point,
whose last component is the volume's id, and in the machine's own namespace, those do
that have something open below it: there the others are bystanders.

All volumes are looked for at once: a lease is the node's, so all pass their deadline
together. Nothing here touches the volume itself, which may hang.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from backends.system import clock
from backends.system.mountinfo import MountEntry, parse_mountinfo
from plugin.fencing import processes
from plugin.fencing.held import HeldVolume

# A machine with thousands of processes takes a fifth of this; one with more is better
# served by being looked at again than by waiting.
_OPEN_FILES_BUDGET_S: Final = 1.0
_INIT: Final = 1


@dataclass(slots=True)
class Writers:
    """The writers of one volume: processes, and namespaces full of them."""

    pids: set[int] = field(default_factory=set)
    namespaces: set[int] = field(default_factory=set)


def find(
    volumes: Sequence[HeldVolume], *, never: Collection[int], open_files: bool
) -> dict[str, Writers]:
    """
    Return the writers of each of *volumes*, by its id.

    Not among them are processes of *never* and those that come from them. Without
    *open_files* only namespaces are looked at, which is quicker.
    """
    found = {volume.id: Writers() for volume in volumes}
    watched: dict[int, dict[str, str]] = {}
    members = _namespaces()
    shared = {processes.mount_namespace(os.getpid()), processes.mount_namespace(_INIT)}
    for namespace, pids in members.items():
        for volume, entries in _shown(pids, volumes):
            if namespace not in shared and any(
                os.path.basename(entry.mount_point) != volume.id for entry in entries
            ):
                found[volume.id].namespaces.add(namespace)
                found[volume.id].pids.update(pids)
                continue
            points = watched.setdefault(namespace, {})
            points.update({entry.mount_point: volume.id for entry in entries})
    if open_files:
        _add_openers(found, watched, members)
    spared = frozenset({*never, _INIT, os.getpid()})
    for writers in found.values():
        writers.pids = {pid for pid in writers.pids if _may_be_stopped(pid, spared)}
    return found


def _namespaces() -> dict[int, list[int]]:
    """Return the processes of each mount namespace."""
    members: dict[int, list[int]] = defaultdict(list)
    for pid in processes.ids():
        if namespace := processes.mount_namespace(pid):
            members[namespace].append(pid)
    return members


def _shown(
    pids: Sequence[int], volumes: Sequence[HeldVolume]
) -> list[tuple[HeldVolume, list[MountEntry]]]:
    """Return the volumes that the namespace of *pids* shows, with their mounts."""
    table = None
    for pid in pids:  # the first may be gone, or be a zombie
        if table := processes.read(f"/proc/{pid}/mountinfo"):
            break
    if not table:
        return []
    maybe = [volume for volume in volumes if _clue(volume) in table]
    if not maybe:
        return []
    entries = list(parse_mountinfo(table.decode(errors="surrogateescape")))
    shown = []
    for volume in maybe:
        mounts = [entry for entry in entries if _shows(entry, volume)]
        if mounts:
            shown.append((volume, mounts))
    return shown


def _clue(volume: HeldVolume) -> bytes:
    """Return what a table that shows *volume* has in it, as the kernel writes it."""
    # Up to the first character that the kernel escapes.
    return os.fsencode(re.split(r"[ \t\n\\#]", volume.source or volume.root)[0])


def _shows(entry: MountEntry, volume: HeldVolume) -> bool:
    """Return whether *entry* is *volume*'s directory or one below it."""
    if volume.source:
        same = f"{entry.source}/".startswith(f"{volume.source.rstrip('/')}/")
    else:
        same = entry.device == volume.device
    return same and f"{entry.root}/".startswith(f"{volume.root.rstrip('/')}/")


def _add_openers(
    found: dict[str, Writers],
    watched: dict[int, dict[str, str]],
    members: dict[int, list[int]],
) -> None:
    """Add to *found* who has something open below a mount point of *watched*."""
    deadline = clock.Deadline(_OPEN_FILES_BUDGET_S)
    for namespace, points in watched.items():
        prefixes = tuple(points)
        for pid in members[namespace]:
            if deadline.passed():
                return
            for link in _open_paths(pid):
                if not link.startswith(prefixes):
                    continue
                for point, volume_id in points.items():
                    if f"{link}/".startswith(f"{point}/"):
                        found[volume_id].pids.add(pid)


def _open_paths(pid: int) -> list[str]:
    """Return the paths of what *pid* has open; reading such a link does no I/O."""
    links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root"]
    with suppress(OSError):
        links += [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
    paths = []
    for link in links:
        with suppress(OSError):
            paths.append(os.readlink(link))
    return paths


def _may_be_stopped(pid: int, spared: frozenset[int]) -> bool:
    process = processes.look(pid)
    return (
        process is not None
        and not process.kernel_thread
        and not processes.descends(pid, spared - {_INIT})
        and pid != _INIT
    )
